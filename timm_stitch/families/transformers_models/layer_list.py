"""A list of layers that can skip some of them while the model's own forward goes through it.

An anchor of transformers has its layers in one list, and a loop of its own over them: with masks, rotary embeddings,
caches and whatever else its layers take. `LayerList` takes the list's place, with the same state-dict keys. When idle
it is the list. In a `PartialForward` it hands the model's loop a `SkippedLayer` for each layer that does not run, which
has the layer's attributes and passes its input on. The last one before the first layer that runs passes on the inserted
activation. So one mechanism serves all architectures, and repeats nothing of a model's forward.

A partial forward lives in a `ContextVar`, so that calls of several threads do not meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_current: ContextVar[PartialForward | None] = ContextVar("partial_forward", default=None)


class StopForward(BaseException):
    """Leaves a model's forward where no more of it is needed."""


@dataclass
class PartialForward:
    """A model's forward of which only some layers run.

    Args:
        layers: the list of layers; lists of other models are idle meanwhile.
        start: the first layer that runs.
        stop: the layer before which the forward ends; None runs all layers that follow, and what comes after them.
        inserted: the activation to insert before layer `start`; None leaves the one that is there.
        wanted: the boundaries whose activations are recorded.
        exits: whether the forward ends at `stop`; exporters cannot follow that, so that it then runs on without layers.
        refusal: the error for layers that do not run in their order.

    Attributes:
        activations: the activations at these boundaries.
        entered: whether the activation was inserted.
        last: the layer that the model called last.
        sequence: what the model's loop runs over, made at its first access.
    """

    layers: LayerList
    start: int = 0
    stop: int | None = None
    inserted: Tensor | None = None
    wanted: Collection[int] = ()
    activations: dict[int, Tensor] = field(default_factory=dict)
    entered: bool = False
    exits: bool = True
    refusal: str = "the layers do not run in their order."
    last: int = -1
    sequence: list[OrderedLayer] | None = None

    def call_layer(self, index: int) -> None:
        """Take note that the model calls a layer.

        Raises:
            ValueError: if it did not call the one before just now.
        """
        if index != self.last + 1:
            raise ValueError(self.refusal)
        self.last = index

    def cross(self, boundary: int, h: Tensor) -> Tensor:
        """Record the activation at a boundary, insert the one that starts here, and end where the forward ends."""
        if boundary == self.start and self.inserted is not None:
            h, self.entered = self.inserted, True
        if boundary in self.wanted:
            self.activations[boundary] = h
        if boundary == self.stop and self.exits:
            raise StopForward
        return h


class LayerList(nn.ModuleList):
    """The layers of an anchor, in the place of their list.

    Args:
        layers: the list's modules by name; an extracted network lacks some.
        output_arity: the length of the tuple that each layer returns; 0 if it returns a tensor.
        placeholders: modules with the attributes of the layers that are not here, by their number.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module],
        output_arity: Sequence[int],
        placeholders: dict[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.output_arity = tuple(output_arity)
        self.__dict__["placeholders"] = placeholders or {}  # no modules of this one

    @property
    def depth(self) -> int:
        """The number of layers and placeholders that there are now."""
        return len(self._modules) + len(self.__dict__["placeholders"])

    def layer(self, index: int) -> nn.Module:
        """Get a layer, or its placeholder."""
        layer: nn.Module | None = self._modules.get(str(index))
        return self.__dict__["placeholders"][index] if layer is None else layer

    def _make_sequence(self, partial: PartialForward) -> list[OrderedLayer]:
        """Make what a model's loop runs over in a partial forward."""
        stop = self.depth if partial.stop is None else partial.stop
        enters = partial.inserted is not None or 0 in (stop, *partial.wanted)
        watched = {partial.start, stop, *partial.wanted}
        sequence: list[OrderedLayer] = []
        for index in range(self.depth):
            runs, layer = partial.start <= index < stop, self.layer(index)
            before = 0 if index == partial.start == 0 and enters else None
            after = index + 1 if index + 1 in watched and (runs or index + 1 == partial.start) else None
            if not runs:
                sequence.append(SkippedLayer(layer, partial, index, before, after, self.output_arity[index]))
            elif before is not None or after is not None:
                sequence.append(RecordedLayer(layer, partial, index, before, after))
            else:
                sequence.append(OrderedLayer(layer, partial, index))
        return sequence

    def _current_sequence(self) -> list[OrderedLayer] | None:
        partial = _current.get()
        if partial is None or partial.layers is not self:
            return None
        if partial.sequence is None:
            partial.sequence = self._make_sequence(partial)
        return partial.sequence

    def __len__(self) -> int:
        return self.depth

    def __iter__(self) -> Iterator[Any]:
        sequence = self._current_sequence()
        return iter([self.layer(i) for i in range(self.depth)] if sequence is None else sequence)

    def __getitem__(self, index: int | slice) -> Any:
        sequence = self._current_sequence()
        if sequence is not None:
            return sequence[index]
        return nn.ModuleList(list(self)[index]) if isinstance(index, slice) else list(self)[index]


class OrderedLayer:
    """A layer that runs, in its place among the others.

    Args:
        layer: the layer.
        partial: the partial forward.
        index: the layer's number.
    """

    def __init__(self, layer: nn.Module, partial: PartialForward, index: int) -> None:
        self._layer, self._partial, self._index = layer, partial, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._partial.call_layer(self._index)
        return self._layer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class RecordedLayer(OrderedLayer):
    """A layer that runs, and records what enters and leaves it.

    Args:
        layer, partial, index: the arguments of `OrderedLayer`.
        before, after: the boundaries around it, each None where nothing is to be done.
    """

    def __init__(
        self, layer: nn.Module, partial: PartialForward, index: int, before: int | None, after: int | None
    ) -> None:
        super().__init__(layer, partial, index)
        self._before, self._after = before, after

    def _cross(self, boundary: int | None, h: Tensor) -> Tensor:
        return h if boundary is None else self._partial.cross(boundary, h)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._partial.call_layer(self._index)
        if args:
            args = self._cross(self._before, args[0]), *args[1:]
        else:
            kwargs["hidden_states"] = self._cross(self._before, kwargs["hidden_states"])
        output = self._layer(*args, **kwargs)
        if isinstance(output, tuple):
            return (self._cross(self._after, output[0]), *output[1:])
        return self._cross(self._after, output)


class SkippedLayer(RecordedLayer):
    """A layer that does not run: it passes its input on, as a tensor (`arity` 0) or the first of a tuple."""

    def __init__(
        self, layer: nn.Module, partial: PartialForward, index: int, before: int | None, after: int | None, arity: int
    ) -> None:
        super().__init__(layer, partial, index, before, after)
        self._arity = arity

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._partial.call_layer(self._index)
        h = args[0] if args else kwargs["hidden_states"]
        h = self._cross(self._after, self._cross(self._before, h))
        return _SkippedOutput((h, *[None] * (self._arity - 1))) if self._arity else h


class _SkippedOutput(tuple[Any, ...]):
    """What a skipped layer returns: None for all that a model takes besides the activation."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        is_beyond = not isinstance(index, slice) and index >= len(self)
        return None if is_beyond else super().__getitem__(index)


@contextmanager
def running(partial: PartialForward) -> Iterator[PartialForward]:
    """Let a list of layers skip some of them inside the block, which may end before the model's forward does."""
    token = _current.set(partial)
    try:
        yield partial
    except StopForward:
        pass
    finally:
        _current.reset(token)
