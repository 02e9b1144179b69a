"""What is said after training of anchors that fell and stitches that are not worth having."""

import torch
from training_run import BASE_QUIET, Noisy, network

import timm_stitch
from timm_stitch.training.verdict import training_report

ROWS = [
    {"stitch_id": 0, "name": "small", "macs": 1.0, "top1": 80.0},
    {"stitch_id": 1, "name": "large", "macs": 4.0, "top1": 90.0},
    {"stitch_id": 2, "name": "small + large", "macs": 2.0, "top1": 85.0},
    {"stitch_id": 3, "name": "small + large", "macs": 3.0, "top1": 84.0},
]


def test_a_network_that_kept_its_anchors_and_has_a_stitch_to_choose():
    assert training_report(ROWS, {0: 80.05, 1: 89.0}) == []


def test_anchors_that_fell_are_named_with_both_figures():
    (line,) = training_report(ROWS, {0: 81.5, 1: 90.0})
    assert line.startswith("1 of 2 anchors lost accuracy in training: small from 81.50 to 80.00 %. ")


def test_stitches_that_are_all_beaten():
    beaten = [row | {"top1": 79.0} if row["stitch_id"] > 1 else row for row in ROWS]
    (line,) = training_report(beaten, {0: 80.0, 1: 90.0})
    assert line.startswith("all 2 stitches between anchors are beaten")


def test_stitches_that_are_tied_are_not_called_beaten():
    (line,) = training_report([row | {"top1": 80.0} for row in ROWS], {0: 80.0, 1: 80.0})
    assert line.startswith("all 2 stitches between anchors are no better than others of no higher cost: so far")


def test_a_run_reports_fallen_anchors_at_its_end(caplog, tmp_path, monkeypatch):
    def evaluate(model, loader, stitch_ids):
        top1 = 90.0 if stitch_ids else 80.0  # the anchors alone are evaluated before the first step
        rows = model.stitch_table()
        return [row | {"top1": top1} for row in rows if stitch_ids is None or row["stitch_id"] in stitch_ids]

    monkeypatch.setattr("timm_stitch.training.trainer.evaluate", evaluate)
    values = {"epochs": 1, "batch_size": 32, "evaluate_every": 1, "output": str(tmp_path)}
    run, data = timm_stitch.TrainConfig.from_dict(BASE_QUIET | values), Noisy()
    timm_stitch.train(network(), run, train_data=data, val_data=data, progress=False)
    said = [record.message for record in caplog.records if record.name == "timm_stitch.training.trainer"]
    assert [line[:12] for line in said] == ["3 of 3 ancho", "all 14 stitc"], said
    (kept,) = (tmp_path / "checkpoints").glob("step-*.pt")
    assert torch.load(kept, weights_only=True)["anchors"] == dict.fromkeys(range(3), 90.0)
