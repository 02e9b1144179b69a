"""A model's forward pass as a list of steps.

The steps hold names, no modules and no tensors: they run on the model itself, or on a part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ....anchors.modules import child, with_hook


@dataclass(frozen=True)
class Ref:
    """The value of an earlier step; 0 is the image."""

    index: int


@dataclass(frozen=True)
class ByMode:
    """An argument that differs between evaluation and training."""

    evaluating: object
    training: object


class _OnDevice:
    """Stands for the device that the image is on."""


DEVICE = _OnDevice


@dataclass(frozen=True)
class Step:
    """One operation: `kind` is `"module"`, `"attribute"`, `"function"` or `"method"`."""

    kind: str
    target: Any  # a name, or the function itself
    args: object
    kwargs: object

    @property
    def inputs(self) -> set[int]:
        """The numbers of the values that the step reads."""
        return refs([self.args, self.kwargs])

    @property
    def reads_model(self) -> bool:
        """Whether the step uses a module or a tensor of the model, which `target` names."""
        return self.kind in ("module", "attribute")

    def run(self, model: nn.Module, values: dict[int, object], device: torch.device) -> object:
        """Compute the step's value from those that it reads."""

        def fill(leaf: object) -> object:
            if isinstance(leaf, Ref):
                return values[leaf.index]
            if isinstance(leaf, ByMode):
                return leaf.training if model.training else leaf.evaluating
            return device if leaf is DEVICE else leaf

        args, kwargs = map_leaves(fill, self.args), map_leaves(fill, self.kwargs)
        if self.kind == "module":
            return child(model, self.target)(*args, **kwargs)
        if self.kind == "attribute":
            owner, _, name = self.target.rpartition(".")
            module = child(model, owner)
            return with_hook(module, partial(getattr, module, name))
        if self.kind == "method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


@dataclass(frozen=True)
class Program:
    """A recorded forward pass.

    Args:
        steps: the steps, of which number i gives value i; number 0 is the image and no step.
        output: the value that the model returns.
        examples: each value for `batch` images of `size`, on the meta device.
        macs: the multiply-adds of each step, for the whole batch.
        stable: whether nothing changes a value in place after its step.
        head: the value that enters `forward_head`, if there is one such call and nothing else follows.
        forced: whether a size was turned into a Python number or decision on the way.
        size, batch: the (height, width) and the number of the images.
        expanded: the names of the modules that are recorded operation by operation, outside `forward_head`.
    """

    steps: tuple[Step | None, ...]
    output: object
    examples: tuple[Any, ...]
    macs: tuple[int, ...]
    stable: tuple[bool, ...]
    head: int | None
    forced: bool
    size: tuple[int, int]
    batch: int = 2
    expanded: frozenset[str] = frozenset()

    def step(self, number: int) -> Step:
        """Step `number`; not 0, which is the image."""
        step = self.steps[number]
        assert step is not None
        return step


def differs(a: Program, b: Program) -> bool:
    """Whether two recordings of one model, made with other batch sizes, are different programs."""

    def plain(leaf: object) -> object:
        return leaf.evaluating if isinstance(leaf, ByMode) else leaf

    texts = [[(s.kind, s.target, str(map_leaves(plain, (s.args, s.kwargs)))) for s in p.steps if s] for p in (a, b)]
    return texts[0] != texts[1]


def merged(evaluating: Program, training: Program) -> Program:
    """One program for both modes, as far as they are the same up to constants."""
    if len(evaluating.steps) != len(training.steps):
        return evaluating
    steps: list[Step | None] = [None]
    for number in range(1, len(evaluating.steps)):
        a, b = evaluating.step(number), training.step(number)
        if (a.kind, a.target) != (b.kind, b.target):
            return evaluating
        steps.append(Step(a.kind, a.target, _both(a.args, b.args), _both(a.kwargs, b.kwargs)))
    return replace(evaluating, steps=tuple(steps))


def _both(a: object, b: object) -> object:
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        return type(a)(_both(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {k: _both(a[k], b[k]) for k in a}
    return a if a is b or (type(a) is type(b) and a == b) else ByMode(a, b)


def refs(tree: object) -> set[int]:
    """The numbers of the values that nested arguments refer to."""
    numbers: set[int] = set()
    map_leaves(lambda leaf: numbers.add(leaf.index) if isinstance(leaf, Ref) else None, tree)
    return numbers


def map_leaves(function: Callable[[object], object], tree: object) -> Any:
    """Apply a function to the leaves of nested tuples and the like."""
    if isinstance(tree, tuple):
        return tuple([map_leaves(function, x) for x in tree])
    if isinstance(tree, list):
        return [map_leaves(function, x) for x in tree]
    if isinstance(tree, dict):
        return {k: map_leaves(function, v) for k, v in tree.items()}
    if isinstance(tree, slice):
        return slice(map_leaves(function, tree.start), map_leaves(function, tree.stop), map_leaves(function, tree.step))
    return function(tree)
