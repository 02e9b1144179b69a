"""Rows are ranked by whichever metric they have, in the direction that is better for it."""

import math

import pytest

from timm_stitch.plan.frontier import best_known, best_within, frontier_area, pareto_frontier, with_score
from timm_stitch.plan.metrics import METRICS, main_score, metric_of

ERRORS = [
    {"stitch_id": i, "macs": macs, "abs_rel": error} for i, macs, error in [(0, 1, 0.3), (1, 2, 0.4), (2, 4, 0.1)]
]


def test_an_error_is_minimised() -> None:
    assert [row["stitch_id"] for row in pareto_frontier(ERRORS)] == [0, 2]
    assert best_within(ERRORS, {"macs": 3})["stitch_id"] == 0
    assert best_within(ERRORS, {"macs": 9}, "abs_rel")["stitch_id"] == 2
    assert best_known(ERRORS, {"macs": 9})["stitch_id"] == 2
    assert frontier_area(ERRORS, 1, 16) == pytest.approx((0.3 + 0.1) / 2)


def test_of_equal_errors_the_cheapest_is_best() -> None:
    rows = [{"stitch_id": 0, "macs": 2, "rmse": 1.0}, {"stitch_id": 1, "macs": 1, "rmse": 1.0}]
    assert best_within(rows, {"macs": 2})["stitch_id"] == 1
    assert [row["stitch_id"] for row in pareto_frontier(rows)] == [1]


def test_the_main_score_is_the_first_known_metric() -> None:
    assert main_score([]) == "top1"
    assert main_score([{"macs": 1, "miou": None, "top1": None}]) == "top1"
    assert main_score([{"loss": 1.0}, {"loss": 1.0, "miou": 40.0}]) == "miou"
    assert main_score([{"abs_rel": 0.1, "delta1": 90.0}]) == "delta1"
    assert main_score([{"published_miou": 40.0, "macs": 1}]) == "miou"
    assert main_score([{"published_miou": 40.0, "top1": 1.0}]) == "top1"


def test_published_figures_stand_in_where_none_was_measured() -> None:
    rows = [{"stitch_id": 0, "published_miou": 45.0}, {"stitch_id": 1}]
    assert with_score(rows) == [{"stitch_id": 0, "published_miou": 45.0, "miou": 45.0}]
    measured = [{"stitch_id": 1, "miou": 40.0}, rows[0]]
    assert with_score(measured) == measured[:1]


def test_rows_without_the_score_are_refused() -> None:
    with pytest.raises(ValueError, match="stitch 1 has miou=nan, which is not a number"):
        pareto_frontier([{"stitch_id": 0, "macs": 1, "miou": 1.0}, {"stitch_id": 1, "macs": 2, "miou": math.nan}])


def test_directions() -> None:
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"abs_rel", "rmse", "silog", "perplexity", "loss"}
    assert metric_of("f1").higher_is_better
