"""The choice of a stitch within a budget."""

from __future__ import annotations

from collections.abc import Iterable

from ..network.stitchable import StitchableNetwork
from ..network.weights import cached_fingerprint
from ..plan.frontier import best_known, best_within
from ..plan.results import Row


def select(
    model: StitchableNetwork,
    results: Iterable[Row] | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency_ms: float | None = None,
    memory_mb: float | None = None,
    batch_size: int | None = None,
    score: str | None = None,
) -> int:
    """Select the best stitch within all budgets, which need not be the nearest in cost.

    Args:
        model: the network.
        results: the rows of `evaluate` (and `profile`); default those of `stitch_table`. If no stitch was evaluated,
            the accuracies that the authors published (`published_top1`) take their place: they hold for the authors'
            weights.
        macs: the limit of multiply-adds per image, or per text of the network's `length`.
        params: the limit of parameters that the stitch holds.
        latency_ms: the limit of milliseconds per call, as measured by `profile`.
        memory_mb: the limit of memory in MB, as measured by `profile`.
        batch_size: the number of images in the call that `latency_ms` limits, one of the measured batch sizes;
            default that of each row's own `latency_ms`.
        score: the key of the score, in the direction that is better for it (`abs_rel` is minimised); default the
            first that a row has of `top1`, `miou`, `delta1` and the other metrics.

    Returns:
        The stitch_id.

    Raises:
        ValueError: if there is no budget, no stitch fits, an accuracy or quantity is unknown, the batch size was not
            measured, or the rows belong to other weights.

    Examples:
        >>> import timm_stitch
        >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
        >>> timm_stitch.select(model, macs=8e8)  # by the accuracies that its authors published
        6
    """
    budgets = {"macs": macs, "params": params, "latency_ms": latency_ms, "memory_mb": memory_mb}
    if results is None:
        rows = model.table_with(model.results.check())
        return int(best_known(rows, budgets, score, batch_size)["stitch_id"])
    measured = list(results)
    check_weights(model, measured, "these results")
    own = {row["stitch_id"]: row for row in model.stitch_table()}
    unknown = [row.get("stitch_id") for row in measured if row.get("stitch_id") not in own]
    if unknown or not measured:
        raise ValueError(f"results must be rows of stitches in the plan, got stitches {unknown[:6]}.")
    limits = {name: limit for name, limit in budgets.items() if limit is not None}
    rows = [own[row["stitch_id"]] | dict(row) for row in measured]
    return int(best_within(rows, limits, score, batch_size)["stitch_id"])


def check_weights(model: StitchableNetwork, rows: Iterable[Row], what: str) -> None:
    """Refuse rows of other weights than the network has.

    Raises:
        ValueError: beginning with `what`, a plural such as "these results".
    """
    weights = {row["weights"] for row in rows if row.get("weights")}
    if weights and weights != {cached_fingerprint(model)}:
        raise ValueError(
            f"{what} belong to other weights ({', '.join(sorted(map(str, weights)))}) than the network now has: "
            "evaluate it again."
        )
