"""The web application: images by POST, the Open Inference Protocol, health, metrics and a page.

An ASGI app on Starlette, for uvicorn or whatever runs such (`pip install 'timm_stitch[serve]'`). Errors are JSON,
`{"error": …}`: 400 for what cannot be read, 408 for who sends too slowly, 413 for what is too large, 503 with
`Retry-After` where there is no time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .engine import Answer, OverloadError
from .engine import Request as Waiting
from .metrics import Metrics
from .open_inference import EXTENSIONS, HEADER_LENGTH, describe, read_inference, write_inference
from .promise import Wishes
from .service import Service

P = ParamSpec("P")
T = TypeVar("T")

MOST_TOP = 20  # classes in an answer
PATIENCE = 10.0  # seconds that a body may take to arrive
_LARGE = 1 << 16  # bytes that are worth another thread
_STEP = 0.02  # seconds between looks at how late the event loop is


class Application:
    """The handlers of one service.

    Args:
        service: answers.
        most_bytes: of a body.

    Attributes:
        metrics: what is counted, of requests here and of the calls of the service's engine.
    """

    def __init__(self, service: Service, most_bytes: int = 16 << 20) -> None:
        self.service, self.most_bytes = service, most_bytes
        self.metrics = Metrics(lambda: service.accuracy)
        service.engine.watch = self.metrics.watch
        self.lag = 0.0  # how late the event loop is, in seconds
        self.page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    def asgi(self) -> Starlette:
        """The application, to be run."""
        model = f"/v2/models/{self.service.name}"
        versions = (model, f"{model}/versions/1")
        routes = [
            Route("/", self.show),
            Route("/recent", self.recent),
            Route("/predict", self.answering(self.predict), methods=["POST"]),
            Route("/health", self.ready),
            Route("/metrics", self.prometheus),
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            *(Route(path, self.metadata) for path in versions),
            *(Route(f"{path}/ready", self.ready) for path in versions),
            *(Route(f"{path}/infer", self.answering(self.infer), methods=["POST"]) for path in versions),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _say}, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Watch the event loop while the application runs; then answer what waits."""
        watching = asyncio.create_task(self.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.to_thread(self.service.close)

    async def watch(self) -> None:
        """Measure how late the event loop is, by which requests wait where no policy sees them."""
        while True:
            due = time.monotonic() + _STEP
            await asyncio.sleep(_STEP)
            self.lag = time.monotonic() - due
            self.metrics.lag.set(self.lag)

    # ── requests ──────────────────────────────────────────────────────────────────────────────────

    def answering(
        self, handler: Callable[[Request, float], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler whose answers are counted, and whose errors are said."""

        async def answer(request: Request) -> Response:
            came = time.monotonic()
            try:
                response = await handler(request, came)
            except HTTPException as error:
                response = _say(request, error)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            except ValueError as error:
                response = _error(400, str(error))
            except OverloadError as error:
                response = _error(503, str(error), {"retry-after": "1"})
            except Exception as error:  # the network's own; the engine has logged it
                response = _error(500, f"the network failed ({type(error).__name__}): see the server's log.")
            self.metrics.answered(response.status_code, time.monotonic() - came)
            return response

        return answer

    async def body(self, request: Request) -> bytes:
        """What a client sends, bounded in bytes and time."""
        length = request.headers.get("content-length", "0")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "bodies are taken as they are, without content-encoding.")
        if not length.isdecimal() or int(length) > self.most_bytes:
            raise HTTPException(413, f"the body has {length:.20} bytes: at most {self.most_bytes:,} are taken.")
        parts, total = [], 0

        async def read() -> bytes:
            nonlocal total
            async for part in request.stream():
                total += len(part)
                if total > self.most_bytes:
                    raise HTTPException(413, f"the body is too large: at most {self.most_bytes:,} bytes are taken.")
                parts.append(part)
            return b"".join(parts)

        try:
            return await asyncio.wait_for(read(), PATIENCE)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body took more than {PATIENCE:g} s to arrive.") from None

    async def answer(self, images: torch.Tensor | list[bytes], wishes: Wishes, came: float) -> Answer:
        """Let images be read and wait for their turn."""
        service = self.service
        allowed, deadline = service.admit(wishes), service.deadline(wishes, came)  # before work begins
        try:
            if self.lag > (deadline - came) / 2:
                raise OverloadError(f"the server is {1e3 * self.lag:.0f} ms behind: try again later.")
            if isinstance(images, list):
                images = await asyncio.wrap_future(service.read_soon(images, deadline))
            waiting = service.engine.submit(Waiting(images, deadline, allowed, came))
        except OverloadError:
            self.metrics.refused(len(images))
            raise
        return await asyncio.wrap_future(waiting)

    def facts(self, answer: Answer, came: float) -> dict[str, Any]:
        """What an answer says of itself."""
        service = self.service
        row = service.stitches.get(answer.stitch_id, {})  # one that has been replaced meanwhile may have had others
        return {
            "stitch_id": answer.stitch_id,
            "stitch": row.get("name"),
            "top1": service.accuracy.get(answer.stitch_id),
            "macs": row.get("macs"),
            "late": answer.late,
            "waited_ms": round(1e3 * answer.waited, 3),
            "call_ms": round(1e3 * answer.took, 3),
            "latency_ms": round(1e3 * (time.monotonic() - came), 3),
            "batch": answer.batch,
        }

    async def predict(self, request: Request, came: float) -> Response:
        """Classify one image, the body: a file."""
        query = request.query_params
        wishes = wishes_of(query)
        most = _number({"top": 5, **query}, "top", int)
        if not 1 <= most <= MOST_TOP:
            raise ValueError(f"top={most} is out of range: expected 1 to {MOST_TOP}.")
        answer = await self.answer([await self.body(request)], wishes, came)
        values, classes = answer.logits[0].softmax(0).topk(min(most, answer.logits.shape[1]))
        found = [
            {"class": number, "label": self.service.labels[number], "probability": round(p, 6)}
            for number, p in zip(classes.tolist(), values.tolist(), strict=True)
        ]
        return JSONResponse({"predictions": found, **self.facts(answer, came)})

    async def beside(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What is to be done with so many bytes, on another thread where it would hold up the event loop."""
        if size < _LARGE:
            return work(*args, **kwargs)
        return await asyncio.wrap_future(self.service.readers.submit(work, *args, **kwargs))

    async def infer(self, request: Request, came: float) -> Response:
        """Answer a request of the Open Inference Protocol."""
        service = self.service
        body, length = await self.body(request), request.headers.get(HEADER_LENGTH)
        asked = await self.beside(len(body), read_inference, body, length, service.shape, service.promise.most_images)
        parameters = dict(asked.parameters)
        if "timeout" in parameters:  # Triton's, in microseconds
            parameters["latency_ms"] = (_number(parameters, "timeout", float) or 0.0) / 1e3
        images = asked.images if isinstance(asked.images, list) else torch.from_numpy(asked.images)
        answer = await self.answer(images, wishes_of(parameters), came)
        facts = self.facts(answer, came)
        known = {key: value for key, value in facts.items() if value is not None}
        logits = np.asarray(answer.logits, dtype=np.float32)
        size = 0 if asked.binary else 10 * logits.size
        body, headers = await self.beside(size, write_inference, service.name, asked, logits, known)
        return Response(body, headers=headers)

    # ── what is asked beside ──────────────────────────────────────────────────────────────────────

    async def live(self, request: Request) -> Response:
        """Whether the process is to be kept."""
        return JSONResponse({"live": self.service.engine.alive}, 200 if self.service.engine.alive else 503)

    async def ready(self, request: Request) -> Response:
        """Whether requests are to be sent here."""
        alive = self.service.engine.alive
        return JSONResponse({"ready": alive, "waiting": self.service.engine.waiting}, 200 if alive else 503)

    async def server(self, request: Request) -> Response:
        """The server's metadata."""
        return JSONResponse({"name": "timm_stitch", "version": version("timm_stitch"), "extensions": list(EXTENSIONS)})

    async def metadata(self, request: Request) -> Response:
        """The network's metadata."""
        service = self.service
        return JSONResponse(describe(service.name, service.shape, service.model.num_classes))

    async def prometheus(self, request: Request) -> Response:
        """Counts for Prometheus."""
        return Response(self.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def show(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse(self.page)

    async def recent(self, request: Request) -> Response:
        """What the page draws."""
        service, table = self.service, self.service.table
        stitches = [
            {
                "stitch_id": k,
                "name": service.stitches[k]["name"],
                "top1": service.accuracy.get(k),
                "ms": round(1e3 * s, 3),
            }
            for k, s in zip(table.stitch_ids, table.each, strict=True)
        ]
        said = {
            "name": service.name, "latency_ms": service.promise.latency_ms, "policy": service.promise.policy,
            "stitches": stitches, "seconds": self.metrics.recent(),
        }  # fmt: skip
        return JSONResponse(said)


def wishes_of(given: Mapping[str, Any]) -> Wishes:
    """What a request asks for, by its query or its parameters.

    Raises:
        ValueError: if a value is no number.
    """
    return Wishes(_number(given, "latency_ms", float), _number(given, "stitch_id", int), _number(given, "macs", float))


def _number(given: Mapping[str, Any], name: str, kind: type[int] | type[float]) -> Any:
    value = given.get(name)
    if value is None:
        return None
    try:
        number = kind(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}={value!r:.40} is no {'whole ' if kind is int else ''}number.") from None


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


def _say(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)
