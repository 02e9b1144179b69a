"""Parts that stitches share: runs of steps that none of some stitches enters or leaves inside.

Each part is a program of its own, and a stitch is a chain of parts, so that what is compiled holds no weight twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from .steps import Step
from .stitch_plan import Stitch


@dataclass(frozen=True)
class Part:
    """Steps `start:stop` of a stitch, which stand together in every stitch that has one of them.

    Args:
        stitch: a stitch that has them.
        start, stop: the range of its steps, half-open.
    """

    stitch: Stitch
    start: int
    stop: int


def shared_parts(stitches: Iterable[Stitch]) -> tuple[list[Part], dict[int, list[int]]]:
    """Cut stitches into parts that are as long as can be.

    Returns:
        The parts, and for each stitch the numbers of its parts, in the order in which they run.

    Examples:
        >>> from timm_stitch import Anchor, enumerate_stitches
        >>> plan = enumerate_stitches([Anchor("small", (8, 8, 8), (4, 4, 4)), Anchor("large", (16, 16, 16), (4, 4, 4))])
        >>> parts, chains = shared_parts(plan[k] for k in (0, 1, 2))
        >>> plan[2].name, chains
        ('small[0:1] + large[0:2]', {0: [0, 1], 1: [2, 3, 4], 2: [0, 5, 3, 6]})
    """
    stitches = list(stitches)
    before: dict[Step | None, set[Step | None]] = {}
    after: dict[Step | None, set[Step | None]] = {}
    for stitch in stitches:
        for a, b in pairwise((None, *stitch.steps, None)):
            after.setdefault(a, set()).add(b)
            before.setdefault(b, set()).add(a)
    parts: list[Part] = []
    numbers: dict[tuple[Step, ...], int] = {}
    chains: dict[int, list[int]] = {}
    for stitch in stitches:
        steps, start, chain = stitch.steps, 0, []
        for stop in range(1, len(steps) + 1):
            if stop < len(steps) and len(after[steps[stop - 1]]) == 1 and len(before[steps[stop]]) == 1:
                continue
            key = steps[start:stop]
            if key not in numbers:
                numbers[key] = len(parts)
                parts.append(Part(stitch, start, stop))
            chain.append(numbers[key])
            start = stop
        chains[stitch.stitch_id] = chain
    return parts, chains
