"""The parts of a recorded forward pass as modules that run on the model itself, or on a subset of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from .tracing.partition import Partition, Span


class Slices:
    """The parts that a partition cuts a model into.

    Args:
        anchor: the model, or a subset that holds what is run.
        partition: the boundaries where to cut.

    Attributes:
        stem, blocks, norm, head: the parts; None for a norm that is not there, and for a head that is the model's own.
        alone: for each block the name of the model's own module and the constant arguments of its call, where the block
            is one such call and nothing else.
    """

    def __init__(self, anchor: nn.Module, partition: Partition) -> None:
        self.partition = partition
        self.stem = Slice(anchor, partition.stem)
        self.blocks = tuple(Slice(anchor, span) for span in partition.blocks)
        self.norm, self.head = (
            None if span is None else Slice(anchor, span) for span in (partition.norm, partition.head)
        )
        self.alone = tuple(_only_module(span) for span in partition.blocks)


class Slice(nn.Module):
    """Consecutive steps of a recorded forward pass as a module that shares the model's parameters.

    Args:
        anchor: the model, or a subset that holds what the steps use.
        span: the steps, and what enters and leaves them.
    """

    def __init__(self, anchor: nn.Module, span: Span) -> None:
        super().__init__()
        self.span = span
        self._anchor = (anchor,)  # in a tuple: the model is no child of its slice
        last = {span.entry: -1}
        for n, (_, step) in enumerate(span.steps):
            last.update(dict.fromkeys(step.inputs, n))
        self._drops = tuple(
            tuple(v for v, at in last.items() if at == n and v != span.exit) for n in range(len(span.steps))
        )

    def forward(self, h: Tensor, *sides: object) -> object:
        span, anchor, device = self.span, self._anchor[0], h.device
        values: dict[int, object] = dict(zip(span.sides, sides, strict=True))
        values[span.entry] = h
        values.update(dict.fromkeys(span.batches, h.shape[0]))
        for (number, step), drops in zip(span.steps, self._drops, strict=True):
            values[number] = step.run(anchor, values, device)
            for used in drops:
                del values[used]
        return values[span.exit]

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the modules and tensors that the steps use."""
        return self.span.targets

    def named_parameters(self, *args: object, **kwargs: object) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that the steps use, by the model's names."""
        for name, parameter in self._anchor[0].named_parameters():
            if any(name == target or name.startswith(target + ".") for target in self.targets):
                yield name, parameter


def _only_module(span: Span) -> tuple[str, Mapping[str, object]] | None:
    """The model's own module and its constant arguments, where a slice is one call of it and nothing else."""
    if len(span.steps) != 1 or span.sides:
        return None
    _, step = span.steps[0]
    kwargs = step.kwargs
    if step.kind != "module" or not isinstance(step.args, tuple) or len(step.args) != 1:
        return None
    if not isinstance(kwargs, Mapping) or not all(_is_constant(value) for value in kwargs.values()):
        return None
    return str(step.target), kwargs


def _is_constant(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
