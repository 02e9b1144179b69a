"""Stitches compiled by an engine, with torch for all others and for what the engine fails on."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ....choices import Precision
from ...formats.job import Location
from .conversions import ConversionError, conversion_folder, open_conversion
from .torch_backend import TorchBackend

_logger = logging.getLogger(__name__)

# The largest difference of a logit from float32, over the largest logit or 1: what a sound conversion stays below.
BOUNDS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.25}
_COMPARED = (1, 3)  # images of two calls


class Compiler(Protocol):
    """A module of this folder that compiles converted stitches for one engine.

    Attributes:
        FORMAT: the format of `export` that it compiles.
        PRECISIONS: the precisions that it computes in.
        SHARES_PARTS: whether it can compile parts that stitches share.
    """

    FORMAT: str
    PRECISIONS: tuple[Precision, ...]
    SHARES_PARTS: bool

    def check(self, precision: Precision) -> None:
        """Import what the engine needs, and refuse a precision that this machine lacks."""

    def version(self) -> str:
        """Return the engine and its version."""

    def compile_stitch(
        self, folder: Path, location: Location, precision: Precision, threads: int
    ) -> Callable[[Tensor], Tensor]:
        """Compile a converted file: a stitch, or a part of some."""


class CompiledBackend:
    """Runs the stitches that an engine has compiled, one call at a time, and all others in torch.

    Args:
        reference: the network in torch, which answers what is not compiled.
        compiler: the engine.
        engine: its name.
        threads: the number of its threads.
        machine: the name of the processor.
        layout: `"whole"` stitches or shared `"parts"`.
    """

    def __init__(
        self, reference: TorchBackend, compiler: Compiler, engine: str, threads: int, machine: str, layout: str
    ) -> None:
        self.reference, self.compiler, self.engine, self.threads = reference, compiler, engine, threads
        self.precision: Precision = reference.precision
        self.layout = layout
        self.name = f"{machine}, {threads} threads, {compiler.version()}, {self.precision}, {layout}"
        self.folder: Path | None = None
        model = reference.network
        self.shape = (model.in_chans, *model.image_size)
        self._compiled: dict[int, Callable[[Tensor], Tensor]] = {}
        self._files: dict[str, Callable[[Tensor], Tensor]] = {}  # what is compiled, by file
        self._one_call = threading.Lock()  # an engine's request that two threads use gives wrong logits silently
        self._converting: subprocess.Popen[str] | None = None
        self.closed = False

    @property
    def ready(self) -> Collection[int]:
        """The stitches that are compiled."""
        return self._compiled.keys()

    def prepare(self, stitch_ids: Sequence[int], batch_sizes: Sequence[int]) -> None:
        """Convert and compile stitches, compare them with torch, and call them with each batch size.

        Raises:
            ConversionError: if they cannot be converted, or the backend was closed.
            OSError: if the cache cannot be written.
        """
        model = self.reference.network
        self.folder = conversion_folder(model, stitch_ids, self.compiler.version(), self.compiler.FORMAT, self.layout)
        locations = open_conversion(model, stitch_ids, self.folder, self.compiler.FORMAT, self.layout, self._watch)
        compared = TorchBackend(model)
        for stitch_id in stitch_ids:
            if self.closed:
                raise ConversionError("the server no longer needs it.")
            run = self._compile(self.folder, locations[stitch_id])
            difference = _difference(run, compared, stitch_id, self.shape)
            if not difference <= BOUNDS[self.precision]:  # NaN neither
                _logger.warning(
                    "stitch %d runs in torch: in %s its logits differ from torch's by %.1e of the largest, above %g",
                    stitch_id, self.engine, difference, BOUNDS[self.precision],
                )  # fmt: skip
                continue
            self._compiled[stitch_id] = run
        self.warm(batch_sizes)

    def _compile(self, folder: Path, location: Location) -> Callable[[Tensor], Tensor]:
        """Compile a stitch: one file, or the chain of its parts, of which some may be compiled already."""
        chain = []
        for name in location.get("parts", location["file"]).split():
            if name not in self._files:
                self._files[name] = self.compiler.compile_stitch(folder, {"file": name}, self.precision, self.threads)
            chain.append(self._files[name])
        if len(chain) == 1:
            return chain[0]

        def run(images: Tensor) -> Tensor:
            for part in chain:
                images = part(images)
            return images

        return run

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Call each compiled stitch with each batch size: the first such call is many times slower."""
        for count in batch_sizes:
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
