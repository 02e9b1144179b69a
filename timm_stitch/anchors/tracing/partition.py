"""A recorded forward pass with its boundaries, and where side inputs come from.

Imports torch and `program`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .recording import DEVICE, Program, Step

# (steps, entry, exit, sides, batches): the arguments of a slice
SliceOf = tuple[tuple[tuple[int, Step], ...], int, int, tuple[int, ...], tuple[int, ...]]


@dataclass
class Cuts:
    """A recorded forward pass with its boundaries.

    Args:
        positions: the step after which each boundary lies.
        crossing: the value that crosses each boundary.
        layouts, widths, reductions, prefixes, tokens: of that value.
        fractions: the share of all multiply-adds before each boundary.
        stem, blocks, norm, head: what slices are made of; None for a norm that is not there, and for a
            head that is the model's own `forward_head`.
        head_targets: the names of what the head uses.
        image_size: the only size that the recording serves, or None.
    """

    program: Program
    kinds: tuple[str, ...]
    batch_sizes: frozenset[int]
    positions: tuple[int, ...]
    crossing: tuple[int, ...]
    layouts: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    reductions: tuple[int, ...] = ()
    prefixes: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()
    stem: Any = None
    blocks: tuple[SliceOf, ...] = ()
    norm: Any = None
    head: Any = None
    head_targets: frozenset[str] = frozenset()
    image_size: tuple[int, int] | None = None
    _sides: dict[tuple[int, ...], tuple[tuple[int, Step | None], ...]] = field(default_factory=dict)

    @property
    def middle(self) -> int:
        """How many boundaries have between a tenth and nine tenths of the work before them."""
        return sum(0.1 <= fraction <= 0.9 for fraction in self.fractions)

    def sides_of(self, sides: tuple[int, ...]) -> tuple[tuple[int, Step | None], ...]:
        """The steps that give side inputs, ascending; None for a size that arises inside the model."""
        if sides not in self._sides:
            found: dict[int, Step | None] = {}
            todo = list(sides)
            while todo:
                number = todo.pop()
                if number in found or number == 0:
                    continue
                step = self.program.steps[number]
                assert step is not None
                inner = any(self.kinds[i] == "data" and i != 0 for i in step.inputs)
                found[number] = None if inner else step
                todo += [] if inner else step.inputs
            self._sides[sides] = tuple(sorted(found.items()))
        return self._sides[sides]

    @property
    def _all_sizes(self) -> list[int]:
        parts = [part for part in (self.stem, *self.blocks) if part is not None]
        return sorted({number for part in parts for number, step in self.sides_of(part[3]) if step is None})

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
