"""The Pareto frontier of evaluated stitches, and the best of them within budgets.

Rows are plain dicts as `evaluate` and `stitch_table` give them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .results import Row
from .timings import at_batch_size


def pareto_frontier(rows: Iterable[Row], cost: str = "macs", score: str = "top1") -> list[Row]:
    """The rows that no other row beats at its cost.

    Args:
        rows: dicts that hold `cost` (less is better) and `score` (more is better).
        cost, score: the names of the two.

    Returns:
        Those rows for which no other is at least as good in both and better in one, cheapest first; of
        rows equal in both, the first.

    Raises:
        ValueError: if a row lacks either.
    """
    rows = list(rows)
    for row in rows:
        _number(row, cost), _number(row, score)
    best = -math.inf
    frontier = []
    for row in sorted(rows, key=lambda row: (row[cost], -row[score])):
        if row[score] > best:
            best = row[score]
            frontier.append(row)
    return frontier


def best_within(
    rows: Iterable[Row], budgets: Mapping[str, float], score: str = "top1", batch_size: int | None = None
) -> Row:
    """The row of highest score among those within all budgets; of equals the cheapest.

    Args:
        rows: dicts that hold `score` and every budgeted quantity.
        budgets: the most that is allowed of each, e.g. `{"macs": 3e9}`; at least one.
        score: what to maximise.
        batch_size: of how many images the call is that may take `latency_ms`; default what a row's `latency_ms` is of.

    Raises:
        ValueError: if no budget is given, a row lacks a quantity, or nothing fits.
    """
    rows = list(rows)
    if not budgets:
        raise ValueError("give at least one budget: macs=, params=, latency_ms= or memory_mb=.")
    if batch_size is not None:
        if "latency_ms" not in budgets:
            raise ValueError(f"batch_size={batch_size} is that of a budget in time: give latency_ms= with it.")
        rows = [at_batch_size(row, batch_size) for row in rows]
    for name, most in budgets.items():
        if not (isinstance(most, (int, float)) and most > 0):
            raise ValueError(f"{name}={most!r} is no budget: expected a positive number.")
        for row in rows:
            _number(row, name)
    for row in rows:
        _number(row, score)
    fitting = [row for row in rows if all(row[name] <= most for name, most in budgets.items())]
    if not fitting:
        least = {name: min(row[name] for row in rows) for name in budgets}
        raise ValueError(f"no stitch fits {dict(budgets)}: the least that there is, one by one, is {least}.")
    return max(fitting, key=lambda row: (row[score], *(-row[name] for name in budgets)))


def with_score(rows: Iterable[Row], score: str = "top1") -> list[Row]:
    """The rows whose score is known.

    Where none has a `top1`, what the authors published for their weights (`published_top1`) stands in for it.
    """
    rows = list(rows)
    known = [row for row in rows if row.get(score) is not None]
    if known or score != "top1":
        return known
    return [{**row, score: row["published_top1"]} for row in rows if row.get("published_top1") is not None]


def best_known(
    rows: Iterable[Row], budgets: Mapping[str, float | None], score: str = "top1", batch_size: int | None = None
) -> Row:
    """The best row within budgets, of those `with_score`.

    Args:
        rows: of `stitch_table`.
        budgets: the most that is allowed of each; None for what is not limited.
        score: what to maximise.
        batch_size: as of `best_within`.

    Raises:
        ValueError: if no budget is given, nothing fits, or the score or a quantity is not known.
    """
    known = with_score(rows, score)
    if not known:
        raise ValueError(
            f"no stitch of this network has a known {score}, so none can be called the best: evaluate it, "
            "select(model, timm_stitch.evaluate(model, loader), macs=...)."
        )
    given = {name: most for name, most in budgets.items() if most is not None}
    return best_within(known, given, score, batch_size)


def frontier_area(rows: Iterable[Row], low: float, high: float, cost: str = "macs", score: str = "top1") -> float:
    """One figure for a curve: the best score at or below a cost, averaged over the log of the cost.

    Args:
        rows: as for `pareto_frontier`.
        low, high: the costs between which to average, in the unit of `cost`.
        cost, score: the names of the two.

    Raises:
        ValueError: if no row is as cheap as `low`, or the range is empty.
    """
    frontier = pareto_frontier(rows, cost, score)
    if not 0 < low < high or not frontier or frontier[0][cost] > low:
        raise ValueError(f"no row costs {low} or less, or {low} to {high} is no range: nothing to average from.")
    area, at, value = 0.0, math.log(low), -math.inf
    for row in frontier:
        if row[cost] > high:
            break
        if row[cost] > low:
            area += value * (math.log(row[cost]) - at)
            at = math.log(row[cost])
        value = row[score]
    return (area + value * (math.log(high) - at)) / (math.log(high) - math.log(low))


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        raise ValueError(
            f"stitch {row.get('stitch_id', '?')} has no {name} ({value!r}): it was neither measured nor published. "
            "Accuracy comes from timm_stitch.evaluate, latency and memory from timm_stitch.profile."
        )
    return value
