"""Which stitches to train next: pure functions of the seed and the step, the same on every process.

Nothing is remembered between steps, so a resumed run, or one on another number of processes, trains
the same stitches. Sources: SN-Net (arXiv:2302.06586, uniform); SN-Netv2 (arXiv:2307.00154,
resource-constrained); universally slimmable networks (arXiv:1903.05134, the sandwich rule); ESTA
(arXiv:2311.17352, importance).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from ..data.seeding import derive

RULES = ("uniform", "resource", "sandwich", "anchors", "importance")
GROUP_WIDTH = 1e9  # SN-Netv2 draws from groups one of its GFLOPs wide

Rule = Callable[[int], tuple[int, ...]]


def uniform(stitch_ids: Sequence[int], seed: int, step: int) -> int:
    """One stitch with equal chances (SN-Net's rule), a pure function of seed and step.

    Deviation: the authors draw another stitch on every process; here all processes agree, so a resumed
    or a differently distributed run trains the same stitches.
    """
    return random.Random(f"{seed}/{step}").choice(stitch_ids)


def groups_by_macs(
    macs: Mapping[int, int], width: float | None = None, count: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Stitches in groups of like macs, cheapest first; empty groups are left out.

    Args:
        macs: of each stitch, by its id.
        width: of a group in macs: the first begins at 0, the next at the cheapest stitch that is more than
            `width` above the beginning of the last, and so on, as SN-Netv2 has it.
        count: instead of a width, how many groups of equal width between the cheapest and the most expensive stitch.

    Raises:
        ValueError: if there are no stitches, neither or both are given, or one is not positive.
    """
    if not macs or (width is None) == (count is None) or (width or count or 0) <= 0:
        raise ValueError(
            f"cannot group {len(macs)} stitches by width={width}, count={count}: expected one or more stitches, and "
            "either a positive width in macs (SN-Netv2: 1e9) or a positive number of groups."
        )
    ordered = sorted(macs, key=lambda i: (macs[i], i))
    found: list[list[int]] = [[] for _ in range(count or 1)]
    if width is not None:
        start = 0
        for stitch_id in ordered:
            if macs[stitch_id] - start > width:
                found.append([])
                start = macs[stitch_id]
            found[-1].append(stitch_id)
    else:
        low, high = macs[ordered[0]], macs[ordered[-1]]
        step = (high - low) / len(found) or 1
        for stitch_id in ordered:
            found[min(int((macs[stitch_id] - low) // step), len(found) - 1)].append(stitch_id)
    return tuple(tuple(group) for group in found if group)


def resource_constrained(groups: Sequence[Sequence[int]], seed: int, step: int, bias: float = 0.0) -> int:
    """A group with equal chances, then one of its stitches with equal chances (SN-Netv2).

    Args:
        groups: from `groups_by_macs`.
        seed: of the run.
        step: of the run.
        bias: from -1 to 1: chances of the groups change linearly with their rank, from `1 - bias` for
            the cheapest to `1 + bias` for the most expensive.
    """
    rng = random.Random(f"{seed}/{step}")
    last = max(len(groups) - 1, 1)
    weights = [1 + bias * (2 * i / last - 1) if len(groups) > 1 else 1.0 for i in range(len(groups))]
    return rng.choice(rng.choices(groups, weights)[0])


def importance_weighted(scores: Mapping[int, float], seed: int, step: int) -> int:
    """A stitch with chances in proportion to its score (the idea of ESTA; scores are fixed at the start)."""
    ids = sorted(scores)
    return random.Random(f"{seed}/{step}").choices(ids, [scores[i] for i in ids])[0]


def sandwich(
    stitch_ids: Sequence[int], always: Sequence[int], seed: int, step: int, random_ones: int
) -> tuple[int, ...]:
    """The stitches that every step trains, in the given order, and some of the others at random."""
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
    """The function from a step to the stitches that it trains.

    Args:
        name: one of `RULES`.
        macs: of each stitch that may be drawn, by its id.
        seed: of the run.
        anchors: ids of the anchors, the largest first: `"sandwich"` always trains the first and the last of
            them, `"anchors"` all.
        stitches: how many a step trains; for those two rules, how many besides the anchors.
        group_width: of the resource-constrained rule, as `width` in `groups_by_macs`.
        groups: of the same, instead of a width.
        bias: of the same.
        scores: of the importance-weighted rule, one for every stitch.

    Returns:
        A function of the step that gives distinct ids, with the largest anchor first where it always trains.

    Raises:
        ValueError: if the rule is unknown, or scores are missing, negative or all zero.
    """
    ids = sorted(macs)
    if name in ("sandwich", "anchors"):
        always = tuple(anchors) if name == "anchors" else tuple(dict.fromkeys((anchors[0], anchors[-1])))
        return lambda step: sandwich(ids, always, seed, step, stitches)
    if name == "uniform":
        draw: Callable[[int, int], int] = lambda run_seed, step: uniform(ids, run_seed, step)  # noqa: E731
    elif name == "resource":
        found = groups_by_macs(macs, group_width if groups or group_width else GROUP_WIDTH, groups)
        draw = lambda run_seed, step: resource_constrained(found, run_seed, step, bias)  # noqa: E731
    elif name == "importance":
        weights = _scores(scores, ids)
        draw = lambda run_seed, step: importance_weighted(weights, run_seed, step)  # noqa: E731
        ids = [i for i in ids if weights[i] > 0]
    else:
        raise ValueError(f"sampling={name!r} is unknown: expected one of {', '.join(map(repr, RULES))}.")

    def rule(step: int) -> tuple[int, ...]:
        found: list[int] = []
        attempt = 0
        while len(found) < min(stitches, len(ids)):
            drawn = draw(seed if attempt == 0 else derive(seed, "again", attempt), step)
            attempt += 1
            if drawn not in found:
                found.append(drawn)
        return tuple(found)

    return rule


def _scores(scores: Mapping[int, float] | None, ids: Sequence[int]) -> dict[int, float]:
    """Scores of exactly these stitches."""
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
