"""Who may send requests: not a web page of another site, by the browser of somebody who can reach this server.

A browser sends a page's requests to any address, 127.0.0.1 included, and names the page in `Origin`. With a domain that
first leads to the page and then to 127.0.0.1 (DNS rebinding) `Origin` and `Host` agree, but `Host` is not this server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class HostCheck:
    """Middleware that refuses requests of other sites' pages, in JSON.

    Args:
        app: the application.
        allowed: further names of this server, such as that of a proxy; None for any name.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str] | None) -> None:
        self.app, self.allowed = app, None if allowed is None else {name.lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        reason = self.refusal(Headers(scope=scope), scope["method"]) if scope["type"] == "http" else None
        if reason is None:
            await self.app(scope, receive, send)
        else:
            await JSONResponse({"error": reason}, 403)(scope, receive, send)

    def refusal(self, headers: Headers, method: str) -> str | None:
        """Say why a request is refused, None if it is not."""
        host = headers.get("host", "")
        name = _name(host)
        if self.allowed is not None and name not in self.allowed and not is_local_name(name):
            return f"this server is not {name!r:.100}: pass --allowed-host NAME for each name that leads to it."
        origin = headers.get("origin")
        if origin is None and headers.get("sec-fetch-site") == "cross-site":
            origin = "another site"
        if method in ("GET", "HEAD") or origin is None or self._is_own(origin, host):
            return None
        return f"pages of {origin!r:.100} may not send requests here: pass --allowed-host NAME if it is this server's."

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.netloc.lower() == host.lower() or _name(parts.netloc) in (self.allowed or ())


def is_local_name(name: str) -> bool:
    """Whether a name cannot be a domain that anyone can buy: an address, localhost, or without a dot."""
    if name.endswith(".localhost") or "." not in name.strip("."):
        return not name.endswith(".") or name == "localhost."
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    """Take the port off a host."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.rpartition(":")[2].isdigit() and ":" in host else host.lower()
