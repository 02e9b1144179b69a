"""A network behind a promise: what it takes, what it may answer with, and an engine that answers.

It knows no protocol. The web application and the Ray deployment turn their requests into `Wishes` and images.
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
from ...families.timm_models.network import SNNet
from ..class_names import class_names, pillow_mode
from ..policies import DrainPolicy, FixedPolicy, LatencyTable, Policy
from .engine import Engine, OverloadError, Served
from .latencies import fixed_level, latency_rows
from .promise import Promise, Wishes

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO")  # of Pillow's, those that people send


class Service:
    """A network that answers requests within a promise.

    Args:
        model: on the device where it is to run; put in eval mode. Its accuracies must be known (evaluated, or
            published); latencies of this machine are measured where it has none.
        promise: what is promised.
        name: of the network, for clients.

    Raises:
        ValueError: if the network does not classify or no accuracy is known.
    """

    def __init__(self, model: SNNet, promise: Promise, name: str = "network") -> None:
        self.promise, self.name = promise, name
        workers = max(1, min(4, (os.cpu_count() or 2) // 2))
        self.readers = ThreadPoolExecutor(workers, thread_name_prefix="images")
        self._unread = threading.BoundedSemaphore(promise.most_waiting)  # images that may wait to be read
        self.engine = Engine(self._take(model), promise.most_waiting)

    def _take(self, model: SNNet) -> Served:
        """Make ready what is asked of a network; where that fails, all is as before."""
        mode, labels = pillow_mode(model, "what is served are"), class_names(model)
        table, run = LatencyTable(latency_rows(model.eval(), self.promise)), _runner(model)
        policy: Policy = DrainPolicy(table, self.promise.reserve)
        if self.promise.policy == "fixed":
            policy = FixedPolicy(table, fixed_level(table, self.promise), self.promise.reserve)
        shape = (model.in_chans, *model.image_size)
        for stitch_id in table.stitch_ids:  # the first call of each is slow
            run(torch.zeros(1, *shape), stitch_id)
        self.model, self.shape, self.labels, self.mode = model, shape, labels, mode
        self.transform = create_transform(**image_config(model))
        self.stitches = {row["stitch_id"]: row for row in model.stitch_table()}
        self.accuracy = {k: row.get("top1", row.get("published_top1")) for k, row in self.stitches.items()}
        return Served(run, policy, table)

    @property
    def table(self) -> LatencyTable:
        """Of the stitches that are chosen among."""
        return self.engine.served.table

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
        self.engine.replace(self._take(model))

    def close(self) -> None:
        """Answer what waits, for at most one promise, and end."""
        self.engine.close(self.promise.latency_ms / 1e3)
        self.readers.shutdown(wait=False, cancel_futures=True)

    # ── requests ──────────────────────────────────────────────────────────────────────────────────

    def admit(self, wishes: Wishes) -> frozenset[int] | None:
        """The stitches that may answer; None for all.

        Raises:
            ValueError: if a wish cannot be met by any.
        """
        if wishes.latency_ms is not None and not 0 < wishes.latency_ms <= 600_000:
            raise ValueError(f"latency_ms={wishes.latency_ms:g} is no promise: expected above 0, at most 600,000.")
        if wishes.stitch_id is not None and wishes.macs is not None:
            raise ValueError("give stitch_id or macs, not both.")
        if wishes.stitch_id is not None:
            if wishes.stitch_id not in self.stitches:
                last = max(self.stitches)
                raise ValueError(f"there is no stitch {wishes.stitch_id}: expected one of the plan's, up to {last}.")
            return frozenset([wishes.stitch_id])
        if wishes.macs is None:
            return None
        allowed = frozenset(k for k in self.table.stitch_ids if self.stitches[k]["macs"] <= wishes.macs)
        if not allowed:
            least = min(self.stitches[k]["macs"] for k in self.table.stitch_ids)
            raise ValueError(f"macs={wishes.macs:g} is too little: the cheapest stitch takes {least:,}.")
        return allowed

    def read(self, data: bytes) -> Tensor:
        """An image in a file as the network takes it, shape (1, C, H, W).

        Raises:
            ValueError: if it cannot be read, is of a format that is not taken, or has too many pixels.
        """
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as image:  # its header alone
                pixels = image.width * image.height
        except Exception:  # Pillow's formats raise whatever damaged files lead them to
            raise ValueError(f"this is no image that is taken: expected one of {', '.join(FORMATS)}.") from None
        if pixels > self.promise.most_pixels:
            raise ValueError(f"the image has {pixels:,} pixels: at most {self.promise.most_pixels:,} are taken.")
        x: Tensor = self.transform(open_image(BytesIO(data), self.mode, "sent", FORMATS))
        return x[None]

    def read_soon(self, files: Sequence[bytes], deadline: float) -> Future[Tensor]:
        """What will hold images in files as the network takes them, shape (N, C, H, W), read beside.

        It raises `OverloadError` if their deadline, by `time.monotonic`, has passed when their turn comes.

        Raises:
            OverloadError: if too many wait to be read.
        """
        taken = [self._unread.acquire(blocking=False) for _ in files].count(True)
        if taken < len(files):
            self._read(taken)
            raise OverloadError(f"{self.promise.most_waiting} images wait to be read: try again later.")

        def read() -> Tensor:
            if time.monotonic() > deadline:
                raise OverloadError("it could not be read in time: try again later, or allow more time.")
            return torch.cat([self.read(data) for data in files])

        images = self.readers.submit(read)
        images.add_done_callback(lambda _: self._read(taken))
        return images

    def _read(self, count: int) -> None:
        for _ in range(count):
            self._unread.release()

    def deadline(self, wishes: Wishes, came: float) -> float:
        """When the answer to a request is due that came at a time, by `time.monotonic`."""
        return came + (self.promise.latency_ms if wishes.latency_ms is None else wishes.latency_ms) / 1e3


def _runner(model: SNNet) -> Callable[[Tensor, int], Tensor]:
    like = next(model.parameters())

    @torch.inference_mode()
    def run(images: Tensor, stitch_id: int) -> Tensor:
        logits: Tensor = model(images.to(like.device, like.dtype), stitch_id=stitch_id)
        return logits.float().cpu()

    return run
