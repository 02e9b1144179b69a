"""A report on a trained network besides its score: anchors that fell, and stitches without a benefit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..plan.frontier import pareto_frontier
from ..plan.metrics import main_score, metric_of
from ..plan.results import Row

FELL = 0.1  # points of a percentage
FELL_BY = 0.005  # of the value before, of a metric that is none


def training_report(rows: Sequence[Row], before: Mapping[int, float]) -> list[str]:
    """Report the failures of a training run, one line each.

    Args:
        rows: the rows of all stitches after training, from `evaluate`.
        before: the score of each anchor before training, by its stitch id.
    """
    lines = []
    score = main_score(rows)
    metric = metric_of(score)

    def has_fallen(row: Row) -> bool:
        old = before.get(row["stitch_id"])
        if old is None:
            return False
        return metric.gain(old) - metric.gain(row[score]) > (FELL if metric.percent else FELL_BY * abs(old))

    fallen = [row for row in rows if has_fallen(row)]
    if fallen:
        digits, unit = metric.digits, " %" if metric.percent else ""
        changes = ", ".join(
            f"{row['name']} from {before[row['stitch_id']]:.{digits}f} to {row[score]:.{digits}f}{unit}"
            for row in fallen
        )
        lines.append(
            f"{len(fallen)} of {len(before)} anchors lost accuracy in training: {changes}. A smaller anchor_lr_scale, "
            "or tune='stitches', preserves it."
        )
    between = [row for row in rows if row["stitch_id"] not in before]
    best = {row["stitch_id"] for row in pareto_frontier(rows, score=score)}
    if between and not any(row["stitch_id"] in best for row in between):

        def is_beaten(row: Row) -> bool:
            gain = metric.gain(row[score])
            return any(other["macs"] <= row["macs"] and metric.gain(other[score]) > gain for other in rows)

        rank = "beaten by" if all(map(is_beaten, between)) else "no better than"  # some are tied
        lines.append(
            f"all {len(between)} stitches between anchors are {rank} others of no higher cost: so far the anchors "
            "alone do as well. Train longer, or stitch anchors that differ more in cost."
        )
    return lines
