"""The order in which many stitches run so that no step runs twice.

Stitches with the same front run the same first steps. Sorted by their steps, each one continues from an activation
that an earlier one kept. An activation is dropped as soon as no later stitch needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from .costs import PlanCosts
from .steps import sort_key
from .stitch_plan import Stitch


@dataclass(frozen=True)
class ScheduledRun:
    """One stitch's run, which begins with an activation that an earlier run kept.

    Args:
        stitch: the stitch that runs.
        resume: the number of its steps that have run already; 0 starts from the image.
        keep: the numbers of steps after which later runs need the activation, ascending.
        drop: the number of steps beyond which no later run needs a kept activation.
    """

    stitch: Stitch
    resume: int
    keep: tuple[int, ...]
    drop: int


def schedule(stitches: Iterable[Stitch]) -> list[ScheduledRun]:
    """Order stitches so that shared first steps run once and few activations are kept."""
    stitches = sorted(stitches, key=lambda stitch: sort_key(stitch.steps))
    shared = [common_steps(a, b) for a, b in itertools.pairwise(stitches)] + [0]
    runs, resume = [], 0
    for i, stitch in enumerate(stitches):
        # A later run resumes where its steps part from those of all runs between: at the lowest of what they share.
        keep, lowest = set(), len(stitch.steps)
        for common in shared[i:]:
            lowest = min(lowest, common)
            if lowest <= resume:
                break
            keep.add(lowest)
        runs.append(ScheduledRun(stitch, resume, tuple(sorted(keep)), shared[i]))
        resume = shared[i]
    return runs


def shared_macs(stitches: Iterable[Stitch], costs: PlanCosts) -> int:
    """Count the multiply-adds of all these stitches for one image, with shared first steps run once."""
    return sum(costs.step(step) for run in schedule(stitches) for step in run.stitch.steps[run.resume :])


def common_steps(a: Stitch, b: Stitch) -> int:
    """Count the first steps that two stitches share."""
    pairs = zip(a.steps, b.steps, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
