"""Parts that stitches share: runs of steps that none of some stitches enters or leaves inside.

Each part is a program of its own, and a stitch is a chain of parts, so that what is compiled holds no weight twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from .steps import Head, Step
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


def shared_parts(stitches: Iterable[Stitch], stitched_norm: bool = False) -> tuple[list[Part], dict[int, list[int]]]:
    """Cut stitches into parts that are as long as can be.

    Args:
        stitches: the stitches.
        stitched_norm: whether stitched paths keep the final norm, so that they end as the anchor does.

    Returns:
        The parts, and for each stitch the numbers of its parts, in the order in which they run.

    Examples:
        >>> from timm_stitch import Anchor, enumerate_stitches
        >>> plan = enumerate_stitches([Anchor("small", (8, 8, 8), (4, 4, 4)), Anchor("large", (16, 16, 16), (4, 4, 4))])
        >>> parts, chains = shared_parts(plan[k] for k in (0, 1, 2))
        >>> plan[2].name, chains
        ('small[0:1] + large[0:2]', {0: [0, 1], 1: [2, 3, 4], 2: [0, 5, 3, 6]})
    """
    paths = {s: tuple(_same(step) if stitched_norm else step for step in s.steps) for s in stitches}
    before: dict[Step | None, set[Step | None]] = {}
    after: dict[Step | None, set[Step | None]] = {}
    for steps in paths.values():
        for a, b in pairwise((None, *steps, None)):
            after.setdefault(a, set()).add(b)
            before.setdefault(b, set()).add(a)
    parts: list[Part] = []
    numbers: dict[tuple[Step, ...], int] = {}
    chains: dict[int, list[int]] = {}
    for stitch, steps in paths.items():
        start, chain = 0, []
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


def _same(step: Step) -> Step:
    """Return the head of an anchor for that of its stitches, and any other step itself."""
    return replace(step, is_stitched=False) if isinstance(step, Head) else step
