"""What each value of a recorded forward pass depends on, and where one of them crosses alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from .recording import Program, refs


def dependencies(program: Program) -> tuple[str, ...]:
    """Whether each value depends on the image's content ("data"), on its size ("shape"), or on neither ("free")."""
    kinds = ["data"]
    for number in range(1, len(program.steps)):
        inputs = {kinds[i] for i in program.step(number).inputs}
        if "data" in inputs:
            kinds.append("data" if _has_tensor(program.examples[number]) else "shape")
        else:
            kinds.append("shape" if "shape" in inputs else "free")
    return tuple(kinds)


def _has_tensor(value: object) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(_has_tensor(v) for v in value))


def single_values(program: Program, kinds: Sequence[str], end: int) -> Iterator[tuple[int, int]]:
    """Yield the positions at which one tensor alone crosses, and the number of that tensor.

    Args:
        program: the recorded forward pass.
        kinds: the kind of each value, from `dependencies`.
        end: the number of the last step to look at.
    """
    last: dict[int, int] = {}
    for number in range(1, len(program.steps)):
        last.update(dict.fromkeys(program.step(number).inputs, number))
    last.update(dict.fromkeys(refs(program.output), len(program.steps)))
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
