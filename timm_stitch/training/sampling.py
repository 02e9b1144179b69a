"""Rules that draw the stitches of a step: pure functions of the seed and the step, the same on every process.

A rule has no state, so a resumed run, or one on another number of processes, trains the same stitches. Sources: SN-Net
(arXiv:2302.06586, uniform); SN-Netv2 (arXiv:2307.00154, resource-constrained); universally slimmable networks
(arXiv:1903.05134, the sandwich rule); ESTA (arXiv:2311.17352, importance).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from ..choices import SamplingRule
from ..data.seeding import derive

RULES: tuple[SamplingRule, ...] = get_args(SamplingRule)
GROUP_WIDTH = 1e9  # SN-Netv2's groups are one GFLOP wide, in its count

_logger = logging.getLogger(__name__)

Rule = Callable[[int], tuple[int, ...]]


def uniform(stitch_ids: Sequence[int], seed: int, step: int) -> int:
    """Draw one stitch with equal chances (SN-Net's rule).

    Deviation: the authors draw another stitch on every process; here all processes draw the same one, so that a resumed
    or a differently distributed run trains the same stitches.
    """
    return random.Random(f"{seed}/{step}").choice(stitch_ids)


def groups_by_macs(
    macs: Mapping[int, int], width: float | None = None, count: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Group stitches by macs, cheapest first, without empty groups.

    Args:
        macs: the macs of each stitch, by its id.
        width: the width of a group in macs: the first begins at 0, the next at the cheapest stitch that is more than
            `width` above the beginning of the last, and so on, as in SN-Netv2.
        count: instead of a width, the number of groups of equal width between the cheapest and the most expensive
            stitch.

    Raises:
        ValueError: if there are no stitches, neither or both are given, or one is not positive.

    Examples:
        >>> groups_by_macs({0: 10, 1: 12, 2: 30}, count=2)
        ((0, 1), (2,))
    """
    if not macs or (width is None) == (count is None) or (width or count or 0) <= 0:
        raise ValueError(
            f"cannot group {len(macs)} stitches by width={width}, count={count}: expected one or more stitches, and "
            "either a positive width in macs (SN-Netv2: 1e9) or a positive number of groups."
        )
    ordered = sorted(macs, key=lambda i: (macs[i], i))
    grouped: list[list[int]] = [[] for _ in range(count or 1)]
    if width is not None:
        start = 0
        for stitch_id in ordered:
            if macs[stitch_id] - start > width:
                grouped.append([])
                start = macs[stitch_id]
            grouped[-1].append(stitch_id)
    else:
        low, high = macs[ordered[0]], macs[ordered[-1]]
        step = (high - low) / len(grouped) or 1
        for stitch_id in ordered:
            grouped[min(int((macs[stitch_id] - low) // step), len(grouped) - 1)].append(stitch_id)
    return tuple(tuple(group) for group in grouped if group)


def resource_constrained(groups: Sequence[Sequence[int]], seed: int, step: int, bias: float = 0.0) -> int:
    """Draw a group with equal chances, then one of its stitches with equal chances (SN-Netv2).

    Args:
        groups: the groups of stitches, from `groups_by_macs`.
        seed: the seed of the run.
        step: the number of the step.
        bias: the preference for expensive groups, -1 to 1: chances change linearly with a group's rank, from
            `1 - bias` for the cheapest to `1 + bias` for the most expensive.
    """
    rng = random.Random(f"{seed}/{step}")
    last = max(len(groups) - 1, 1)
    weights = [1 + bias * (2 * i / last - 1) if len(groups) > 1 else 1.0 for i in range(len(groups))]
    return rng.choice(rng.choices(groups, weights)[0])


def importance_weighted(scores: Mapping[int, float], seed: int, step: int) -> int:
    """Draw a stitch with chances in proportion to its score (the idea of ESTA; scores are fixed at the start)."""
    ids = sorted(scores)
    return random.Random(f"{seed}/{step}").choices(ids, [scores[i] for i in ids])[0]


def sandwich(
    stitch_ids: Sequence[int], always: Sequence[int], seed: int, step: int, random_ones: int
) -> tuple[int, ...]:
    """Draw the stitches that every step trains, in the given order, and some of the others at random."""
    others = [i for i in stitch_ids if i not in always]
    drawn = random.Random(f"{seed}/{step}").sample(others, min(random_ones, len(others)))
    return (*always, *drawn)


def make_rule(
    name: str,
    macs: Mapping[int, int],
    seed: int,
    *,
    anchors: Sequence[int],
    stitches: int = 1,
    group_width: float | None = None,
    groups: int | None = None,
    bias: float = 0.0,
    scores: Mapping[int, float] | None = None,
) -> Rule:
    """Make the function from a step to the stitches that it trains.

    Args:
        name: one of `RULES`.
        macs: the macs of each stitch that may be drawn, by its id.
        seed: the seed of the run.
        anchors: the ids of the anchors, the largest first: `"sandwich"` always trains the first and the last of them,
            `"anchors"` all.
        stitches: the number of stitches of a step; for those two rules, besides the anchors.
        group_width: the width of groups of the resource-constrained rule, as in `groups_by_macs`.
        groups: the number of its groups, instead of a width.
        bias: its preference for expensive groups.
        scores: the scores of the importance-weighted rule, one for every stitch.

    Returns:
        A function of the step that returns distinct ids, the largest anchor first if it always trains.

    Raises:
        ValueError: if the rule is unknown, or scores are missing, negative or all zero.

    Examples:
        >>> rule = make_rule("sandwich", {0: 10, 1: 30, 2: 20}, seed=0, anchors=[1, 0])
        >>> rule(0)
        (1, 0, 2)
    """
    ids = sorted(macs)
    if name in ("sandwich", "anchors"):
        always = tuple(anchors) if name == "anchors" else tuple(dict.fromkeys((anchors[0], anchors[-1])))
        return lambda step: sandwich(ids, always, seed, step, stitches)
    if name == "uniform":
        draw: Callable[[int, int], int] = lambda run_seed, step: uniform(ids, run_seed, step)  # noqa: E731
    elif name == "resource":
        grouped = groups_by_macs(macs, group_width if groups or group_width else GROUP_WIDTH, groups)
        if len(grouped) == 1 < len(ids):
            _logger.warning("all %d stitches fall into one group: resource draws as uniform. Set groups.", len(ids))
        draw = lambda run_seed, step: resource_constrained(grouped, run_seed, step, bias)  # noqa: E731
    elif name == "importance":
        weights = _scores(scores, ids)
        draw = lambda run_seed, step: importance_weighted(weights, run_seed, step)  # noqa: E731
        ids = [i for i in ids if weights[i] > 0]
    else:
        raise ValueError(f"sampling must be one of {', '.join(map(repr, RULES))}, got {name!r}.")

    def rule(step: int) -> tuple[int, ...]:
        distinct: list[int] = []
        attempt = 0
        while len(distinct) < min(stitches, len(ids)):
            drawn = draw(seed if attempt == 0 else derive(seed, "again", attempt), step)
            attempt += 1
            if drawn not in distinct:
                distinct.append(drawn)
        return tuple(distinct)

    return rule


def _scores(scores: Mapping[int, float] | None, ids: Sequence[int]) -> dict[int, float]:
    """Check the scores of exactly these stitches."""
    scores = scores or {}
    missing = [i for i in ids if i not in scores]
    bad = [i for i in ids if i in scores and not (math.isfinite(scores[i]) and scores[i] >= 0)]
    if missing or bad or sum(scores[i] for i in ids) <= 0:
        what = (
            f"stitches {missing[:5]} have none"
            if missing
            else f"those of {bad[:5]} are negative or not finite"
            if bad
            else "all are 0"
        )
        raise ValueError(
            f"importance sampling needs a score of 0 or more for every stitch: {what}. Set scores: {{id: score}}."
        )
    return {i: float(scores[i]) for i in ids}
