"""A recorded forward pass with its boundaries, and where side inputs come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .recording import DEVICE, Program, Step


@dataclass(frozen=True)
class Boundary:
    """One place where a forward pass can be cut, and the value that crosses there.

    Args:
        position: the step after which it lies.
        value: the number of the value that crosses.
        layout, width, reduction, prefix, tokens: what its shape says, as `layouts.describe` has it.
        fraction: the share of all multiply-adds before it.
    """

    position: int
    value: int
    layout: str
    width: int
    reduction: int
    prefix: int
    tokens: int
    fraction: float

    @property
    def form(self) -> tuple[str, int, int, int]:
        """What does not depend on the image's size: layout, width, reduction, prefix."""
        return self.layout, self.width, self.reduction, self.prefix


@dataclass(frozen=True)
class Span:
    """Consecutive steps, and what enters and leaves them.

    Args:
        steps: (number, step), ascending.
        entry, exit: the numbers of the values that enter and leave.
        sides: the numbers of further values that enter.
        batches: numbers of values that are the batch size.
    """

    steps: tuple[tuple[int, Step], ...]
    entry: int
    exit: int
    sides: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()


@dataclass(frozen=True)
class Partition:
    """A recorded forward pass with its boundaries.

    Args:
        program: what was recorded.
        kinds: of each value, whether it depends on the image's content, on its size, or on neither.
        boundaries: ascending.
        stem, blocks, norm, head: what lies between them; None for a norm that is not there, and for a head that
            is the model's own `forward_head`.
        head_targets: the names of what the head uses.
        image_size: the only size that the recording serves, or None.
    """

    program: Program
    kinds: tuple[str, ...]
    boundaries: tuple[Boundary, ...]
    stem: Span
    blocks: tuple[Span, ...]
    norm: Span | None
    head: Span | None
    head_targets: frozenset[str]
    image_size: tuple[int, int] | None
    _sources: dict[tuple[int, ...], tuple[tuple[int, Step | None], ...]] = field(default_factory=dict, compare=False)

    @property
    def varies(self) -> bool:
        """Whether the model takes other sizes of images, but by ways that this recording does not have."""
        return self.program.forced and self.image_size is None

    @property
    def middle(self) -> int:
        """How many boundaries have between a tenth and nine tenths of the work before them."""
        return sum(0.1 <= boundary.fraction <= 0.9 for boundary in self.boundaries)

    def sources(self, sides: tuple[int, ...]) -> tuple[tuple[int, Step | None], ...]:
        """The steps that give side inputs, ascending; None for a size that arises inside the model."""
        if sides not in self._sources:
            found: dict[int, Step | None] = {}
            todo = list(sides)
            while todo:
                number = todo.pop()
                if number in found or number == 0:
                    continue
                step = self.program.step(number)
                inside = any(self.kinds[i] == "data" and i != 0 for i in step.inputs)
                found[number] = None if inside else step
                todo += [] if inside else step.inputs
            self._sources[sides] = tuple(sorted(found.items()))
        return self._sources[sides]

    @property
    def _all_sizes(self) -> list[int]:
        spans = (self.stem, *self.blocks)
        return sorted({number for span in spans for number, step in self.sources(span.sides) if step is None})

    @property
    def needs_sizes(self) -> bool:
        """Whether there are side inputs that depend on sizes that arise inside the model."""
        return (bool(self._all_sizes) and self.image_size is None) or self._sized_by_batch

    @property
    def _sized_by_batch(self) -> bool:
        return any(not isinstance(self.program.examples[n], (int, torch.dtype, torch.device)) for n in self._all_sizes)

    @property
    def example_sizes(self) -> dict[int, Any]:
        """Those sizes for images of the recorded size."""
        return {n: _portable(self.program.examples[n]) for n in self._all_sizes}

    def sizes(self, meta: nn.Module, shape: Sequence[int]) -> dict[int, Any]:
        """Those sizes for images of some shape, with the help of the model without storage."""
        wanted = self._all_sizes
        example = self.program.examples[0]
        values: dict[int, Any] = {0: torch.empty(*shape, device="meta", dtype=example.dtype)}
        with torch.no_grad():
            for number, step in enumerate(self.program.steps[: max(wanted) + 1]):
                if step is not None:
                    values[number] = step.run(meta, values, torch.device("meta"))
        return {number: _portable(values[number]) for number in wanted}


def _portable(value: Any) -> Any:
    return DEVICE if isinstance(value, torch.device) else value
