"""A row of layers that can leave some of them out while the model's own forward goes through it.

An anchor of transformers has its layers in one list, and a loop that is its own: with masks, rotary embeddings, caches
and whatever else its layers are given. `LayerRow` takes the list's place, with the same state-dict keys. Idle it is the
list. In a `PartialForward` it hands the model's loop a `SkippedLayer` for each that does not run: it looks like its
layer and passes its input on; the last one before the first layer that runs passes on the activation that was put in.
So one mechanism serves all architectures, and nothing of a model's forward is written again here.

A partial forward is held in a `ContextVar`, so that calls of several threads do not meet.
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
        row: the row of layers; rows of other models are idle meanwhile.
        start: the first layer that runs.
        stop: the layer before which the forward ends; None runs all layers that follow, and what comes after them.
        entering: the activation to put in before layer `start`; None leaves the one that is there.
        wanted: the boundaries whose activations are noted.

    Attributes:
        activations: the activations at these boundaries.
        entered: whether the activation was put in.
        handed: what the model's loop gets, made when it asks.
    """

    row: LayerRow
    start: int = 0
    stop: int | None = None
    entering: Tensor | None = None
    wanted: Collection[int] = ()
    activations: dict[int, Tensor] = field(default_factory=dict)
    entered: bool = False
    handed: list[Any] | None = None

    def cross(self, boundary: int, h: Tensor) -> Tensor:
        """Note what crosses a boundary, put in what is to be put in there, and end where the pass ends."""
        if boundary == self.start and self.entering is not None:
            h, self.entered = self.entering, True
        if boundary in self.wanted:
            self.activations[boundary] = h
        if boundary == self.stop:
            raise StopForward
        return h


class LayerRow(nn.ModuleList):
    """The layers of an anchor, in the place of their list.

    Args:
        layers: the list's modules by name; of an extracted network None for those that it lacks.
        forms: of each layer what it returns: 0 for a tensor, n for a tuple of n that begins with it.
        placeholders: for each layer that is not here, a module that looks like it.
    """

    def __init__(
        self,
        layers: dict[str, nn.Module | None],
        forms: Sequence[int],
        placeholders: dict[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.forms = tuple(forms)
        self.__dict__["placeholders"] = placeholders or {}  # no modules of this one

    def layer(self, index: int) -> Any:
        """A layer, or what looks like it."""
        return list(self._modules.values())[index] or self.__dict__["placeholders"][index]

    def _handed(self, partial: PartialForward) -> list[Any]:
        """What a model's loop gets in a partial forward."""
        depth = len(self._modules)
        stop = depth if partial.stop is None else partial.stop
        begins = partial.entering is not None or 0 in (stop, *partial.wanted)
        watched = {partial.start, stop, *partial.wanted}
        handed: list[Any] = []
        for index, module in enumerate(self._modules.values()):
            runs = partial.start <= index < stop
            before = 0 if index == partial.start == 0 and begins else None
            after = index + 1 if index + 1 in watched and (runs or index + 1 == partial.start) else None
            if not runs:
                handed.append(SkippedLayer(self.layer(index), self.forms[index], partial, before, after))
            elif before is not None or after is not None:
                handed.append(RecordedLayer(module, partial, before, after))
            else:
                handed.append(module)
        return handed

    def _now(self) -> list[Any] | None:
        partial = _current.get()
        if partial is None or partial.row is not self:
            return None
        if partial.handed is None:
            partial.handed = self._handed(partial)
        return partial.handed

    def __iter__(self) -> Iterator[Any]:
        handed = self._now()
        return super().__iter__() if handed is None else iter(handed)

    def __getitem__(self, index: Any) -> Any:
        handed = self._now()
        if handed is not None:
            return handed[index]
        return nn.ModuleList(list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


class SkippedLayer:
    """Looks like a layer that does not run, and passes its input on in the form that the layer returns.

    Args:
        layer: the layer, or what looks like it.
        form: what it returns, as of `LayerRow`.
        partial: the partial forward.
        before, after: the boundaries around it, as far as they are of interest.
    """

    def __init__(self, layer: Any, form: int, partial: PartialForward, before: int | None, after: int | None) -> None:
        self._layer, self._form, self._partial, self._crossed = layer, form, partial, (before, after)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        h = args[0] if args else kwargs["hidden_states"]
        for boundary in self._crossed:
            h = h if boundary is None else self._partial.cross(boundary, h)
        return (h, *[None] * (self._form - 1)) if self._form else h

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class RecordedLayer:
    """A layer that runs, with an eye on what enters and leaves it.

    Args:
        layer: the layer.
        partial: the partial forward.
        before, after: the boundaries around it, as far as they are of interest.
    """

    def __init__(self, layer: Any, partial: PartialForward, before: int | None, after: int | None) -> None:
        self._layer, self._partial, self._before, self._after = layer, partial, before, after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            if args:
                args = self._partial.cross(self._before, args[0]), *args[1:]
            else:
                kwargs["hidden_states"] = self._partial.cross(self._before, kwargs["hidden_states"])
        out = self._layer(*args, **kwargs)
        if self._after is None:
            return out
        if isinstance(out, tuple):
            return (self._partial.cross(self._after, out[0]), *out[1:])
        return self._partial.cross(self._after, out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


@contextmanager
def running(partial: PartialForward) -> Iterator[PartialForward]:
    """Let a row leave layers out inside the block, which may end early where the turn does."""
    token = _current.set(partial)
    try:
        yield partial
    except StopForward:
        pass
    finally:
        _current.reset(token)
