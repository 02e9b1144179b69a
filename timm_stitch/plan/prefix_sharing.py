"""Which work stitches share: the order in which many of them run so that no step runs twice.

Stitches with the same front run the same first steps. Sorted by their steps, each one continues from
an activation that an earlier one left behind, and an activation is dropped as soon as no later stitch
needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from .costs import PlanCosts
from .stitch_plan import Stitch


@dataclass(frozen=True)
class Turn:
    """One stitch's turn: continue after `resume` steps, and keep what `keep` says for later turns.

    Args:
        stitch: whose turn it is.
        resume: how many of its steps are done already; 0 starts from the image.
        keep: after how many steps an activation must be kept, ascending.
        drop: kept activations deeper than this are needed by no later turn.
    """

    stitch: Stitch
    resume: int
    keep: tuple[int, ...]
    drop: int


def schedule(stitches: Iterable[Stitch]) -> list[Turn]:
    """Order stitches so that shared first steps run once and few activations are kept."""
    stitches = sorted(stitches, key=lambda stitch: stitch.steps)
    shared = [common_steps(a, b) for a, b in itertools.pairwise(stitches)] + [0]
    turns, resume = [], 0
    for i, stitch in enumerate(stitches):
        keep, lowest = set(), len(stitch.steps)
        for common in shared[i:]:
            lowest = min(lowest, common)
            if lowest <= resume:
                break
            keep.add(lowest)
        turns.append(Turn(stitch, resume, tuple(sorted(keep)), shared[i]))
        resume = shared[i]
    return turns


def shared_macs(stitches: Iterable[Stitch], costs: PlanCosts) -> int:
    """The macs of running all these stitches on one image with shared first steps run once."""
    return sum(costs.step(step) for turn in schedule(stitches) for step in turn.stitch.steps[turn.resume :])


def common_steps(a: Stitch, b: Stitch) -> int:
    """How many first steps two stitches share."""
    n = 0
    for x, y in zip(a.steps, b.steps, strict=False):
        if x != y:
            break
        n += 1
    return n
