"""A recorded forward pass with its boundaries, and where side inputs come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from .recording import DEVICE, Program, Step


@dataclass(frozen=True)
class Boundary:
    """One place where a forward pass can be cut, and the value that crosses there.

    Args:
        position: the number of the step after which it lies.
        value: the number of the value that crosses.
        layout, width, reduction, prefix, tokens: the form of that value, from `layouts.describe`.
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
        """The layout, width, reduction and prefix, which do not depend on the image's size."""
        return self.layout, self.width, self.reduction, self.prefix


@dataclass(frozen=True)
class Span:
    """Consecutive steps, and what enters and leaves them.

    Args:
        steps: pairs of number and step, ascending.
        entry, exit: the numbers of the values that enter and leave.
        sides: the numbers of further values that enter.
        batches: numbers of values that are the batch size.
    """

    steps: tuple[tuple[int, Step], ...]
    entry: int
    exit: int
    sides: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the modules and tensors that the steps use."""
        return tuple(dict.fromkeys(step.target for _, step in self.steps if step.reads_model))


@dataclass(frozen=True)
class Partition:
    """A recorded forward pass with its boundaries.

    Args:
        program: the recorded forward pass.
        kinds: the kind of each value, from `dependencies`.
        boundaries: the boundaries, ascending.
        stem, blocks, norm, head: the spans between them; None for a norm that is not there, and for a head that
            is the model's own `forward_head`.
        head_targets: the names of what the head uses.
        image_size: the only size that the recording serves, or None.
        stage_starts: the blocks that begin a stage at the reduction of the one before.
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
    stage_starts: tuple[int, ...]
    _sources: dict[tuple[int, ...], tuple[tuple[int, Step | None], ...]] = field(default_factory=dict, compare=False)

    @property
    def varies(self) -> bool:
        """Whether the model takes images of other sizes by a forward pass that differs from this recording."""
        return self.program.forced and self.image_size is None

    @property
    def middle(self) -> int:
        """The number of boundaries with between a tenth and nine tenths of the work before them."""
        return sum(0.1 <= boundary.fraction <= 0.9 for boundary in self.boundaries)

    def sources(self, sides: tuple[int, ...]) -> tuple[tuple[int, Step | None], ...]:
        """The steps that give side inputs, ascending; None for a size that arises inside the model."""
        if sides not in self._sources:
            steps: dict[int, Step | None] = {}
            todo = list(sides)
            while todo:
                number = todo.pop()
                if number in steps or number == 0:
                    continue
                step = self.program.step(number)
                inside = any(self.kinds[i] == "data" and i != 0 for i in step.inputs)
                steps[number] = None if inside else step
                todo += [] if inside else step.inputs
            self._sources[sides] = tuple(sorted(steps.items()))
        return self._sources[sides]

    @property
    def _inner_sizes(self) -> list[int]:
        """The numbers of the side inputs that are sizes which arise inside the model."""
        spans = (self.stem, *self.blocks)
        return sorted({number for span in spans for number, step in self.sources(span.sides) if step is None})

    @property
    def needs_sizes(self) -> bool:
        """Whether there are side inputs of which the recorded sizes do not serve all calls."""
        plain = (int, torch.dtype, torch.device)
        examples = [self.program.examples[number] for number in self._inner_sizes]
        return bool(examples and self.image_size is None) or not all(isinstance(e, plain) for e in examples)

    @property
    def example_sizes(self) -> dict[int, object]:
        """The sizes that arise inside the model for images of the recorded size."""
        return {number: _portable(self.program.examples[number]) for number in self._inner_sizes}

    def sizes(self, meta: nn.Module, shape: Sequence[int]) -> dict[int, object]:
        """The sizes that arise inside the model for images of another shape.

        Args:
            meta: the model on the meta device, which is run.
            shape: the shape of the images.
        """
        wanted = self._inner_sizes
        dtype = self.program.examples[0].dtype
        values: dict[int, object] = {0: torch.empty(*shape, device="meta", dtype=dtype)}
        with torch.no_grad():
            for number, step in enumerate(self.program.steps[: max(wanted) + 1]):
                if step is not None:
                    values[number] = step.run(meta, values, torch.device("meta"))
        return {number: _portable(values[number]) for number in wanted}


def _portable(value: object) -> object:
    return DEVICE if isinstance(value, torch.device) else value
