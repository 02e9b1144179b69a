"""One process that serves a network: the application on uvicorn, a signal to reload it, and an orderly end.

Needs uvicorn (`pip install '.[serve]'`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from functools import partial

import uvicorn

from ...network.stitchable import StitchableNetwork
from .config import ServingConfig
from .connections import SPARE, BoundedProtocol
from .text_app import open_app
from .text_service import open_service

_logger = logging.getLogger(__name__)

_CONNECTIONS = 200  # besides those whose requests wait
_OTHER_FILES = 100  # open files that are not connections
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers, which would end the process by the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """A server of one network.

    Args:
        load: a function that loads the network, at the start and for each reload.
        config: the latency target and the limits.
        name: the name of the network, for clients.
        host: the address where the server listens.
        port: the port where it listens; 0 for a free one.
        most_bytes: the largest size of a request's body.
        hosts: the names by which clients call the server, besides addresses and local names. By default there
            are none where only this machine can reach it, and any name otherwise.

    Attributes:
        address: the URL of the server.

    Raises:
        OSError: if the port is taken.
        ValueError: as `InferenceService`.
    """

    def __init__(
        self,
        load: Callable[[], StitchableNetwork],
        config: ServingConfig,
        *,
        name: str = "network",
        host: str = "127.0.0.1",
        port: int = 8000,
        most_bytes: int = 16 << 20,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.load = load
        hosts = () if hosts is None and host in _LOOPBACK else hosts
        listen(host, port).close()  # a port that is taken shows before the network is loaded
        self.service = open_service(load(), config, plain_name(name))
        try:
            self.application = open_app(self.service, most_bytes, hosts)
            self.socket = listen(host, port)  # after all that may refuse the network
        except BaseException:
            self.service.close()
            raise
        port = self.socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self, ready: Callable[[], None] = lambda: None) -> int:
        """Serve until SIGTERM or Ctrl-C; returns the exit status, 1 if the engine died.

        Args:
            ready: a function that is called when signals are handled, before the first request is.
        """
        config = uvicorn.Config(
            self.application.asgi(), log_level="error", access_log=False, lifespan="on", timeout_keep_alive=5,
            http=BoundedProtocol, ws="none", limit_concurrency=self._most_connections() + SPARE,
            timeout_graceful_shutdown=max(1, round(self.service.config.latency_ms / 1e3) + 1),
        )  # fmt: skip
        serving = self._serve(_Server(config), ready)
        try:
            import uvloop
        except ImportError:  # not on all systems
            return asyncio.run(serving)
        return uvloop.run(serving)

    def _most_connections(self) -> int:
        """Bound the connections, by the files that this process may open too."""
        wanted = self.service.config.most_waiting + _CONNECTIONS
        try:
            import resource

            files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            if files != resource.RLIM_INFINITY and files < wanted + SPARE + _OTHER_FILES:
                files = wanted + SPARE + _OTHER_FILES
                files = files if most == resource.RLIM_INFINITY else min(files, most)
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
            return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files - SPARE - _OTHER_FILES))
        except (ImportError, OSError, ValueError):  # not on all systems
            return wanted

    async def _serve(self, server: uvicorn.Server, ready: Callable[[], None]) -> int:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()

        async def reload_when_asked() -> None:
            while await asked.wait():
                asked.clear()  # a signal that comes while a network loads has it loaded once more
                await asyncio.to_thread(self.reload)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, partial(server.handle_exit, number, None))
        loop.add_signal_handler(signal.SIGHUP, asked.set)
        reloading = asyncio.create_task(reload_when_asked())
        ready()
        died = asyncio.create_task(self._end_with_engine(server))
        await server.serve(sockets=[self.socket])
        died.cancel()
        reloading.cancel()
        return int(self.service.died)

    async def _end_with_engine(self, server: uvicorn.Server) -> None:
        """End when the engine has died, so that a supervisor of the process starts another."""
        while not self.service.died:
            await asyncio.sleep(0.2)
        server.should_exit = True

    def reload(self) -> None:
        """Load the network again and serve it; if that fails, the old one stays."""
        try:
            self.service.replace(self.load())
            _logger.warning("the network was reloaded.")
        except Exception as error:  # any fault of a file
            kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
            _logger.error("the network was not replaced: %s%s", kind, " ".join(str(error).split()))


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens.

    Raises:
        OSError: naming the address that cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:  # OverflowError: a port above 65535
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen at {host}:{port} ({reason}): give another --host or --port.") from None
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a body waits 40 ms for a delayed ACK
    return listening


def plain_name(name: str) -> str:
    """Turn a name into one that fits into a URL."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "network"


NetworkServer = HttpServer  # its former name
