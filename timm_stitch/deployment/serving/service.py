"""A network behind a promise: what it takes, what it may answer with, and an engine that answers.

It knows no protocol. The web application and the Ray deployment turn their requests into `Wishes` and images.

Imports timm, torch and the layers below.
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
from ...network.network import SNNet
from ..class_names import class_names
from ..policies import DrainPolicy, FixedPolicy, LatencyTable
from .engine import Answer, Call, Engine, OverloadError, Request, Served
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
        watch: is told of each call, see `Engine`.

    Raises:
        ValueError: if the network does not classify or no accuracy is known.
    """

    def __init__(
        self, model: SNNet, promise: Promise, name: str = "network", watch: Callable[[Call], None] = lambda call: None
    ) -> None:
        self.promise, self.name = promise, name
        self._take(model)
        workers = max(1, min(4, (os.cpu_count() or 2) // 2))
        self.readers = ThreadPoolExecutor(workers, thread_name_prefix="images")
        self._unread = threading.BoundedSemaphore(promise.most_waiting)  # images that may wait to be read
        self.engine = Engine(self._served, promise.most_waiting, watch)

    def _take(self, model: SNNet) -> None:
        """Make ready what is asked of a network."""
        if model.num_classes < 1 or model.in_chans not in (1, 3):
            raise ValueError(
                f"what is served are classifiers of grey or colour images; this network has {model.num_classes} "
                f"classes and takes {model.in_chans} channels."
            )
        self.model = model.eval()
        self.labels = class_names(model)
        self.shape = (model.in_chans, *model.image_size)
        self.transform = create_transform(**image_config(model))
        self.mode = "L" if model.in_chans == 1 else "RGB"
        rows = latency_rows(model, self.promise)
        table = LatencyTable(rows)
        reserve = self.promise.reserve
        if self.promise.policy == "fixed":
            self._served = Served(_runner(model), FixedPolicy(table, fixed_level(table, self.promise), reserve), table)
        else:
            self._served = Served(_runner(model), DrainPolicy(table, reserve), table)
        self.stitches = {row["stitch_id"]: row for row in model.stitch_table()}
        self.accuracy = {k: row.get("top1", row.get("published_top1")) for k, row in self.stitches.items()}
        for stitch_id in table.stitch_ids:  # the first call of each is slow
            self._served.run(torch.zeros(1, *self.shape), stitch_id)

    @property
    def table(self) -> LatencyTable:
        """Of the stitches that are chosen among."""
        return self._served.table

    def replace(self, model: SNNet) -> None:
        """Serve another network from the next call on.

        Raises:
            ValueError: if it takes other images or has other classes, which clients rely on.
        """
        if (model.in_chans, *model.image_size) != self.shape or model.num_classes != self.model.num_classes:
            raise ValueError(
                f"the new network takes images of {(model.in_chans, *model.image_size)} and has {model.num_classes} "
                f"classes, the old one {self.shape} and {self.model.num_classes}: start another server for it."
            )
        self._take(model)
        self.engine.replace(self._served)

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
        x: Tensor = self.transform(open_image(BytesIO(data), self.mode, "sent"))
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

    def submit(self, images: Tensor, wishes: Wishes, came: float) -> Future[Answer]:
        """Let prepared images wait for their turn; see `Engine.submit`.

        Args:
            images: shape (N, C, H, W).
            wishes: of the request.
            came: when it came, by `time.monotonic`.
        """
        return self.engine.submit(Request(images, self.deadline(wishes, came), self.admit(wishes), came))


def _runner(model: SNNet) -> Callable[[Tensor, int], Tensor]:
    like = next(model.parameters())

    @torch.inference_mode()
    def run(images: Tensor, stitch_id: int) -> Tensor:
        logits: Tensor = model(images.to(like.device, like.dtype), stitch_id=stitch_id)
        return logits.float().cpu()

    return run
