"""What is exported, for all formats alike: stitches by themselves, and for how many images at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from tqdm.auto import tqdm

from ...families.timm_models.network import SNNet

_CALIBRATION = 64  # images
Run = Callable[[Tensor], Tensor]
Place = dict[str, str]


@dataclass(frozen=True)
class Batch:
    """How many images a call takes: from `smallest` to `largest`, which is None where there is no end."""

    smallest: int
    largest: int | None = None

    @property
    def kind(self) -> str:
        """`"any"`, `"number"` or `"range"`."""
        if self.smallest == self.largest:
            return "number"
        return "any" if (self.smallest, self.largest) == (1, None) else "range"

    @property
    def axis(self) -> int | str:
        """As a manifest's shapes have it: the number, or `"batch"`."""
        return self.smallest if self.kind == "number" else "batch"


@dataclass(frozen=True)
class Job:
    """What is exported, and as what.

    Args:
        whole: the network, a copy made for this, in float32 and evaluation mode on the CPU.
        alone: each stitch by itself, by its id; they share their tensors with `whole`.
        batch: how many images a call takes.
        quantize: as in `export`.
        images: as in `export`.
        progress: show a bar.
    """

    whole: SNNet
    alone: Mapping[int, SNNet]
    batch: Batch
    quantize: str | None = None
    images: Tensor | None = None
    progress: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return (self.whole.in_chans, *self.whole.image_size)

    def stitches(self, doing: str) -> Iterator[tuple[int, SNNet]]:
        """The stitches one by one, with a bar that says what is done to them."""
        yield from tqdm(self.alone.items(), desc=doing, unit="stitch", disable=not self.progress)

    def noise(self) -> list[Tensor]:
        """Images to compare outputs on, at the smallest number that a call takes and a larger one."""
        low, high = self.batch.smallest, self.batch.largest
        sizes = [low, max(low, 3) if high is None else high]
        generator = torch.Generator().manual_seed(0)
        return list(torch.split(torch.randn(sum(sizes), *self.shape, generator=generator), sizes))

    def calibration(self) -> list[Tensor]:
        """Some of the images, to see which ranges activations have."""
        return self.batches(torch.zeros(1, *self.shape) if self.images is None else self.images[:_CALIBRATION])

    def batches(self, images: Tensor) -> list[Tensor]:
        """Images as calls take them, 32 at a time where that is allowed; the first ones fill up a last batch."""
        low, high = self.batch.smallest, self.batch.largest
        size = max(low, min(high or 32, 32))
        left = len(images) % size
        if 0 < left < low:
            images = images[torch.arange(len(images) - left + low) % len(images)]
        return list(torch.split(images, size))

    def program(self, model: nn.Module) -> ExportedProgram:
        """A model as a program of `torch.export`."""
        low, high = self.batch.smallest, self.batch.largest
        if self.batch.kind == "number":
            example, axes = torch.zeros(low, *self.shape), None
        else:
            example = torch.zeros(max(low, 2), *self.shape)
            axes = ({0: torch.export.Dim("batch", min=low, max=high or 2**20)},)  # torch 2.6 wants a bound
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=axes, strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths on this machine
        return program


class Format(Protocol):
    """What a file of this folder has: a way to write stitches, and what runs them.

    Attributes:
        BATCHES: the kinds of batches that it takes, the one that it has by default first.
        QUANTIZE: what `quantize` may be.
        TO_SHARE: what to set where several stitches are open at once, so that their weights are in memory once.
    """

    BATCHES: tuple[str, ...]
    QUANTIZE: tuple[str, ...]
    TO_SHARE: dict[str, Any]

    def check_packages(self) -> None:
        """Import what it needs; an ImportError names all of it."""

    def write(self, job: Job, folder: Path) -> dict[int, Place]:
        """Write the files, and say where each stitch is: a file, and which part of it."""

    def load(self, folder: Path, place: Place) -> Run:
        """What runs a stitch on the CPU."""


def need(packages: tuple[str, ...], what: str, extra: str) -> None:
    """Import packages of an extra.

    Raises:
        ImportError: naming all of them.
    """
    try:
        for package in packages:
            import_module(package)
    except ImportError as error:
        raise ImportError(f"{what} needs {', '.join(packages)}: pip install 'timm_stitch[{extra}]'.") from error


def is_convolutional(model: nn.Module) -> bool:
    """Whether most of a model's weights are those of convolutions."""
    weights = {
        kind: sum(m.weight.numel() for m in model.modules() if isinstance(m, kind)) for kind in (nn.Conv2d, nn.Linear)
    }
    return weights[nn.Conv2d] > weights[nn.Linear]


def with_plain_attention(model: nn.Module) -> None:
    """Have a model's attention written out, as compilers for devices find its parts then and fuse them themselves."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 not every module is known to have it
