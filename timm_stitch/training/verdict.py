"""A report on a trained network besides its score: anchors that fell, and stitches without a benefit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..plan.frontier import pareto_frontier
from ..plan.results import Row

FELL = 0.1  # points of top-1


def training_report(rows: Sequence[Row], before: Mapping[int, float]) -> list[str]:
    """Report the failures of a training run, one line each.

    Args:
        rows: the rows of all stitches after training, from `evaluate`.
        before: the top-1 in per cent of each anchor before training, by its stitch id.
    """
    lines = []
    fallen = [row for row in rows if row["stitch_id"] in before and row["top1"] < before[row["stitch_id"]] - FELL]
    if fallen:
        changes = ", ".join(
            f"{row['name']} from {before[row['stitch_id']]:.2f} to {row['top1']:.2f} %" for row in fallen
        )
        lines.append(
            f"{len(fallen)} of {len(before)} anchors lost accuracy in training: {changes}. A smaller anchor_lr_scale, "
            "or tune='stitches', preserves it."
        )
    between = {row["stitch_id"] for row in rows} - {*before}
    if between and not between & {row["stitch_id"] for row in pareto_frontier(rows)}:
        lines.append(
            f"all {len(between)} stitches between anchors are beaten by others of no higher cost: so far the anchors "
            "alone do as well. Train longer, or stitch anchors that differ more in cost."
        )
    return lines
