"""Inference within a latency target: a network, the images and options it accepts, and the engine that answers.

It knows no protocol. The web application and the Ray deployment turn their requests into images and `RequestOptions`.
`text_service` has the same for texts.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...families.registry import require
from ...plan.results import Row
from ..class_names import task_of
from ..policies import DrainPolicy, FixedPolicy, LatencyTable, Policy
from .backends.agreement import BATCH, Agreement, compared_images, count_images, measure_agreement
from .backends.backend import Backend
from .backends.map_backend import MapBackend
from .backends.torch_backend import TorchBackend
from .config import LONGEST_MS, RequestOptions, ServingConfig
from .deployments import Deployment, Inputs, described, served
from .engine import Answer, Call, Engine, Request
from .handover import Handover, MakeBackend, find_engine
from .image_reader import ImageReader
from .latencies import frontier_stitches, known_rows, latency_rows
from .network import ServedNetwork

_logger = logging.getLogger(__name__)

_MOST_DECODERS = 16  # processes that decode images which are quickly read
_COMPILER_SECONDS = 2.0  # that the end waits for an engine's compiler to notice


class InferenceService:
    """A network that answers requests within a latency target.

    Args:
        model: the network on the device where it runs; put in eval mode. Its accuracies must be known (evaluated, or
            published); latencies on this machine are measured if it has none.
        config: the latency target and the limits.
        name: the name of the network, for clients.

    Raises:
        ValueError: if the network does not classify or no accuracy is known.
    """

    kind = "images"

    def __init__(self, model: Any, config: ServingConfig, name: str = "network") -> None:
        self.config, self.name = config, name
        self._half = (os.cpu_count() or 2) // 2
        self._workers = max(1, min(4, self._half))
        self.parsers = ThreadPoolExecutor(self._workers, thread_name_prefix="parser")
        self._handover: Handover | None = None
        self._replacing = threading.Lock()
        deployment, prepare_engine = self._deployed(model)
        self.engine = Engine(deployment, config.most_waiting, kind=self.kind)
        self._open_reader()
        prepare_engine()

    def _open_reader(self) -> None:
        """Start what reads the inputs of requests."""
        config, decoders = self.config, max(2, min(_MOST_DECODERS, self._half))
        self.images = ImageReader(config.most_pixels, config.most_waiting, decoders)
        self.images.wait_until_ready()

    def _find_engine(self, model: Any) -> MakeBackend | None:
        """Find what makes the backend of the engine; None if torch serves."""
        return find_engine(model, self.config)

    def _deployed(self, model: Any) -> tuple[Deployment, Callable[[], None]]:
        """Prepare a network to run in torch, and what has its engine prepare it once it serves there."""
        make_backend = self._find_engine(model)
        if make_backend is None:
            return self._deploy(model), lambda: None
        known = known_rows(model, self.config)  # torch's times may take the place of the engine's
        deployment = self._deploy(model)
        assert isinstance(deployment.backend, TorchBackend)
        backend = make_backend(deployment.backend, described(deployment), frontier_stitches(known))

        def prepare_engine() -> None:
            if backend is not None:
                self._handover = Handover(
                    backend, deployment, known, self.config, self._deployment,
                    lambda old, new: self.engine.replace(new, old),
                )  # fmt: skip

        return deployment, prepare_engine

    def _deploy(self, model: Any) -> Deployment:
        """Prepare a network to run in torch, which changes nothing of this service."""
        require(model, "serve")
        leave_the_file(model)
        network = ServedNetwork.of(model.eval())
        classifies = task_of(model) == "classification"
        precision = "fp32" if self.config.precision == "int8" else self.config.precision  # until the engine is ready
        backend = (TorchBackend if classifies else MapBackend)(model, precision)
        table = LatencyTable(latency_rows(model, self.config, backend))
        if getattr(getattr(model, "inference", None), "mode", "whole") == "slide":
            _logger.warning(
                "the network predicts by sliding windows; the server runs each image as a whole, resized to %d x %d.",
                *model.image_size,
            )
        backend.prepare(table.stitch_ids, table.batch_sizes)
        return self._deployment(network, table, backend)

    def _deployment(self, network: Any, table: LatencyTable, backend: Backend) -> Deployment:
        """Put a network, what runs it, and the policy that chooses its stitches together."""
        policy: Policy = DrainPolicy(table, self.config.overhead_ms)
        if self.config.policy == "fixed":
            index = table.slowest_within(self.config.network_seconds)
            policy = FixedPolicy(table, index, self.config.overhead_ms)
        exact = backend.precision == "fp32"
        agreement = None if exact else self._agreement(network, backend, table)
        return Deployment(backend.run, policy, table, network, backend, agreement)

    def _agreement(self, network: Any, backend: Backend, table: LatencyTable) -> Agreement:
        """Measure how often a backend agrees with the network in float32, and print it."""
        count = count_images(2 * sum(table.each), self.config.calibration is None)
        images, source = compared_images(network, self.config, count)
        reference = TorchBackend(network.model)
        agreement = measure_agreement(reference.run, backend.run, images.split(BATCH), source, table.stitch_ids)
        self.log_agreement(backend, agreement)
        return agreement

    @staticmethod
    def log_agreement(backend: Backend, agreement: Agreement) -> None:
        """Print how often a backend agrees with float32."""
        _logger.warning("%s in %s agrees with fp32: %s", backend.engine, backend.precision, agreement)

    @property
    def network(self) -> ServedNetwork:
        """The network that serves new requests."""
        return described(self.engine.deployment)

    @property
    def model(self) -> Any:
        """The network itself."""
        return served(self.engine.deployment).model

    @property
    def labels(self) -> Sequence[str]:
        """The name of each class."""
        return served(self.engine.deployment).labels

    @property
    def stitches(self) -> Mapping[int, Row]:
        """The row of each stitch."""
        return served(self.engine.deployment).stitches

    @property
    def accuracy(self) -> Mapping[int, float | None]:
        """The known accuracy of each stitch, in per cent, or another score."""
        return served(self.engine.deployment).accuracy

    @property
    def table(self) -> LatencyTable:
        """The latencies of the stitches that the policy chooses from."""
        return self.engine.deployment.table

    @property
    def alive(self) -> bool:
        """Whether requests are accepted."""
        return self.engine.alive

    @property
    def died(self) -> bool:
        """Whether a fault has ended the engine."""
        return self.engine.died

    @property
    def waiting(self) -> int:
        """The number of images or texts that wait."""
        return self.engine.waiting

    def watch(self, observer: Callable[[Call], None]) -> None:
        """Report each call of the network to a function, in the engine's thread."""
        self.engine.watch = observer

    def _check_replaces(self, model: Any) -> None:
        """Refuse a network that clients would have to know of."""
        ServedNetwork.of(require(model, "serve").eval()).check_replaces(self.network)

    def replace(self, model: Any) -> None:
        """Serve another network from the next request on; those that wait are answered by the old one.

        Raises:
            ValueError: if it takes other images, prepares them otherwise or has other classes, which clients rely on;
                or as for the first one.
        """
        self._check_replaces(model)
        deployment, prepare_engine = self._deployed(model)
        with self._replacing:
            if self._handover is not None:
                self._handover.close()
            self.engine.replace(deployment)
            prepare_engine()

    def close(self) -> None:
        """Answer waiting requests, for at most the latency target, and end."""
        if self._handover is not None:
            self._handover.close()
        self.engine.close(self.config.latency_ms / 1e3)
        if self._handover is not None:
            self._handover.thread.join(_COMPILER_SECONDS)
        self.parsers.shutdown(wait=False, cancel_futures=True)
        self._close_reader()

    def _close_reader(self) -> None:
        self.images.close()

    # ── requests ──────────────────────────────────────────────────────────────────────────────────

    def allowed_stitches(self, options: RequestOptions, deployment: Deployment | None = None) -> frozenset[int] | None:
        """Find the stitches of a network that may answer a request; None for all.

        Args:
            options: the options of the request.
            deployment: the network; default the one that serves now.

        Raises:
            ValueError: if no stitch meets the options.
        """
        deployment = deployment or self.engine.deployment
        stitches, table = served(deployment).stitches, deployment.table
        if options.latency_ms is not None and not 0 < options.latency_ms <= LONGEST_MS:
            raise ValueError(f"latency_ms must be above 0 and at most {LONGEST_MS:,}, got {options.latency_ms:g}.")
        if options.stitch_id is not None and options.macs is not None:
            raise ValueError("give stitch_id or macs, not both.")
        if options.stitch_id is not None:
            if options.stitch_id not in stitches:
                last = max(stitches)
                raise ValueError(f"there is no stitch {options.stitch_id}: expected an id of the plan, up to {last}.")
            return frozenset([options.stitch_id])
        if options.macs is None:
            return None
        allowed = frozenset(k for k in table.stitch_ids if stitches[k]["macs"] <= options.macs)
        if not allowed:
            least = min(stitches[k]["macs"] for k in table.stitch_ids)
            raise ValueError(f"macs must be at least {least:,}, the cost of the cheapest stitch, got {options.macs:g}.")
        return allowed

    def deadline(self, options: RequestOptions, arrived_at: float) -> float:
        """Compute when the answer to a request is due, by `time.monotonic`."""
        return arrived_at + (self.config.latency_ms if options.latency_ms is None else options.latency_ms) / 1e3

    def submit(
        self,
        images: Inputs,
        deadline: float,
        allowed: frozenset[int] | None,
        arrived_at: float,
        deployment: Deployment | None = None,
    ) -> Future[Answer]:
        """Queue what was prepared for a network, as `Engine.submit`; by default for the one that serves now."""
        weight = self._weight(images, deployment or self.engine.deployment)
        return self.engine.submit(Request(images, deadline, allowed, arrived_at, deployment, weight))

    def _weight(self, inputs: Inputs, deployment: Deployment) -> int:
        """Return the work of one of these inputs, as `Request.weight`."""
        return 1

    def read(self, data: bytes) -> Tensor:
        """Read an image file into the network's input, shape (1, C, H, W).

        Raises:
            ValueError: if it cannot be read, has an unsupported format, or is too much work.
        """
        return self.read_soon([data], time.monotonic() + 60).result()

    def read_soon(
        self,
        files: Sequence[bytes],
        deadline: float,
        deployment: Deployment | None = None,
        note_size: Callable[[tuple[int, int]], None] | None = None,
    ) -> Future[Tensor]:
        """Read image files for a network, as `ImageReader.read_soon`; by default the one that serves now.

        Args:
            files, deadline: the arguments of `ImageReader.read_soon`.
            deployment: the network.
            note_size: a function that is called with the (height, width) of each image, before the images are given.
        """
        network = described(deployment or self.engine.deployment)

        def transform(image: Image.Image) -> Tensor:
            if note_size is not None:
                note_size((image.height, image.width))
            return network.transform(image)

        resize = network.resize if note_size is None else None  # the process would hide the size
        return self.images.read_soon(files, network.mode, transform, deadline, resize)


@torch.no_grad()
def leave_the_file(model: torch.nn.Module) -> None:
    """Copy weights that may be mapped from the network's file, which another program may write while it is served."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


Service = InferenceService  # its former name
