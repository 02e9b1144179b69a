"""The controller under recorded load: it holds its target where a fixed stitch cannot, and does not flutter."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from timm_stitch import LatencyController
from timm_stitch.network.weights import fingerprint

ROWS = [
    {"stitch_id": i, "latency_ms": ms, "top1": top1}
    for i, (ms, top1) in enumerate([(4, 70), (6, 74), (9, 77), (14, 80), (20, 82), (12, 71)])
]


RECORDED = [(2.8, 71.7), (5.3, 73.2), (8.8, 75.7), (17.0, 78.6)]  # of the quickstart's network, batch 64


class Clockless:
    """Stands for a network: what it says is which stitch ran."""

    def __call__(self, images, stitch_id):
        return stitch_id

    def stitch_table(self):
        return ROWS


def drive(controller, slowdowns, noise=0.03, seed=0):
    """The stitches and latencies of requests on a machine that slows down as given."""
    rng, ran, took = random.Random(seed), [], []
    for slow in slowdowns:
        stitch_id = controller.stitch_id
        ms = ROWS[stitch_id]["latency_ms"] * slow * rng.uniform(1 - noise, 1 + noise)
        ran.append(stitch_id)
        took.append(ms)
        controller.observe(ms)
    return ran, took


def test_it_holds_the_target_while_load_comes_and_goes():
    load = [1.0] * 100 + [2.3] * 100 + [1.2] * 100
    controller = LatencyController(Clockless(), target_ms=21)
    ran, took = drive(controller, load)
    within = sum(ms <= 21 for ms in took) / len(took)
    assert within > 0.97
    for fixed in (4, 3):  # the best for an idle machine, and the next
        held = sum(ROWS[fixed]["latency_ms"] * slow <= 21 for slow in load) / len(load)
        assert within > held
    accuracy = sum(ROWS[i]["top1"] for i in ran) / len(ran)
    assert accuracy > 77  # the best fixed stitch that always holds it, 2, has 77 ... and 9 * 2.3 = 20.7
    assert ran[99] == 4  # all of the target while there is room
    assert 5 not in ran  # never one off the frontier


def test_under_recorded_load_no_fixed_stitch_does_better():
    """How much slower than profiled requests were while another process loaded a core of two, on and off.

    Recorded by `examples/under_load.py --trace`.
    """
    load = json.loads((Path(__file__).parents[1] / "recorded_load.json").read_text())
    rows = [{"stitch_id": i, "latency_ms": ms, "top1": t} for i, (ms, t) in enumerate(RECORDED)]
    for target in (21.5, 23.0):  # at 28.8 ms stitch 2 holds it with and without load
        controller = LatencyController(Clockless(), target, rows=rows)
        ran, within = [], 0
        for slow in load:
            ran.append(controller.stitch_id)
            ms = rows[controller.stitch_id]["latency_ms"] * slow
            within += ms <= target
            controller.observe(ms)
        accuracy = sum(rows[i]["top1"] for i in ran) / len(ran)
        for row in rows:
            held = sum(row["latency_ms"] * slow <= target for slow in load)
            assert held < within or row["top1"] < accuracy, f"stitch {row['stitch_id']} at {target} ms"
        assert within > 0.85 * len(load)


def test_it_does_not_flutter():
    controller = LatencyController(Clockless(), target_ms=20.5)
    ran, _ = drive(controller, [1.0 + 0.02 * (-1) ** i for i in range(300)])
    changes = sum(a != b for a, b in pairwise(ran))
    assert changes <= 2


def test_it_goes_down_at_once_and_up_with_patience():
    controller = LatencyController(Clockless(), target_ms=21, patience=5, window=4)
    assert controller.stitch_id == 4
    assert controller.observe(60) == 1  # three times slower: 6 ms takes 18
    steps = []
    while controller.stitch_id != 3:  # 20 ms leave less than a tenth of the target free
        steps.append(controller.observe(ROWS[controller.stitch_id]["latency_ms"]))
        assert len(steps) < 100
    assert len(steps) >= 5
    assert [i for i, _ in zip(steps, range(4), strict=False)] == [1] * 4


def test_the_fastest_where_nothing_holds_and_a_call():
    controller = LatencyController(Clockless(), target_ms=1)
    assert controller.stitch_id == 0
    assert controller(None) == 0
    assert controller.slowdown < 1  # nothing was computed


def test_what_is_not_known_is_said():
    with pytest.raises(ValueError, match=r"no top1"):
        LatencyController(Clockless(), 20, rows=[{"stitch_id": 0, "latency_ms": 3.0}])
    with pytest.raises(ValueError, match=r"no latency_ms .*timm_stitch\.profile"):
        LatencyController(Clockless(), 20, rows=[{"stitch_id": 0, "top1": 70.0}])
    with pytest.raises(ValueError, match="rows is empty"):
        LatencyController(Clockless(), 20, rows=[])
    with pytest.raises(ValueError, match="target_ms=-1"):
        LatencyController(Clockless(), -1)


def test_rows_of_other_weights_are_refused(model):
    rows = [{**row, "weights": fingerprint(model)} for row in ROWS[:4]]
    assert LatencyController(model, 10, rows=rows).stitch_id == 2
    model.remember(rows)
    assert LatencyController(model, 10).stitch_id == 2
    with torch.no_grad():
        model.anchors[0].blocks[0].mlp.fc1.weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"these rows belong to other weights .*evaluate it again"):
        LatencyController(model, 10, rows=rows)
    with pytest.raises(ValueError, match="what is known of this network belongs to other weights"):
        LatencyController(model, 10)
    assert LatencyController(model, 10, rows=ROWS[:4]).stitch_id == 2  # which say nothing
    assert LatencyController(Clockless(), 10, rows=rows).stitch_id == 2  # which has none
