"""Inference within a latency target: a network, the images and options it accepts, and the engine that answers.

It knows no protocol. The web application and the Ray deployment turn their requests into images and `RequestOptions`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ...data.dataset import image_config
from ...data.images import open_image
from ...families.registry import require
from ...families.timm_models.network import SNNet
from ..class_names import class_names, pillow_mode
from ..policies import DrainPolicy, FixedPolicy, LatencyTable, Policy
from .config import RequestOptions, ServingConfig
from .engine import Answer, Call, Deployment, Engine, OverloadError, Request
from .latencies import latency_rows

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO")  # Pillow's names of the common ones


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

    def __init__(self, model: SNNet, config: ServingConfig, name: str = "network") -> None:
        self.config, self.name = config, name
        workers = max(1, min(4, (os.cpu_count() or 2) // 2))
        self.readers = ThreadPoolExecutor(workers, thread_name_prefix="images")
        self._unread = threading.BoundedSemaphore(config.most_waiting)  # images that may wait to be read
        self.engine = Engine(self._deploy(model), config.most_waiting)

    def _deploy(self, model: SNNet) -> Deployment:
        """Prepare a network to run; if that fails, the service is unchanged."""
        require(model, "serve")
        mode, labels = pillow_mode(model, "the server takes"), class_names(model)
        table, run = LatencyTable(latency_rows(model.eval(), self.config)), _runner(model)
        policy: Policy = DrainPolicy(table, self.config.overhead_ms)
        if self.config.policy == "fixed":
            index = table.slowest_within(self.config.network_seconds)
            policy = FixedPolicy(table, index, self.config.overhead_ms)
        shape = (model.in_chans, *model.image_size)
        for stitch_id in table.stitch_ids:  # the first call of each is slow
            run(torch.zeros(1, *shape), stitch_id)
        self.model, self.shape, self.labels, self.mode = model, shape, labels, mode
        self.transform = create_transform(**image_config(model))
        self.stitches = {row["stitch_id"]: row for row in model.stitch_table()}
        self.accuracy = {k: row.get("top1", row.get("published_top1")) for k, row in self.stitches.items()}
        return Deployment(run, policy, table)

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
        """The number of images that wait."""
        return self.engine.waiting

    def watch(self, observer: Callable[[Call], None]) -> None:
        """Report each call of the network to a function, in the engine's thread."""
        self.engine.watch = observer

    def replace(self, model: SNNet) -> None:
        """Serve another network from the next call on.

        Raises:
            ValueError: if it takes other images or has other classes, which clients rely on; or as for the first one.
        """
        shape = (model.in_chans, *model.image_size)
        if shape != self.shape or model.num_classes != self.model.num_classes:
            raise ValueError(
                f"the new network takes images of {shape} and has {model.num_classes} classes, the old one "
                f"{self.shape} and {self.model.num_classes}: start another server for it."
            )
        self.engine.replace(self._deploy(model))

    def close(self) -> None:
        """Answer waiting requests, for at most the latency target, and end."""
        self.engine.close(self.config.latency_ms / 1e3)
        self.readers.shutdown(wait=False, cancel_futures=True)

    # ── requests ──────────────────────────────────────────────────────────────────────────────────

    def allowed_stitches(self, options: RequestOptions) -> frozenset[int] | None:
        """Find the stitches that may answer a request; None for all.

        Raises:
            ValueError: if no stitch meets the options.
        """
        if options.latency_ms is not None and not 0 < options.latency_ms <= 600_000:
            raise ValueError(f"latency_ms must be above 0 and at most 600,000, got {options.latency_ms:g}.")
        if options.stitch_id is not None and options.macs is not None:
            raise ValueError("give stitch_id or macs, not both.")
        if options.stitch_id is not None:
            if options.stitch_id not in self.stitches:
                last = max(self.stitches)
                raise ValueError(f"there is no stitch {options.stitch_id}: expected an id of the plan, up to {last}.")
            return frozenset([options.stitch_id])
        if options.macs is None:
            return None
        allowed = frozenset(k for k in self.table.stitch_ids if self.stitches[k]["macs"] <= options.macs)
        if not allowed:
            least = min(self.stitches[k]["macs"] for k in self.table.stitch_ids)
            raise ValueError(f"macs must be at least {least:,}, the cost of the cheapest stitch, got {options.macs:g}.")
        return allowed

    def deadline(self, options: RequestOptions, arrived_at: float) -> float:
        """Compute when the answer to a request is due, by `time.monotonic`."""
        return arrived_at + (self.config.latency_ms if options.latency_ms is None else options.latency_ms) / 1e3

    def submit(
        self, images: Tensor, deadline: float, allowed: frozenset[int] | None, arrived_at: float
    ) -> Future[Answer]:
        """Queue prepared images, as `Engine.submit`."""
        return self.engine.submit(Request(images, deadline, allowed, arrived_at))

    def read(self, data: bytes) -> Tensor:
        """Read an image file into the network's input, shape (1, C, H, W).

        Raises:
            ValueError: if it cannot be read, has an unsupported format, or too many pixels.
        """
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as image:  # its header alone
                pixels = image.width * image.height
        except Exception:  # Pillow raises many types for damaged files
            raise ValueError(f"this is no readable image: expected one of {', '.join(FORMATS)}.") from None
        if pixels > self.config.most_pixels:
            raise ValueError(f"the image has {pixels:,} pixels: at most {self.config.most_pixels:,} are accepted.")
        x: Tensor = self.transform(open_image(BytesIO(data), self.mode, "sent", FORMATS))
        return x[None]

    def read_soon(self, files: Sequence[bytes], deadline: float) -> Future[Tensor]:
        """Read image files on another thread.

        Returns:
            A future of the network's input, shape (N, C, H, W). It raises `OverloadError` if the deadline, by
            `time.monotonic`, has passed before they are read.

        Raises:
            OverloadError: if too many images wait to be read.
        """
        acquired = [self._unread.acquire(blocking=False) for _ in files].count(True)
        if acquired < len(files):
            self._release(acquired)
            raise OverloadError(f"{self.config.most_waiting} images wait to be read: try again later.")

        def read() -> Tensor:
            if time.monotonic() > deadline:
                raise OverloadError("it could not be read in time: try again later, or allow more time.")
            return torch.cat([self.read(data) for data in files])

        images = self.readers.submit(read)
        images.add_done_callback(lambda _: self._release(acquired))
        return images

    def _release(self, count: int) -> None:
        for _ in range(count):
            self._unread.release()


def _runner(model: SNNet) -> Callable[[Tensor, int], Tensor]:
    reference = next(model.parameters())

    @torch.inference_mode()
    def run(images: Tensor, stitch_id: int) -> Tensor:
        logits: Tensor = model(images.to(reference.device, reference.dtype), stitch_id=stitch_id)
        return logits.float().cpu()

    return run


Service = InferenceService  # the earlier name
