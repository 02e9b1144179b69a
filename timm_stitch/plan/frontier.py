"""The Pareto frontier of evaluated stitches, and the best of them within budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .metrics import main_score, metric_of
from .timings import Row, at_batch_size


def pareto_frontier(rows: Iterable[Row], cost: str = "macs", score: str | None = None) -> list[Row]:
    """Select the rows that no other row beats at its cost.

    Args:
        rows: dicts that hold `cost` (less is better) and `score`, from `evaluate` or `stitch_table`.
        cost: the key of the cost.
        score: the key of the score, in the direction that is better for it (`abs_rel` is minimised); default the
            first that a row has of `top1`, `miou`, `delta1` and the other metrics.

    Returns:
        The rows for which no other is at least as good in both and better in one, cheapest first. Of rows that are
        equal in both, the first.

    Raises:
        ValueError: if a row lacks either.

    Examples:
        >>> rows = [{"macs": macs, "top1": top1} for macs, top1 in [(4, 81.0), (2, 75.0), (3, 74.0)]]
        >>> timm_stitch.pareto_frontier(rows)
        [{'macs': 2, 'top1': 75.0}, {'macs': 4, 'top1': 81.0}]
    """
    rows = list(rows)
    score = score or main_score(rows)
    for row in rows:
        _check_number(row, cost)
        _check_number(row, score)
    metric, best = metric_of(score), -math.inf
    frontier = []
    for row in sorted(rows, key=lambda row: (row[cost], -metric.gain(row[score]))):
        if metric.gain(row[score]) > best:
            best = metric.gain(row[score])
            frontier.append(row)
    return frontier


def best_within(
    rows: Iterable[Row], budgets: Mapping[str, float], score: str | None = None, batch_size: int | None = None
) -> Row:
    """Find the row of the best score within all budgets; of equal scores the cheapest.

    Args:
        rows: dicts that hold `score` and every budgeted quantity.
        budgets: the limits by quantity, e.g. `{"macs": 3e9}`; at least one.
        score: the key of the score, as in `pareto_frontier`.
        batch_size: the number of images in the call that `latency_ms` limits; default that of each row's own figure.

    Raises:
        ValueError: if there is no budget, a row lacks a quantity, or no row fits.
    """
    rows = list(rows)
    if not budgets:
        raise ValueError("give at least one budget: macs=, params=, latency_ms= or memory_mb=.")
    if batch_size is not None:
        if "latency_ms" not in budgets:
            raise ValueError(f"batch_size={batch_size} applies only to a latency: give latency_ms= with it.")
        rows = [at_batch_size(row, batch_size) for row in rows]
    for name, limit in budgets.items():
        if not (isinstance(limit, (int, float)) and limit > 0):
            raise ValueError(f"{name} must be positive, got {limit!r}.")
        for row in rows:
            _check_number(row, name)
    score = score or main_score(rows)
    for row in rows:
        _check_number(row, score)
    fitting = [row for row in rows if all(row[name] <= limit for name, limit in budgets.items())]
    if not fitting:
        least = {name: min(row[name] for row in rows) for name in budgets}
        raise ValueError(f"no stitch fits {dict(budgets)}: the smallest values, each by itself, are {least}.")
    metric = metric_of(score)
    return max(fitting, key=lambda row: (metric.gain(row[score]), *(-row[name] for name in budgets)))


def with_score(rows: Iterable[Row], score: str | None = None) -> list[Row]:
    """Select the rows whose score is known.

    If no row has it, the figure that the authors published (`published_top1`, `published_miou`) takes its place.

    Args:
        rows: the rows.
        score: the key of the score, as in `pareto_frontier`.
    """
    rows = list(rows)
    score = score or main_score(rows)
    known = [row for row in rows if row.get(score) is not None]
    published = f"published_{score}"
    return known or [{**row, score: row[published]} for row in rows if row.get(published) is not None]


def best_known(
    rows: Iterable[Row], budgets: Mapping[str, float | None], score: str | None = None, batch_size: int | None = None
) -> Row:
    """Find the best row within budgets among those whose score is known.

    Args:
        rows: the rows of `stitch_table`.
        budgets: the limits by quantity; None for no limit.
        score, batch_size: the arguments of `best_within`.

    Raises:
        ValueError: if there is no budget, no row fits, or a score or quantity is unknown.
    """
    rows = list(rows)
    others = "" if score else ", nor another metric"
    score = score or main_score(rows)
    known = with_score(rows, score)
    if not known:
        raise ValueError(
            f"no stitch of this network has a known {score}{others}: evaluate it, "
            "select(model, timm_stitch.evaluate(model, loader), macs=...), or timm-stitch eval NET --data-dir … "
            "--save; or load what timm_stitch.save_pretrained wrote with its rows: model.save_pretrained and Trainer "
            "keep none."
        )
    limits = {name: limit for name, limit in budgets.items() if limit is not None}
    return best_within(known, limits, score, batch_size)


def frontier_area(rows: Iterable[Row], low: float, high: float, cost: str = "macs", score: str | None = None) -> float:
    """Summarise a curve by one figure: the best score at or below a cost, averaged over the log of the cost.

    Args:
        rows, cost, score: the arguments of `pareto_frontier`.
        low, high: the ends of the range of costs, in the unit of `cost`.

    Raises:
        ValueError: if no row is as cheap as `low`, or the range is empty.
    """
    rows = list(rows)
    score = score or main_score(rows)
    frontier = pareto_frontier(rows, cost, score)
    if not 0 < low < high or not frontier or frontier[0][cost] > low:
        raise ValueError(f"low must be positive, below high and the {cost} of a row at least, got {low} and {high}.")
    area, at, value = 0.0, math.log(low), -math.inf
    for row in frontier:
        if row[cost] > high:
            break
        if row[cost] > low:
            area += value * (math.log(row[cost]) - at)
            at = math.log(row[cost])
        value = row[score]
    return (area + value * (math.log(high) - at)) / (math.log(high) - math.log(low))


def _check_number(row: Row, name: str) -> None:
    value = row.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
        return
    problem = f"has no {name} yet" if value is None else f"has {name}={value!r}, which is not a number"
    if name in ("latency_ms", "memory_mb"):
        how = "measure it by timm_stitch.profile, or timm-stitch profile NET --save"
    elif name in ("macs", "params"):
        how = "take the rows of model.stitch_table()"
    else:
        how = "evaluate it by timm_stitch.evaluate, or timm-stitch eval NET --data-dir … --save"
    raise ValueError(f"stitch {row.get('stitch_id', '?')} {problem}: {how}.")
