"""Times of calls with several numbers of images: what a row says of them, and that no table mixes machines."""

import pytest

from timm_stitch.plan.frontier import best_known, best_within
from timm_stitch.plan.results import Results
from timm_stitch.plan.timings import at_batch_size, call_times

HERE, THERE = {"profiled_on": "here", "precision": "fp32"}, {"profiled_on": "there", "precision": "fp32"}
KNOWN = [
    {"stitch_id": 0, "latency_ms": 3.0, "latency_spread_ms": 0.1, "latency_ms_batch_1": 3.0, "batch_size": 1,
     "memory_mb": 5.0, "top1": 70.0, **HERE},
    {"stitch_id": 1, "latency_ms": 6.0, "latency_ms_batch_1": 6.0, "latency_ms_batch_8": 12.0, "batch_size": 1, **HERE},
]  # fmt: skip


def test_a_row_says_how_long_calls_take():
    assert call_times({"latency_ms": 3.0}) == {1: 3.0}
    row = {
        "latency_ms_batch_8": 9.0,
        "latency_ms": 2.0,
        "batch_size": 4,
        "latency_ms_batch_x": 1,
        "latency_ms_batch_0": 1,
    }
    assert list(call_times(row).items()) == [(4, 2.0), (8, 9.0)]
    assert call_times({"latency_ms": None, "latency_ms_batch_2": None}) == {}


def test_further_batch_sizes_are_added_and_their_own_figures_replaced():
    newer = {
        "stitch_id": 0,
        "latency_ms": 9.0,
        "latency_ms_batch_8": 9.0,
        "batch_size": 8,
        "latency_error": 0.1,
        **HERE,
    }
    row = Results.of(KNOWN, "w").updated(Results.of([newer], "w")).rows[0]
    assert call_times(row) == {1: 3.0, 8: 9.0}
    assert row["top1"] == 70.0
    assert "latency_spread_ms" not in row  # which was that of one image
    assert "memory_mb" not in row


@pytest.mark.parametrize("other", [THERE, {**HERE, "precision": "bf16"}, {}])
def test_no_table_mixes_devices_or_precisions(other):
    newer = {"stitch_id": 0, "latency_ms": 1.0, "latency_ms_batch_1": 1.0, "batch_size": 1, **other}
    rows = Results.of(KNOWN, "w").updated(Results.of([newer], "w")).rows
    assert rows == {0: {"top1": 70.0, **{k: v for k, v in newer.items() if k != "stitch_id"}}, 1: {}}
    assert Results.of([*KNOWN, newer], "w").rows == rows
    back = Results.of(KNOWN, "w").updated(Results.of([{"stitch_id": 1, "top1": 71.0}], "w"))
    assert back.rows[1]["latency_ms"] == 6.0  # rows without times drop none


def test_choosing_by_the_time_of_a_batch_size():
    rows = [
        {"stitch_id": i, "top1": 70.0 + i, "latency_ms": 1.0 + i, "latency_ms_batch_1": 1.0 + i,
         "latency_ms_batch_8": 10.0 * (1 + i)}
        for i in range(3)
    ]  # fmt: skip
    assert best_within(rows, {"latency_ms": 20.0})["stitch_id"] == 2
    assert best_within(rows, {"latency_ms": 20.0}, batch_size=8)["stitch_id"] == 1
    assert best_known([*rows, {"stitch_id": 3}], {"latency_ms": 2.5}, batch_size=1)["stitch_id"] == 1
    with pytest.raises(ValueError, match="batch_size=8 applies only to a latency: give latency_ms= with it"):
        best_within(rows, {"macs": 3.0}, batch_size=8)
    known = r"stitch 0 was not measured at batch_size=4, only at 1, 8: .*profile\(model, batch_sizes=\[1, 4, 8\]\)"
    with pytest.raises(ValueError, match=known):
        best_known(rows, {"latency_ms": 5.0}, batch_size=4)
    with pytest.raises(ValueError, match=r"batch_size=4, at no other either: .*batch_sizes=\[4\]"):
        best_known([{"stitch_id": 0, "top1": 1.0}], {"latency_ms": 5.0}, batch_size=4)
    for odd in (0, True, 2.5, 5000):
        with pytest.raises(ValueError, match="batch_size must be a whole number from 1 to 4,096, got"):
            at_batch_size(rows[0], odd)
