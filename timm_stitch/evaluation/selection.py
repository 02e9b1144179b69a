"""Which stitch to run within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..network.stitchable import StitchableNetwork
from ..network.weights import cached_fingerprint
from ..plan.frontier import best_known, best_within


def select(
    model: StitchableNetwork,
    results: Iterable[Mapping[str, Any]] | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency_ms: float | None = None,
    memory_mb: float | None = None,
    batch_size: int | None = None,
    score: str = "top1",
) -> int:
    """The best stitch within all given budgets, never merely the nearest in cost.

    Args:
        model: the network.
        results: rows from `evaluate` (and `profile`); by default what the network's own table knows,
            and of the authors' networks what they published (`published_top1`) if no stitch has been
            evaluated: a guide that holds for their weights.
        macs: the most multiply-adds for one image.
        params: the most parameters that the stitch may hold.
        latency_ms: the most milliseconds of one call, as measured by `profile`.
        memory_mb: the most memory in MB, as measured by `profile`.
        batch_size: of how many images the call is that may take `latency_ms`, one of the sizes that were measured;
            default the one that each row's `latency_ms` is of.
        score: what to maximise.

    Returns:
        The stitch_id.

    Raises:
        ValueError: if no budget is given, nothing fits, accuracy or a quantity is not known, the batch size was
            not measured, or the rows belong to other weights.
    """
    budgets = {"macs": macs, "params": params, "latency_ms": latency_ms, "memory_mb": memory_mb}
    if results is None:
        model.results.check()
        return int(best_known(model.stitch_table(), budgets, score, batch_size)["stitch_id"])
    measured = list(results)
    check_weights(model, measured, "these results")
    own = {row["stitch_id"]: row for row in model.stitch_table()}
    unknown = [row.get("stitch_id") for row in measured if row.get("stitch_id") not in own]
    if unknown or not measured:
        raise ValueError(f"results hold stitches {unknown[:6]} that the plan does not have, or none at all.")
    given = {name: most for name, most in budgets.items() if most is not None}
    rows = [own[row["stitch_id"]] | dict(row) for row in measured]
    return int(best_within(rows, given, score, batch_size)["stitch_id"])


def check_weights(model: StitchableNetwork, rows: Iterable[Mapping[str, Any]], what: str) -> None:
    """Refuse rows that are of other weights than the network has.

    Raises:
        ValueError: naming `what` they are.
    """
    marks = {row["weights"] for row in rows if row.get("weights")}
    if marks and marks != {cached_fingerprint(model)}:
        belong = "belong" if what.endswith("s") else "belongs"
        raise ValueError(
            f"{what} {belong} to other weights ({', '.join(sorted(map(str, marks)))}) than the network now has: "
            "evaluate it again."
        )
