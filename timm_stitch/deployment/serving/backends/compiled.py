"""Stitches compiled by an engine, with torch for all others and for what the engine fails on."""

from __future__ import annotations

import ctypes
import logging
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ....choices import ServedPrecision
from ...formats.job import Location
from .conversions import ConversionError, conversion_folder, open_conversion
from .torch_backend import TorchBackend

_logger = logging.getLogger(__name__)

# What a sound conversion stays below. In fp32 and bf16: the largest difference of a logit from float32 on noise, over
# the largest logit or 1. In int8, on images that calibrated: the mean difference over the spread of the logits.
BOUNDS: dict[ServedPrecision, float] = {"fp32": 1e-4, "bf16": 0.25, "int8": 0.3}
_COMPARED = (1, 3)  # images of two calls
_BATCH = 8  # images of the call by which it is seen whether batches pay
_PAYS = 0.9  # the share of the time of single images below which they do
_COMPARED_IN_INT8 = 32


class Compiler(Protocol):
    """A module of this folder that compiles converted stitches for one engine.

    Attributes:
        FORMATS: the precisions that it computes in, each with the format of `export` that it compiles then.
        SHARES_PARTS: whether it can compile parts that stitches share.
    """

    FORMATS: dict[ServedPrecision, str]
    SHARES_PARTS: bool

    def check(self, precision: ServedPrecision) -> None:
        """Import what the engine needs, and refuse a precision that this machine lacks."""

    def version(self) -> str:
        """Return the engine and its version."""

    def compile_stitch(
        self, folder: Path, location: Location, precision: ServedPrecision, threads: int, batch: int | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Compile a converted file: a stitch, or a part of some.

        Its calls have `batch` images each, or any number, and their output is valid until the next call.
        """


class CompiledBackend:
    """Runs the stitches that an engine has compiled, one call at a time, and all others in torch.

    An engine keeps the memory of its largest call, for each stitch or part. So where a batch takes as long as its
    images one by one, they run one by one; and no call of the engine has more images than it was warmed for.

    Args:
        reference: the network in torch, which answers what is not compiled.
        compiler: the engine.
        engine: its name.
        threads: the number of its threads.
        machine: the name of the processor.
        layout: `"whole"` stitches or shared `"parts"`.
        calibration: a function that reads the images that calibrate int8; by default the precision is the reference's.
    """

    def __init__(
        self, reference: TorchBackend, compiler: Compiler, engine: str, threads: int, machine: str, layout: str,
        calibration: Callable[[], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.reference, self.compiler, self.engine, self.threads = reference, compiler, engine, threads
        self.precision: ServedPrecision = "int8" if calibration else reference.precision
        self.layout, self.calibration = layout, calibration
        self.name = f"{machine}, {threads} threads, {compiler.version()}, {self.precision}, {layout}"
        self.folder: Path | None = None
        model = reference.network
        self.shape = (model.in_chans, *model.image_size)
        self._compiled: dict[int, Callable[[Tensor], Tensor]] = {}
        self._files: dict[str, Callable[[Tensor], Tensor]] = {}  # what is compiled, by file
        self._one_call = threading.Lock()  # an engine's request that two threads use gives wrong logits silently
        self._converting: subprocess.Popen[str] | None = None
        self._most: int | None = None  # images in a call of the engine; any until it is warm
        self._static: int | None = None  # images for which it compiles
        self.closed = False

    @property
    def most_images(self) -> int | None:
        """The largest batch that is worth a call; None for any."""
        return self._static

    @property
    def ready(self) -> Collection[int]:
        """The stitches that are compiled."""
        return self._compiled.keys()

    def precision_of(self, stitch_id: int) -> ServedPrecision:
        """Return the precision in which a stitch runs here, or in torch."""
        return self.precision if stitch_id in self._compiled else self.reference.precision

    def prepare(self, stitch_ids: Sequence[int], batch_sizes: Sequence[int]) -> None:
        """Convert and compile stitches, compare them with torch, and call them with each batch size.

        Raises:
            ValueError: if an image that calibrates cannot be read.
            ConversionError: if they cannot be converted, or the backend was closed.
            OSError: if the cache cannot be written.
        """
        model = self.reference.network
        images, format = self.calibration and self.calibration(), self.compiler.FORMATS[self.precision]
        self.folder = conversion_folder(model, stitch_ids, format, self.layout, images)
        locations = open_conversion(model, stitch_ids, self.folder, format, self.layout, images, self._watch)
        compared, costs = TorchBackend(model), model.costs()
        cheapest = min(stitch_ids, key=lambda k: costs.cost(model.plan[k]).macs)
        if not self._do_batches_pay(locations[cheapest]):
            self._static = self._most = 1
            self.name += ", single images"  # whose latencies are others
        for stitch_id in stitch_ids:
            if self.closed:
                raise ConversionError("the server no longer needs it.")
            run = self._compile(locations[stitch_id])
            if images is None:
                difference = _difference(run, compared, stitch_id, self.shape)
            else:
                difference = _mean_difference(run, compared, stitch_id, images[:_COMPARED_IN_INT8])
            if not difference <= BOUNDS[self.precision]:  # NaN neither
                _logger.warning(
                    "stitch %d runs in torch: in %s its logits differ from torch's by %.1e of %s, above %g",
                    stitch_id, self.engine, difference, "the largest" if images is None else "their spread",
                    BOUNDS[self.precision],
                )  # fmt: skip
                continue
            self._compiled[stitch_id] = run
        self.warm(batch_sizes)
        give_memory_back()

    def _do_batches_pay(self, location: Location) -> bool:
        """Measure whether a batch of the cheapest stitch is faster than its images one by one."""
        files, self._files = self._files, {}  # compiled for this alone
        run = self._compile(location)
        self._files = files
        images = torch.zeros(_BATCH, *self.shape)
        ratios = [_seconds(run, [images]) / _seconds(run, images.split(1)) for _ in range(4)]
        return statistics.median(ratios[1:]) < _PAYS  # the first calls are slower

    def _compile(self, location: Location) -> Callable[[Tensor], Tensor]:
        """Compile a stitch: one file, or the chain of its parts, of which some may be compiled already."""
        assert self.folder is not None  # `prepare` has named it
        chain = []
        for name in location.get("parts", location["file"]).split():
            if name not in self._files:
                self._files[name] = self.compiler.compile_stitch(
                    self.folder, {"file": name}, self.precision, self.threads, self._static
                )
            chain.append(self._files[name])

        def run_some(images: Tensor) -> Tensor:
            for part in chain:
                images = part(images)
            return images.clone()  # the next call writes to the same memory

        def run(images: Tensor) -> Tensor:
            if self._most is None or len(images) <= self._most:
                return run_some(images)
            return torch.cat([run_some(some) for some in images.split(self._most)])

        return run

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Call each compiled stitch with each batch size: the first such call is many times slower."""
        if self._static is None:
            self._most = max([*batch_sizes, self._most or 1])
        for count in batch_sizes if self._static is None else [self._static]:
            images = torch.zeros(count, *self.shape)
            for stitch_id in list(self._compiled):
                self.run(images, stitch_id)

    def run(self, images: Tensor, stitch_id: int) -> Tensor:
        """Compute the logits of images, shape (B, C, H, W); in torch if the engine cannot."""
        run = self._compiled.get(stitch_id)
        # Engines convert other dtypes silently, and know no error of ours for other shapes.
        if run is None or images.dtype != torch.float32 or images.shape[1:] != self.shape or not len(images):
            return self.reference.run(images, stitch_id)
        try:
            with self._one_call:
                return run(images)
        except Exception as error:
            if self._compiled.pop(stitch_id, None):
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                _logger.warning("stitch %d runs in torch from now on: %s failed (%s)", stitch_id, self.engine, reason)
            return self.reference.run(images, stitch_id)

    def close(self) -> None:
        """End a conversion that is under way."""
        self.closed = True
        if self._converting is not None:
            self._converting.kill()

    def _watch(self, process: subprocess.Popen[str]) -> None:
        self._converting = process
        if self.closed:
            process.kill()


def give_memory_back() -> None:
    """Have glibc return what was freed to the system: comparisons and trials took more than serving does."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _seconds(run: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> float:
    began = time.perf_counter()
    for images in batches:
        run(images)
    return time.perf_counter() - began


def _difference(
    run: Callable[[Tensor], Tensor], reference: TorchBackend, stitch_id: int, shape: tuple[int, ...]
) -> float:
    """Compute the largest difference of a logit from torch's on noise, over the largest logit or 1."""
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for count in _COMPARED:
        images = torch.randn(count, *shape, generator=generator)
        expected = reference.run(images, stitch_id)
        scale = max(1.0, float(expected.abs().max()))
        difference = float((run(images) - expected).abs().max()) / scale
        if not difference <= largest:  # NaN stays
            largest = difference
    return largest


def _mean_difference(run: Callable[[Tensor], Tensor], reference: TorchBackend, stitch_id: int, images: Tensor) -> float:
    """Compute the root mean square of the difference from torch's logits, over that of the logits of each image."""
    logits, expected = (
        torch.cat([call(batch) for batch in images.split(8)]) for call in (run, lambda x: reference.run(x, stitch_id))
    )
    spread = expected - expected.mean(-1, keepdim=True)
    return float((logits - expected).square().mean().sqrt() / spread.square().mean().sqrt())
