"""What is to be said of a trained network beside its score: anchors that fell, stitches that are not worth having."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..plan.frontier import pareto_frontier
from ..plan.results import Row

FELL = 0.1  # points of top-1


def verdict(rows: Sequence[Row], before: Mapping[int, float]) -> list[str]:
    """A line for each thing that training did not do well.

    Args:
        rows: of all stitches after training, as `evaluate` gives them.
        before: top-1 in percent of each anchor before training, by its stitch id.
    """
    lines = []
    fallen = [row for row in rows if row["stitch_id"] in before and row["top1"] < before[row["stitch_id"]] - FELL]
    if fallen:
        said = ", ".join(f"{row['name']} from {before[row['stitch_id']]:.2f} to {row['top1']:.2f} %" for row in fallen)
        lines.append(
            f"{len(fallen)} of {len(before)} anchors fell by training: {said}. A smaller anchor_lr_scale, or "
            "tune='stitches', keeps what they were."
        )
    between = {row["stitch_id"] for row in rows} - {*before}
    if between and not between & {row["stitch_id"] for row in pareto_frontier(rows)}:
        lines.append(
            f"all {len(between)} stitches between anchors are beaten by others that are no dearer: as it is, the "
            "anchors alone do as well. Train longer, or stitch anchors that lie further apart."
        )
    return lines
