"""The stitches to export and their batch sizes, as every format takes them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ...data.dataset import image_config
from ...errors import missing_extra
from ...families.saved_files import check_inside
from ...families.timm_models.network import SNNet
from ...progress import progress_bar
from ..class_names import task_of

_CALIBRATION = 64  # images
_MOST_BYTES = 1 << 29  # of the outputs of a call
Run = Callable[[Tensor], Tensor]
Location = dict[str, str]


def locate(folder: Path, location: Mapping[str, str]) -> Path:
    """Find the file of a stitch in an exported folder.

    Args:
        folder: the folder.
        location: the stitch's row in the folder's manifest, which may be a stranger's.

    Raises:
        ValueError: if the row names no file of the folder.
        OSError: if the file is missing, or a link out of the folder.
    """
    name = location.get("file") if isinstance(location, Mapping) else None
    if not isinstance(name, str) or not re.fullmatch(r"[\w\-][\w.\-]*", name):
        raise ValueError(f"the manifest names the file {name!r:.80}: expected one of its own folder.")
    return check_inside(folder / name)


@dataclass(frozen=True)
class Batch:
    """The batch sizes of a call: from `smallest` to `largest`, or to any size if that is None."""

    smallest: int
    largest: int | None = None

    @property
    def kind(self) -> str:
        """The kind of batch: `"any"`, `"number"` or `"range"`."""
        if self.smallest == self.largest:
            return "number"
        return "any" if (self.smallest, self.largest) == (1, None) else "range"

    @property
    def axis(self) -> int | str:
        """The batch in the shapes of a manifest: the number, or `"batch"`."""
        return self.smallest if self.kind == "number" else "batch"


@dataclass(frozen=True)
class Job:
    """The stitches to export, and how.

    Args:
        whole: a copy of the network, in float32 and evaluation mode on the CPU.
        extracted: each stitch as a network of its own, by its id; they share their tensors with `whole`.
        batch: the batch sizes of a call.
        quantize: the precision, as in `export`.
        images: the images to compare on, as in `export`.
        progress: whether to show a bar.
    """

    whole: SNNet
    extracted: Mapping[int, SNNet]
    batch: Batch
    quantize: str | None = None
    images: Tensor | None = None
    progress: bool = False

    @property
    def task(self) -> str:
        """The task of the network, as `class_names.task_of`."""
        return task_of(self.whole)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The preparation of images; those of dense networks are resized to the size of the files, not cropped."""
        config = {key: value for key, value in image_config(self.whole).items() if key != "input_size"}
        if self.task != "classification":
            config |= {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
        return config

    @property
    def output(self) -> str:
        """The name of the output."""
        return "depth" if self.task == "depth" else "logits"

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of an image's output: (classes,), or (classes, H, W) at the images' size."""
        return (self.whole.num_classes, *(() if self.task == "classification" else self.shape[1:]))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of the images."""
        return (self.whole.in_chans, *self.whole.image_size)

    def stitches(self, doing: str) -> Iterator[tuple[int, SNNet]]:
        """Iterate over the stitches, with a bar that names the work."""
        yield from progress_bar(self.extracted.items(), desc=doing, unit="stitch", progress=self.progress)

    def noise(self) -> list[Tensor]:
        """Draw images to compare outputs on, in the smallest batch and a larger one."""
        low, high = self.batch.smallest, self.batch.largest
        sizes = [low, max(low, 3) if high is None else high]
        generator = torch.Generator().manual_seed(0)
        return list(torch.split(torch.randn(sum(sizes), *self.shape, generator=generator), sizes))

    def calibration(self) -> list[Tensor]:
        """Batch some of the images, to measure the ranges of activations."""
        return self.batches(torch.zeros(1, *self.shape) if self.images is None else self.images[:_CALIBRATION])

    def batches(self, images: Tensor) -> list[Tensor]:
        """Batch images for calls, 32 or as many masks as fit into memory; the first ones fill up the last batch."""
        low, high = self.batch.smallest, self.batch.largest
        most = max(1, min(32, _MOST_BYTES // (4 * math.prod(self.output_shape))))
        size = max(low, min(high or most, most))
        left = len(images) % size
        if 0 < left < low:
            images = images[torch.arange(len(images) - left + low) % len(images)]
        return list(torch.split(images, size))

    def program(self, model: nn.Module, shape: Sequence[int] | None = None) -> ExportedProgram:
        """Export a model as a program of `torch.export`.

        Args:
            model: the model.
            shape: the shape of its input, without the batch; default that of the images.
        """
        shape = self.shape if shape is None else shape
        low, high = self.batch.smallest, self.batch.largest
        if self.batch.kind == "number":
            example, axes = torch.zeros(low, *shape), None
        else:
            example = torch.zeros(max(low, 2), *shape)
            axes = ({0: torch.export.Dim("batch", min=low, max=high or 2**20)},)  # torch 2.6 needs a bound
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=axes, strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths on this machine
        return program


class Format(Protocol):
    """A module of this folder: it writes stitches and runs them.

    Attributes:
        BATCHES: the kinds of batches that the format takes, the default first.
        QUANTIZE: the precisions that `quantize` may name.
        RUNTIME_OPTIONS: the options with which several open stitches share their weights in memory.
    """

    BATCHES: tuple[str, ...]
    QUANTIZE: tuple[str, ...]
    RUNTIME_OPTIONS: Mapping[str, object]

    def check_packages(self) -> None:
        """Import the packages that the format needs; an ImportError names all of them."""

    def write(self, job: Job, folder: Path) -> dict[int, Location]:
        """Write the files; returns where each stitch is: a file, and the part of it."""

    def load(self, folder: Path, location: Location) -> Run:
        """Load a stitch to run on the CPU."""


def require_packages(packages: tuple[str, ...], what: str, extra: str) -> None:
    """Import packages of an extra.

    Raises:
        ImportError: naming all of them.
    """
    try:
        for package in packages:
            import_module(package)
    except ImportError as error:
        raise missing_extra(f"{what} needs {', '.join(packages)}", extra) from error


def is_convolutional(model: nn.Module) -> bool:
    """Whether most of a model's weights are those of convolutions."""
    weights = {
        kind: sum(m.weight.numel() for m in model.modules() if isinstance(m, kind)) for kind in (nn.Conv2d, nn.Linear)
    }
    return weights[nn.Conv2d] > weights[nn.Linear]


def disable_fused_attention(model: nn.Module) -> None:
    """Disable fused attention in a model: device compilers find its parts and fuse them themselves."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 not every module is known to have it
