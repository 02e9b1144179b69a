"""The bytes of all bodies that are there at once, bounded together."""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

from starlette.exceptions import HTTPException

from .engine import OverloadError

_TRIMMED = 32 << 20  # bytes that are worth giving back to the system


class Body:
    """A body while it arrives and is read.

    Args:
        budget: the budget that it counts against.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self.budget, self.parts, self.size = budget, bytearray(), 0
        self.arriving: asyncio.Task[bytes] | None = None
        self.refused = False

    async def read(self, stream: AsyncIterator[bytes], most_bytes: int, seconds: float) -> bytes:
        """Read a body from its stream.

        Raises:
            HTTPException: if it has more than `most_bytes`, or takes longer than `seconds`.
            OverloadError: if other bodies need the memory.
        """

        async def read() -> bytes:
            async for part in stream:
                self.budget.take(self, len(part))
                if self.size > most_bytes:
                    raise HTTPException(413, f"the body is too large: at most {most_bytes:,} bytes are accepted.")
                self.parts += part
            return bytes(self.parts)

        self.arriving = asyncio.ensure_future(read())
        try:
            return await asyncio.wait_for(asyncio.shield(self.arriving), seconds)
        except asyncio.CancelledError:
            if self.refused:
                raise OverloadError(self.budget.reason) from None
            raise
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body took more than {seconds:g} s to arrive.") from None
        finally:
            self.arriving.cancel()
            self.arriving, self.parts = None, bytearray()


class BodyBudget:
    """Memory for bodies, from their first byte until their request is answered.

    When it is used up, the largest body that is still arriving gives way, so that small ones are answered.

    Args:
        most_bytes: the bytes of all bodies together.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.used, self.most_used = most_bytes, 0, 0
        self.reason = f"bodies of {most_bytes:,} bytes are being read: try again later."
        self._bodies: set[Body] = set()

    @contextmanager
    def body(self) -> Iterator[Body]:
        """Count a body as long as this lasts."""
        body = Body(self)
        self._bodies.add(body)
        try:
            yield body
        finally:
            self._bodies.remove(body)
            self.used -= body.size
            if not self.used and self.most_used > _TRIMMED:
                self.most_used = 0
                _trim_memory()

    def take(self, body: Body, count: int) -> None:
        """Count bytes that came.

        Raises:
            OverloadError: if there is no memory for them.
        """
        body.size += count
        self.used += count
        self.most_used = max(self.most_used, self.used)
        while self.used > self.most_bytes:
            largest = max((b for b in self._bodies if b.arriving and not b.refused), key=lambda b: b.size, default=body)
            largest.refused = True
            if largest is body:
                raise OverloadError(self.reason)
            assert largest.arriving is not None
            largest.arriving.cancel()
            self.used -= largest.size
            largest.size, largest.parts = 0, bytearray()


def _trim_memory() -> None:
    """Give memory back to the system, which glibc keeps."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # of another C library
            ctypes.CDLL(None).malloc_trim(0)
