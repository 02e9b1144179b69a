"""What the web applications of images (`app`) and texts (`text_app`) share: routes, errors, health, metrics, a page.

An ASGI app on Starlette, for uvicorn or another ASGI server (`pip install '.[serve]'`). Errors are JSON,
`{"error": …}`: 400 for unreadable input, 408 for a body that arrives too slowly, 413 for one that is too large, and
403 for a page of another site, 500 if the network fails, and 503 with `Retry-After` if there is no time or memory.

The file is long because it holds every route next to the errors that it answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ...plan.metrics import metric_of
from .bodies import BodyBudget
from .config import RequestOptions
from .deployments import Deployment, Inputs, arithmetic, served
from .engine import Answer, OverloadError
from .hosts import HostCheck
from .metrics import Metrics
from .open_inference import EXTENSIONS, OUTPUT, Inference, write_inference
from .options import read_number, read_options
from .service import InferenceService

_logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 10.0  # seconds that a body may take to arrive
_LARGE = 1 << 16  # bytes that are worth another thread
_STEP = 0.02  # seconds between measurements of the event loop's lag
_LARGEST_VALUE = 1e4  # that a prepared image may have; the network's fault is what it gives for those
_ALL_BODIES = 256 << 20  # bytes of all bodies together, or four of the largest


class BaseApp:
    """The HTTP handlers of an inference service.

    Args:
        service: the service that answers.
        most_bytes: the largest size of a request's body.
        hosts: the names by which clients call the server, besides addresses and local names; default any.

    Raises:
        ValueError: if `most_bytes` is not positive.

    Attributes:
        metrics: the counts of requests and of the network's calls.
    """

    def __init__(
        self, service: InferenceService, most_bytes: int = 16 << 20, hosts: Collection[str] | None = None
    ) -> None:
        if most_bytes < 1:
            raise ValueError(f"most_bytes must be 1 or more, got {most_bytes}.")
        self.service, self.most_bytes, self.hosts = service, most_bytes, hosts
        self.bodies = BodyBudget(max(_ALL_BODIES, 4 * most_bytes))
        self.metrics = Metrics(lambda: service.accuracy, lambda: service.engine.deployment, service.kind)
        service.watch(self.metrics.watch)
        self.lag = 0.0  # of the event loop, in seconds
        page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        self.page = page.replace("images", service.kind).replace("Images", service.kind.capitalize())

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
        return Starlette(
            routes=routes,
            exception_handlers={HTTPException: _http_error, Exception: _fault},
            lifespan=self.lifespan,
            middleware=[Middleware(HostCheck, self.hosts)],
        )

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
        self, handler: Callable[[Request, bytes, float], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler of a body: its errors become JSON, its answers are counted."""

        async def answer(request: Request) -> Response:
            arrived_at = time.monotonic()
            try:
                with self.bodies.body() as body:
                    self.check_head(request)
                    response = await handler(
                        request, await body.read(request.stream(), self.most_bytes, PATIENCE), arrived_at
                    )
            except HTTPException as error:
                response = _http_error(request, error)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            except ValueError as error:
                response = _error(400, str(error))
            except OverloadError as error:
                response = _error(503, str(error), {"retry-after": "1"})
            except Exception as error:
                response = _fault(request, error)
            self.metrics.answered(response.status_code, time.monotonic() - arrived_at)
            return response

        return answer

    def check_head(self, request: Request) -> None:
        """Refuse a request whose body would be refused, before it is read."""
        length = request.headers.get("content-length", "0")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "bodies must come without content-encoding.")
        if not length.isdecimal() or len(length) > 20 or int(length) > self.most_bytes:
            raise HTTPException(413, f"the body has {length:.20} bytes: at most {self.most_bytes:,} are accepted.")

    async def answer(
        self,
        inputs: Inputs,
        options: RequestOptions,
        deployment: Deployment,
        arrived_at: float,
        read: Callable[[float], Future[Any]] | None = None,
    ) -> Answer:
        """Queue inputs for a network and wait for their answer.

        Args:
            inputs: images or texts, prepared unless they must be read.
            options: the options of the request.
            deployment: the network.
            arrived_at: the time of arrival, by `time.monotonic`.
            read: a function that prepares them before a deadline; default they are prepared.

        Raises:
            OverloadError: if there is no time.
            ValueError: if the images are too large for the network.
            HTTPException: if the network fails.
        """
        service = self.service
        allowed, deadline = service.allowed_stitches(options, deployment), service.deadline(options, arrived_at)
        try:
            if self.lag > (deadline - arrived_at) / 2:
                raise OverloadError(f"the server is {1e3 * self.lag:.0f} ms behind: try again later.")
            if read is not None:
                inputs = await asyncio.wrap_future(read(deadline))
            queued = service.submit(inputs, deadline, allowed, arrived_at, deployment)
        except OverloadError:
            self.metrics.refused(len(inputs))
            raise
        try:
            answer = await asyncio.wrap_future(queued)
        except OverloadError:
            raise
        except Exception as error:  # the engine has logged it
            reason = f"the network failed ({type(error).__name__}): see the server's log."
            raise HTTPException(500, reason) from error
        if not torch.isfinite(answer.logits).all():
            reason = f"the logits of stitch {answer.stitch_id} are not finite numbers"
            if isinstance(inputs, torch.Tensor) and (largest := float(inputs.abs().max())) > _LARGEST_VALUE:
                raise ValueError(f"the images have values up to {largest:.3g}, for which {reason}: prepare them.")
            raise HTTPException(500, f"the network failed: {reason}.")
        return answer

    def facts(self, answer: Answer, deployment: Deployment, arrived_at: float) -> dict[str, object]:
        """Describe an answer: its stitch, what computed it, and the times that it took."""
        network = served(deployment)
        row, score = network.stitches[answer.stitch_id], network.accuracy.get(answer.stitch_id)
        return {
            "stitch_id": answer.stitch_id,
            "stitch": row.get("name"),
            network.score: None if score is None else round(score, 4),
            "macs": row.get("macs"),
            **arithmetic(deployment, answer.stitch_id),
            "late": answer.late,
            "waited_ms": round(1e3 * answer.waited_s, 3),
            "call_ms": round(1e3 * answer.duration_s, 3),
            "latency_ms": round(1e3 * (time.monotonic() - arrived_at), 3),
            "batch": answer.batch,
        }

    async def predict(self, request: Request, body: bytes, arrived_at: float) -> Response:
        """Answer the request of a file or of texts."""
        raise NotImplementedError

    async def infer(self, request: Request, body: bytes, arrived_at: float) -> Response:
        """Answer a request of the Open Inference Protocol."""
        raise NotImplementedError

    async def run_in_thread(self, size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Work on some bytes, on another thread if they are many and would block the event loop."""
        if size < _LARGE:
            return work(*args, **kwargs)
        return await asyncio.wrap_future(self.service.parsers.submit(work, *args, **kwargs))

    async def write(
        self, inference: Inference, answer: Answer, deployment: Deployment, arrived_at: float, output: str = OUTPUT
    ) -> Response:
        """Write the answer to a request of the Open Inference Protocol."""
        facts = self.facts(answer, deployment, arrived_at)
        known = {key: value for key, value in facts.items() if value is not None}
        logits = np.asarray(answer.logits, dtype=np.float32)
        size = 0 if inference.binary else 10 * logits.size
        written, headers = await self.run_in_thread(
            size, write_inference, self.service.name, inference, logits, known, served(deployment).labels, output
        )
        return Response(written, headers=headers)

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
        raise NotImplementedError

    async def prometheus(self, request: Request) -> Response:
        """Return the counts for Prometheus."""
        return Response(self.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def show(self, request: Request) -> Response:
        """Return the page."""
        return HTMLResponse(self.page)

    async def recent(self, request: Request) -> Response:
        """Return the figures that the page draws."""
        service, deployment = self.service, self.service.engine.deployment
        network, table = served(deployment), deployment.table
        stitches = [
            {
                "stitch_id": k,
                "name": network.stitches[k]["name"],
                "top1": network.accuracy.get(k) if metric_of(network.score).percent else None,  # as the page draws it
                "ms": round(1e3 * s, 3),
            }
            for k, s in zip(table.stitch_ids, table.each, strict=True)
        ]
        figures = {
            "name": service.name, "latency_ms": service.config.latency_ms, "policy": service.config.policy,
            "stitches": stitches, "seconds": self.metrics.recent(),
        }  # fmt: skip
        return JSONResponse(figures)


def inference_options(inference: Inference, more: Collection[str] = ()) -> RequestOptions:
    """Read the options of a request of the Open Inference Protocol.

    Args:
        inference: the request.
        more: further options that the network takes.

    Raises:
        ValueError: if one is unknown or out of range.
    """
    parameters: dict[str, object] = dict(inference.parameters)
    timeout = read_number(parameters, "timeout")  # Triton's, in microseconds; 0 is none
    parameters.pop("timeout", None)
    if timeout:
        if "latency_ms" in parameters:
            raise ValueError("give timeout or latency_ms, not both.")
        parameters["latency_ms"] = timeout / 1e3
    return read_options(parameters, more)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, error.headers)


def _fault(request: Request, error: Exception) -> Response:
    """Answer what should not happen; the log has more."""
    _logger.error("a request failed", exc_info=error)
    return _error(500, f"the server failed ({type(error).__name__}): see its log.")
