"""What each value of a recorded forward pass depends on, and where one of them crosses alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from .recording import Program, Ref

_FROM_SHAPE = {"zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}


def kinds_of(program: Program) -> tuple[str, ...]:
    """Whether each value depends on the image's content ("data"), on its size ("shape"), or on neither ("free")."""
    kinds = ["data"]
    for number in range(1, len(program.steps)):
        step = program.step(number)
        inputs = {kinds[i] for i in step.inputs}
        name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
        if "data" in inputs and (_has_tensor(program.examples[number])) and name not in _FROM_SHAPE:
            kinds.append("data")
        elif inputs & {"data", "shape"}:
            kinds.append("data" if name in _FROM_SHAPE and "data" in inputs else "shape")
        else:
            kinds.append("free")
    return tuple(kinds)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(_has_tensor(v) for v in value))


def single_values(program: Program, kinds: Sequence[str], end: int) -> Iterator[tuple[int, int]]:
    """Positions at which one tensor alone crosses, and the number of that tensor.

    Args:
        program: what was recorded.
        kinds: from `kinds_of`.
        end: the last step to look at.
    """
    last: dict[int, int] = {}
    for number in range(1, len(program.steps)):
        step = program.step(number)
        last.update(dict.fromkeys(step.inputs, number))
    for number in refs(program.output):
        last[number] = len(program.steps)
    alive: set[int] = set()
    for number in range(end + 1):
        if kinds[number] == "data" and number in last:
            alive.add(number)
        alive = {v for v in alive if last[v] > number}
        if len(alive) == 1 and number:
            (value,) = alive
            example = program.examples[value]
            whole = isinstance(example, Tensor) and example.is_floating_point() and example.ndim >= 3
            if value and whole and program.stable[value] and example.shape[0] == program.batch:
                yield number, value


def refs(tree: Any) -> set[int]:
    """The numbers of the values that nested arguments refer to."""
    if isinstance(tree, Ref):
        return {tree.index}
    if isinstance(tree, dict):
        tree = list(tree.values())
    return {n for leaf in tree for n in refs(leaf)} if isinstance(tree, (list, tuple)) else set()
