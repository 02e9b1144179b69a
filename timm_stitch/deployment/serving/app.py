"""The web application: images by POST, the Open Inference Protocol, health, metrics and a page.

An ASGI app on Starlette, for uvicorn or another ASGI server (`pip install 'timm_stitch[serve]'`). Errors are JSON,
`{"error": …}`: 400 for unreadable input, 408 for a body that arrives too slowly, 413 for one that is too large, and
503 with `Retry-After` if there is no time.
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

from .config import RequestOptions
from .engine import Answer, OverloadError
from .metrics import Metrics
from .open_inference import EXTENSIONS, HEADER_LENGTH, describe, read_inference, write_inference
from .service import InferenceService

P = ParamSpec("P")
T = TypeVar("T")

MOST_TOP = 20  # classes in an answer
PATIENCE = 10.0  # seconds that a body may take to arrive
_LARGE = 1 << 16  # bytes that are worth another thread
_STEP = 0.02  # seconds between measurements of the event loop's lag


class HttpApp:
    """The HTTP handlers of an inference service.

    Args:
        service: the service that answers.
        most_bytes: the largest size of a request's body.

    Attributes:
        metrics: the counts of requests and of the network's calls.
    """

    def __init__(self, service: InferenceService, most_bytes: int = 16 << 20) -> None:
        self.service, self.most_bytes = service, most_bytes
        self.metrics = Metrics(lambda: service.accuracy)
        service.watch(self.metrics.watch)
        self.lag = 0.0  # of the event loop, in seconds
        self.page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    def asgi(self) -> Starlette:
        """Build the ASGI application."""
        model = f"/v2/models/{self.service.name}"
        versions = (model, f"{model}/versions/1")
        routes = [
            Route("/", self.show),
            Route("/recent", self.recent),
            Route("/predict", self.with_errors(self.predict), methods=["POST"]),
            Route("/health", self.ready),
            Route("/metrics", self.prometheus),
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            *(Route(path, self.metadata) for path in versions),
            *(Route(f"{path}/ready", self.ready) for path in versions),
            *(Route(f"{path}/infer", self.with_errors(self.infer), methods=["POST"]) for path in versions),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error}, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Watch the event loop while the application runs; then answer waiting requests."""
        watching = asyncio.create_task(self.watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.to_thread(self.service.close)

    async def watch(self) -> None:
        """Measure the event loop's lag, a wait that no policy sees."""
        while True:
            due = time.monotonic() + _STEP
            await asyncio.sleep(_STEP)
            self.lag = time.monotonic() - due
            self.metrics.lag.set(self.lag)

    # ── requests ──────────────────────────────────────────────────────────────────────────────────

    def with_errors(
        self, handler: Callable[[Request, float], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler: its errors become JSON, its answers are counted."""

        async def answer(request: Request) -> Response:
            arrived_at = time.monotonic()
            try:
                response = await handler(request, arrived_at)
            except HTTPException as error:
                response = _http_error(request, error)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            except ValueError as error:
                response = _error(400, str(error))
            except OverloadError as error:
                response = _error(503, str(error), {"retry-after": "1"})
            except Exception as error:  # a fault of the network; the engine has logged it
                response = _error(500, f"the network failed ({type(error).__name__}): see the server's log.")
            self.metrics.answered(response.status_code, time.monotonic() - arrived_at)
            return response

        return answer

    async def body(self, request: Request) -> bytes:
        """Read a request's body, bounded in bytes and time."""
        length = request.headers.get("content-length", "0")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "bodies must come without content-encoding.")
        if not length.isdecimal() or int(length) > self.most_bytes:
            raise HTTPException(413, f"the body has {length:.20} bytes: at most {self.most_bytes:,} are accepted.")
        parts, total = [], 0

        async def read() -> bytes:
            nonlocal total
            async for part in request.stream():
                total += len(part)
                if total > self.most_bytes:
                    raise HTTPException(413, f"the body is too large: at most {self.most_bytes:,} bytes are accepted.")
                parts.append(part)
            return b"".join(parts)

        try:
            return await asyncio.wait_for(read(), PATIENCE)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body duration_s more than {PATIENCE:g} s to arrive.") from None

    async def answer(self, images: torch.Tensor | list[bytes], options: RequestOptions, arrived_at: float) -> Answer:
        """Read images, queue them and wait for their answer."""
        service = self.service
        allowed, deadline = service.allowed_stitches(options), service.deadline(options, arrived_at)
        try:
            if self.lag > (deadline - arrived_at) / 2:
                raise OverloadError(f"the server is {1e3 * self.lag:.0f} ms behind: try again later.")
            if isinstance(images, list):
                images = await asyncio.wrap_future(service.read_soon(images, deadline))
            answer = service.submit(images, deadline, allowed, arrived_at)
        except OverloadError:
            self.metrics.refused(len(images))
            raise
        return await asyncio.wrap_future(answer)

    def facts(self, answer: Answer, arrived_at: float) -> dict[str, object]:
        """Describe an answer: its stitch, and the times that it took."""
        service = self.service
        row = service.stitches.get(answer.stitch_id, {})  # a network that was replaced may have had other stitches
        return {
            "stitch_id": answer.stitch_id,
            "stitch": row.get("name"),
            "top1": service.accuracy.get(answer.stitch_id),
            "macs": row.get("macs"),
            "late": answer.late,
            "waited_ms": round(1e3 * answer.waited_s, 3),
            "call_ms": round(1e3 * answer.duration_s, 3),
            "latency_ms": round(1e3 * (time.monotonic() - arrived_at), 3),
            "batch": answer.batch,
        }

    async def predict(self, request: Request, arrived_at: float) -> Response:
        """Classify the image file in the body."""
        query = request.query_params
        options = read_options(query)
        most = _number({"top": 5, **query}, "top", int)
        if not 1 <= most <= MOST_TOP:
            raise ValueError(f"top must be 1 to {MOST_TOP}, got {most}.")
        answer = await self.answer([await self.body(request)], options, arrived_at)
        values, classes = answer.logits[0].softmax(0).topk(min(most, answer.logits.shape[1]))
        predictions = [
            {"class": number, "label": self.service.labels[number], "probability": round(p, 6)}
            for number, p in zip(classes.tolist(), values.tolist(), strict=True)
        ]
        return JSONResponse({"predictions": predictions, **self.facts(answer, arrived_at)})

    async def run_in_thread(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Work on some bytes, on another thread if they are many and would block the event loop."""
        if size < _LARGE:
            return work(*args, **kwargs)
        return await asyncio.wrap_future(self.service.readers.submit(work, *args, **kwargs))

    async def infer(self, request: Request, arrived_at: float) -> Response:
        """Answer a request of the Open Inference Protocol."""
        service = self.service
        body, length = await self.body(request), request.headers.get(HEADER_LENGTH)
        inference = await self.run_in_thread(
            len(body), read_inference, body, length, service.shape, service.config.most_images
        )
        parameters = dict(inference.parameters)
        if "timeout" in parameters:  # Triton's, in microseconds
            parameters["latency_ms"] = (_number(parameters, "timeout", float) or 0.0) / 1e3
        images = inference.images if isinstance(inference.images, list) else torch.from_numpy(inference.images)
        answer = await self.answer(images, read_options(parameters), arrived_at)
        facts = self.facts(answer, arrived_at)
        known = {key: value for key, value in facts.items() if value is not None}
        logits = np.asarray(answer.logits, dtype=np.float32)
        size = 0 if inference.binary else 10 * logits.size
        body, headers = await self.run_in_thread(size, write_inference, service.name, inference, logits, known)
        return Response(body, headers=headers)

    # ── health, metadata and the page ─────────────────────────────────────────────────────────────

    async def live(self, request: Request) -> Response:
        """Say whether the process should be kept."""
        return JSONResponse({"live": self.service.alive}, 200 if self.service.alive else 503)

    async def ready(self, request: Request) -> Response:
        """Say whether requests should be sent here."""
        alive = self.service.alive
        return JSONResponse({"ready": alive, "waiting": self.service.waiting}, 200 if alive else 503)

    async def server(self, request: Request) -> Response:
        """Return the server's metadata."""
        return JSONResponse({"name": "timm_stitch", "version": version("timm_stitch"), "extensions": list(EXTENSIONS)})

    async def metadata(self, request: Request) -> Response:
        """Return the network's metadata."""
        service = self.service
        return JSONResponse(describe(service.name, service.shape, service.model.num_classes))

    async def prometheus(self, request: Request) -> Response:
        """Return the counts for Prometheus."""
        return Response(self.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def show(self, request: Request) -> Response:
        """Return the page."""
        return HTMLResponse(self.page)

    async def recent(self, request: Request) -> Response:
        """Return the figures that the page draws."""
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
        figures = {
            "name": service.name, "latency_ms": service.config.latency_ms, "policy": service.config.policy,
            "stitches": stitches, "seconds": self.metrics.recent(),
        }  # fmt: skip
        return JSONResponse(figures)


def read_options(values: Mapping[str, Any]) -> RequestOptions:
    """Read the options of a request from its query or its parameters.

    Raises:
        ValueError: if a value is not a number.
    """
    return RequestOptions(
        _number(values, "latency_ms", float), _number(values, "stitch_id", int), _number(values, "macs", float)
    )


def _number(values: Mapping[str, Any], name: str, kind: type[int] | type[float]) -> Any:
    value = values.get(name)
    if value is None:
        return None
    try:
        number = kind(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        expected = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {expected}, got {value!r:.40}.") from None


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


Application = HttpApp  # the earlier name
