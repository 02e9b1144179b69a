"""The levels of a feature pyramid, and where along a stitch each of them is taken.

A level is a place in every anchor: a boundary of its blocks. A stitch takes a level behind the last block of its path
that is not behind that level in the block's own anchor. So every stitch has each level exactly once, wherever it
crosses, and stitches with equal first steps take equal maps there.

Source: the rule gives the maps that SN-Netv2 (arXiv:2307.00154) uses for segmentation and depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from .steps import Block, Stem
from .stitch_plan import Anchor, Stitch

Ends = tuple[tuple[int, ...], ...]  # for each anchor, the boundary where each level ends, ascending

INSIDE_STEM, STEM = 0, 1  # the first places of a path, as numbers of steps; others are behind a block
EARLY = -1  # the boundary of a map inside the stem; 0 is the stem's own


def tap_places(stitch: Stitch, ends: Ends, steps: int | None = None) -> tuple[int, ...]:
    """Find the places along a stitch where its levels are taken.

    Args:
        stitch: the stitch.
        ends: the levels.
        steps: the number of steps that count; default all before the head.

    Returns:
        For each level the number of steps before its map.

    Examples:
        >>> from timm_stitch.plan.levels import tap_places
        >>> stitch = timm_stitch.Stitch(2, (timm_stitch.Segment(0, 0, 3), timm_stitch.Segment(1, 2, 4)), (0,))
        >>> tap_places(stitch, ends=((2, 4), (2, 4)))  # behind block 1 of anchor 0, and block 3 of anchor 1
        (3, 7)
    """
    taps = [STEM if end > EARLY else INSIDE_STEM for end in ends[stitch.front]]
    for place, (step, (anchor, boundary)) in enumerate(zip(stitch.steps[:steps], stitch.places, strict=False), 1):
        if isinstance(step, (Stem, Block)):
            for level, end in enumerate(ends[anchor]):
                if boundary <= end:
                    taps[level] = place
    return tuple(taps)


def make_ends(anchors: Sequence[Anchor], levels: int | Sequence[int] | Sequence[Sequence[int]]) -> Ends:
    """Make the levels of a plan's anchors.

    Args:
        anchors: the anchors, fastest first.
        levels: the number of levels: the last stages of networks with stages; elsewhere the depth is divided evenly.
            Or the numbers of stages, or of blocks in the largest anchor; an anchor of another depth takes the blocks at
            the same part of its depth. Or the numbers of blocks in each anchor.

    Raises:
        ValueError: if there are no such levels, or the anchors' maps differ in size there.

    Examples:
        >>> from timm_stitch.plan.levels import make_ends
        >>> anchors = [timm_stitch.Anchor("s", (8,) * 13, (16,) * 13), timm_stitch.Anchor("l", (16,) * 25, (16,) * 25)]
        >>> make_ends(anchors, (9, 14, 19, 23))
        ((5, 8, 10, 12), (10, 15, 20, 24))
    """
    try:
        ends = _ends(anchors, levels)
    except TypeError:
        raise ValueError(f"levels must be a number, block numbers, or those of each anchor, got {levels!r}.") from None
    if len({len(own) for own in ends}) != 1 or not ends[0]:
        raise ValueError(f"levels must be as many for each anchor, and one or more, got {levels!r}.")
    for anchor, own in zip(anchors, ends, strict=True):
        if list(own) != sorted(own) or own[0] < 1 or own[-1] > anchor.depth:
            raise ValueError(
                f"levels must ascend within blocks 0 to {anchor.depth - 1} of {anchor.name!r}, got "
                f"blocks {', '.join(str(end - 1) for end in own)}."
            )
    for level, own in enumerate(zip(*ends, strict=True)):
        reductions = [anchor.reductions[end] for anchor, end in zip(anchors, own, strict=True)]
        if len(set(reductions)) > 1:
            raise ValueError(f"level {level} must have one size in all anchors, got reductions of {reductions}.")
    return ends


def _ends(anchors: Sequence[Anchor], levels: Any) -> Ends:
    stages = [[blocks.stop for blocks in anchor.stages] for anchor in anchors]
    staged = min(len(own) for own in stages) > 1
    if staged and len({len(own) for own in stages}) > 1:
        staged = False
    largest = anchors[-1].depth
    if not hasattr(levels, "__len__"):
        count, most = index(levels), len(stages[-1]) if staged else largest
        if not 1 <= count <= most:
            raise ValueError(f"levels must be from 1 to {most}, got {levels!r}.")
        if staged:
            return tuple(tuple(own[-count:]) for own in stages)
        levels = [largest * (n + 1) // count - 1 for n in range(count)]
    if not levels or hasattr(levels[0], "__len__"):
        if len(levels) != len(anchors):
            raise ValueError(f"levels must be numbers, or those of each of the {len(anchors)} anchors, got {levels!r}.")
        return tuple(tuple(index(block) + 1 for block in own) for own in levels)
    numbers = [index(number) for number in levels]
    if staged:
        if not all(0 <= number < len(stages[0]) for number in numbers):
            raise ValueError(f"levels must be stages from 0 to {len(stages[0]) - 1}, got {levels!r}.")
        return tuple(tuple(own[number] for number in numbers) for own in stages)
    if not all(0 <= number < largest for number in numbers):
        raise ValueError(f"levels must be blocks of the largest anchor, from 0 to {largest - 1}, got {levels!r}.")
    return tuple(tuple(-(-(number + 1) * anchor.depth // largest) for number in numbers) for anchor in anchors)
