"""Dense networks are trained and evaluated as classifiers are: resumed bit for bit, by several processes, refusals."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_run import CLASSES, QUIET, Scenes, go, network, still, write_scenes
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from training_run import start_two

import timm_stitch
from timm_stitch.evaluation.scores import Targets
from timm_stitch.network.weights import fingerprint
from timm_stitch.training.checkpointing import Checkpoints
from timm_stitch.training.distillation import StitchLoss

RUN = Path(__file__).parents[1] / "dense_run.py"
GUIDED = {"sampling": "sandwich", "inplace_distillation": True, "ema_decay": 0.9}


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_training_lowers_the_loss_of_every_stitch(task):
    before = timm_stitch.evaluate(network(task), DataLoader(still(Scenes(task=task)), 8))
    net, log = go({"task": task, "epochs": 8, "sampling": "sandwich"})
    rows = timm_stitch.evaluate(net, DataLoader(still(Scenes(task=task)), 8))
    assert log["steps"] == 24
    assert all(row["loss"] < 0.8 * old["loss"] for row, old in zip(rows, before, strict=True))
    score = {"segmentation": "miou", "depth": "delta1"}[task]
    assert timm_stitch.pareto_frontier(rows) == timm_stitch.pareto_frontier(rows, score=score)
    assert timm_stitch.select(net, rows, macs=1e12) == max(rows, key=lambda row: row[score])["stitch_id"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_killed_and_resumed_equals_left_alone(task, tmp_path):
    write_scenes(tmp_path / "data", task)
    values = {"task": task, "data_dir": str(tmp_path / "data"), "crop_size": [32, 32], "checkpoint_steps": 1, **GUIDED}
    values |= {"epochs": 4, "batch_size": 6, "evaluate_every": 2}
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(RUN.parent.parent), str(RUN.parent)])}
    folder, rng, kills = tmp_path / "run" / "checkpoints", random.Random(0), 0
    while True:
        arguments = json.dumps(values | {"output": str(tmp_path / "run"), "resume": "auto"})
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RUN), arguments, str(tmp_path / "result.json")],
            env=env, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        if kills < 2:
            before = Checkpoints(folder).last
            while process.poll() is None and Checkpoints(folder).last == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.communicate()
            kills += 1
            continue
        process.communicate()
        assert process.returncode == 0
        break
    alone, _ = go(values | {"checkpoint_steps": None})
    assert json.loads((tmp_path / "result.json").read_text())["weights"] == fingerprint(alone)


def test_stopped_between_and_resumed(tmp_path):
    alone, _ = go(GUIDED | {"accumulate": 2})
    values = GUIDED | {"accumulate": 2, "output": str(tmp_path), "resume": "auto"}
    go(values | {"max_steps": 4})
    resumed, log = go(values)
    assert fingerprint(resumed) == fingerprint(alone)
    assert log["steps"] == 6


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    base = {"double": True, "sampling": "sandwich", "inplace_distillation": True, "epochs": 1}
    runs = [base | {"task": task, "result": str(tmp_path / f"{task}.json")} for task in ("segmentation", "depth")]
    start_two(RUN, json.dumps(runs), tmp_path / "none.json")
    for task in ("segmentation", "depth"):
        result = json.loads((tmp_path / f"{task}.json").read_text())
        weights = torch.load(tmp_path / f"{task}.json.pt")
        net, log = go(base | {"task": task})
        assert result["log"]["loss"] == pytest.approx(log["loss"], rel=1e-6)
        for key, tensor in net.state_dict().items():
            torch.testing.assert_close(weights[key], tensor, rtol=0, atol=1e-9)
        net.load_state_dict(weights)
        alone = timm_stitch.evaluate(net, DataLoader(still(Scenes(13, task, double=True)), 13))
        for row, other in zip(result["rows"], alone, strict=True):
            for key, value in other.items():
                assert row[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)


def test_accumulation_changes_nothing_but_rounding():
    base = {"double": True, "sampling": "sandwich", "inplace_distillation": True, "epochs": 1}
    for task in ("segmentation", "depth"):
        one, _ = go(base | {"task": task})
        parts, _ = go(base | {"task": task, "accumulate": 4})
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_others_learn_from_the_largest_anchor_in_place(task):
    net, batch = network(task).train(), [Scenes(task=task)[i] for i in range(4)]
    images, labels = (torch.stack(part) for part in zip(*batch, strict=True))
    config = timm_stitch.TrainConfig(sampling="sandwich", inplace_distillation=True)
    outputs = net.forward_several(images, [0, 1, 3])
    losses = StitchLoss(config, None, net.objective).of_each(outputs, Targets(labels), None, largest=1)
    torch.testing.assert_close(losses[1], net.objective.loss(outputs[1], labels))
    for k in (0, 3):
        expected = net.objective.distillation(outputs[k], outputs[1].detach(), labels)
        torch.testing.assert_close(losses[k], expected)
        assert not torch.equal(losses[k], net.objective.loss(outputs[k], labels))
    back = torch.autograd.grad(losses[0], list(net.anchors[1].parameters()), allow_unused=True)
    assert all(gradient is None for gradient in back)


class WithAuxiliary(nn.Module):
    """A head on the last map, and an auxiliary one on the map before it."""

    def __init__(self, channels):
        super().__init__()
        self.last, self.before = (nn.Conv2d(width, CLASSES, 1) for width in (channels[-1], channels[-2]))

    def forward(self, maps):
        return self.last(maps[-1])

    def auxiliary(self, maps):
        return [self.before(maps[-2])]

    def levels_used(self, training):
        return (2, 3) if training else (3,)


@pytest.mark.parametrize("sampling", ["uniform", "sandwich"])
def test_auxiliary_heads_learn_with_four_tenths_of_their_gradient(sampling):
    net = network(head=lambda channels, reductions: WithAuxiliary(channels)).train()
    image, mask = torch.randn(2, 3, 32, 32), torch.randint(0, CLASSES, (2, 32, 32))
    out, bias = net(image, stitch_id=1), net.head.before.bias
    (ours,) = torch.autograd.grad(net.objective.loss(out, mask), bias, retain_graph=True)
    (alone,) = torch.autograd.grad(nn.functional.cross_entropy(out.auxiliary[0], mask), bias)
    torch.testing.assert_close(ours, 0.4 * alone)
    config = timm_stitch.TrainConfig.from_dict(QUIET | {"epochs": 1, "sampling": sampling, "freeze_statistics": True})
    before = {name: weight.clone() for name, weight in net.head.state_dict().items()}
    timm_stitch.train(net, config, train_data=Scenes(), progress=False)
    assert all(not torch.equal(weight, before[name]) for name, weight in net.head.state_dict().items())


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────


def test_evaluate_equals_a_plain_loop():
    net, data = network().eval(), still(Scenes(10))
    rows = timm_stitch.evaluate(net, DataLoader(data, 4))
    for row in rows:
        confusion, loss, count = np.zeros((CLASSES, CLASSES)), 0.0, 0
        for image, mask in data:
            with torch.no_grad():
                logits = net(image[None], stitch_id=row["stitch_id"])
            kept = mask != 255
            np.add.at(confusion, (mask[kept].numpy(), logits[0].argmax(0)[kept].numpy()), 1)
            loss += float(nn.functional.cross_entropy(logits, mask[None], ignore_index=255, reduction="sum"))
            count += int(kept.sum())
        hits, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        assert row["miou"] == pytest.approx(100 * np.mean((hits / np.maximum(union, 1))[union > 0]), abs=1e-3)
        assert row["aacc"] == pytest.approx(100 * hits.sum() / confusion.sum(), abs=1e-3)
        assert row["loss"] == pytest.approx(loss / count, rel=1e-5)
        assert row["images"] == 10


def test_a_folder_is_evaluated_by_its_verb(tmp_path):
    write_scenes(tmp_path)
    config = timm_stitch.TrainConfig(data_dir=str(tmp_path), batch_size=4)
    from timm_stitch.data.dataset import build_dataset

    net = network()
    data = build_dataset(config, net, training=False)
    rows = timm_stitch.evaluate(net, DataLoader(data, data.batch_size(4)))
    assert {row["images"] for row in rows} == {6}
    assert set(rows[0]) >= {"miou", "aacc", "macc", "loss", "macs", "params"}


def test_the_card_has_the_score_of_the_task(tmp_path):
    net = network()
    rows = [row | {"dataset": "scenes"} for row in timm_stitch.evaluate(net, DataLoader(still(Scenes(8)), 8))]
    timm_stitch.save_pretrained(net, tmp_path, results=rows)
    card = (tmp_path / "README.md").read_text()
    assert "| mean IoU, % |" in card
    assert "type: mean_iou" in card
    assert "pipeline_tag: image-segmentation" in card
    loaded = timm_stitch.from_hub(tmp_path)
    assert loaded.set_budget(macs=1e12).stitch_id == max(rows, key=lambda row: row["miou"])["stitch_id"]


def test_sliding_windows_are_evaluated_as_they_are_predicted():
    net = network().eval()
    net.inference = net.inference.changed(mode="slide", crop=32, stride=16)
    image, mask = torch.randn(1, 3, 32, 48), torch.randint(0, CLASSES, (1, 32, 48))
    for row in timm_stitch.evaluate(net, [(image, mask)]):
        predicted = net.predict(image, stitch_id=row["stitch_id"]).argmax(1)
        assert row["aacc"] == pytest.approx(100 * float((predicted == mask).float().mean()), abs=1e-4)


def test_labels_of_another_size_are_what_outputs_are_resized_to():
    net, image = network(), torch.randn(1, 3, 32, 32)
    rows = timm_stitch.evaluate(net, [(image, torch.randint(0, CLASSES, (1, 50, 40)))])
    assert all(0 <= row["miou"] <= 100 for row in rows)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("segmentation", torch.full((1, 32, 32), 255), "there is nothing to evaluate on"),
        ("segmentation", torch.full((1, 32, 32), CLASSES), f"labels must be from 0 to {CLASSES - 1}, or 255"),
        ("segmentation", torch.zeros(1, CLASSES, 32, 32), r"class numbers \(B, H, W\), got torch.float32"),
        (
            "segmentation",
            torch.zeros(1, dtype=torch.int64),
            r"class numbers \(B, H, W\), got torch.int64 of shape \(1,",
        ),
        ("segmentation", torch.zeros(2, 32, 32, dtype=torch.int64), r"of the same images, got \(1, 4, 32, 32\)"),
        ("depth", torch.zeros(1, 32, 32), "there is nothing to evaluate on"),
        ("depth", torch.zeros(1, 32, 32, dtype=torch.int64), r"metres \(B, H, W\) in floating point"),
        ("depth", torch.full((1, 32, 32), -1.0), "metres of 0 or more"),
        ("depth", None, "metres .* got none"),
    ],
)
def test_labels_that_do_not_fit_are_refused(task, labels, message):
    with pytest.raises(ValueError, match=message):
        timm_stitch.evaluate(network(task), [(torch.randn(1, 3, 32, 32), labels)])


def test_configurations_that_do_not_fit_are_refused(tmp_path):
    write_scenes(tmp_path / "depth", "depth")
    with pytest.raises(ValueError, match="has a depth for each image, and the network learns a mask"):
        go({"data_dir": str(tmp_path / "depth")})
    with pytest.raises(ValueError, match="has no masks or depths"):
        go({"data_dir": str(tmp_path), "dataset": "torch/cifar10"})
    with pytest.raises(ValueError, match="distillation='hard' is from a classifier"):
        go({"distillation": "hard"})
    with pytest.raises(ValueError, match=r"mixup=0.5 has no effect: it is for networks that learn the classes"):
        go({"mixup": 0.5})
    with pytest.raises(ValueError, match="eigen_crop=True has no effect: it is for networks that learn masks or dep"):
        timm_stitch.train(network().network, timm_stitch.TrainConfig(eigen_crop=True), train_data=Scenes())
    write_scenes(tmp_path / "masks")
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(tmp_path / "masks" / "masks" / "training" / "1.png")
    with pytest.raises(ValueError, match="1 images or their labels cannot be used"):
        go({"data_dir": str(tmp_path / "masks")})


def test_a_batch_without_labels_changes_nothing_and_is_no_error():
    net = network()
    data = [(torch.randn(3, 32, 32), torch.full((32, 32), 255)) for _ in range(8)]
    config = timm_stitch.TrainConfig.from_dict(QUIET | {"epochs": 1, "weight_decay": 0.0})
    before = fingerprint(net)
    timm_stitch.train(net, config, train_data=data, progress=False)
    assert fingerprint(net) == before
