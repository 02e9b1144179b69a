"""Connections, bounded in number, in time and in the bytes of a head, so that idle ones lock nobody out.

uvicorn counts every open connection against its limit and waits for a head for ever. Here a new connection takes the
place of the one that has waited longest for its client.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
else:
    Protocol = AutoHTTPProtocol

HEAD_S = 10.0  # seconds that a head may take to arrive
MOST_HEAD = 64 << 10  # bytes of a head
SPARE = 100  # connections beyond the limit, for health and metrics when no other can be closed
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large",
            503: "Service Unavailable"}  # fmt: skip


class BoundedProtocol(Protocol):
    """uvicorn's protocol of one connection, with bounds; `config.limit_concurrency` is `SPARE` above their limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes, self._waits_since = 0, time.monotonic()
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit a connection; if there are too many, another that waits for its client gives way."""
        super().connection_made(transport)
        self._await_head()
        limit = (self.limit_concurrency or 0) - SPARE
        if 0 < limit < len(self.connections):
            waiting = [c for c in self.connections if isinstance(c, BoundedProtocol) and c is not self and c.gives_way]
            if waiting:
                min(waiting, key=lambda c: (c.has_request, c._waits_since)).refuse(503, "too many connections")
            elif len(self.connections) >= limit + SPARE:
                self.refuse(503, "too many connections")

    @property
    def has_request(self) -> bool:
        """Whether the head of a request has come whose answer has not gone."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def gives_way(self) -> bool:
        """Whether it waits for its client: for a head, for a body, or for an answer to be taken."""
        if self.transport.is_closing():
            return False
        return not self.has_request or self.cycle.more_body or self.transport.get_write_buffer_size() > 0

    def data_received(self, data: bytes) -> None:
        """Take bytes, and bound the head that they may belong to."""
        is_body = self.cycle is not None and self.cycle.more_body  # perhaps of a request that is refused already
        self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.has_request or is_body:
            self._head_bytes, self._waits_since = 0, time.monotonic()
        if self.has_request:
            self._stop_timer()
        elif self._head_bytes > MOST_HEAD:
            self.refuse(431, f"the head of the request has more than {MOST_HEAD:,} bytes")
        elif self._head_timer is None:
            self._await_head()

    def on_message_complete(self) -> None:
        """Note the end of a body, also of a refused request, where uvicorn does not."""
        super().on_message_complete()
        if self.cycle is not None:
            self.cycle.more_body = False

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        self._waits_since = time.monotonic()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self.refuse(400, "this is no valid HTTP request")

    def refuse(self, status: int, reason: str) -> None:
        """Answer in JSON unless an answer has begun, and close."""
        self._stop_timer()
        is_stuck = self.transport.get_write_buffer_size() > 0  # its client does not read
        if not (self.has_request and self.cycle.response_started) and not self.transport.is_closing():
            body = json.dumps({"error": f"{reason}: try again later." if status == 503 else f"{reason}."}).encode()
            retry = "retry-after: 1\r\n" if status == 503 else ""
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        if is_stuck:
            self.transport.abort()
        else:
            self.transport.close()

    def _await_head(self) -> None:
        self._waits_since = time.monotonic()
        self._head_timer = self.loop.call_later(HEAD_S, self._end_waiting)

    def _end_waiting(self) -> None:
        self._head_timer = None
        if not self.has_request:
            self.refuse(408, f"the head of the request took more than {HEAD_S:g} s to arrive")

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
