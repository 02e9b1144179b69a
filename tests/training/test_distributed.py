"""Two gloo processes equal one process at the same global batch."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.data import DataLoader
from training_run import Noisy, go, start_two

import timm_stitch

RUN = Path(__file__).parents[1] / "training_run.py"
BASE = {"epochs": 1, "batch_size": 16, "images": 96, "lr": 1e-3, "augmented": True, "double": True}


PLAIN = {}
ACCUMULATED = {"accumulate": 2, "stitches": 3, "clip_grad": 0.5}
RUNS = {"plain": PLAIN, "accumulated": ACCUMULATED}
WITH_MEAN = {"plain": {}, "accumulated": {"ema_decay": 0.5, "dense_updates": True}}  # sharding takes none


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    """The folder of results of both runs, one after the other on the same two processes."""
    folder = tmp_path_factory.mktemp("two")
    runs = [BASE | RUNS[name] | WITH_MEAN[name] | {"result": str(folder / f"{name}.json")} for name in RUNS]
    start_two(RUN, json.dumps(runs), folder / "none.json")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(name, trained_by_two):
    result = json.loads((trained_by_two / f"{name}.json").read_text())
    weights = torch.load(trained_by_two / f"{name}.json.pt")
    model, log = go(BASE | RUNS[name] | WITH_MEAN[name])
    assert result["log"]["steps"] == log["steps"] == 6
    assert result["log"]["loss"] == pytest.approx(log["loss"], rel=1e-6)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=1e-9)
    # exact counts of an odd number of images, shared out to two processes
    model.load_state_dict(weights)
    alone = timm_stitch.evaluate(model, DataLoader(Noisy(61, double=True), batch_size=61), [0, 1, 2])
    assert result["prepared"] == result["rows"]  # whether or not Accelerate shared them out before
    for row, other in zip(result["rows"], alone, strict=True):
        assert row.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-6)
        assert row == other


def test_accumulation_changes_nothing_but_rounding():
    one, _ = go(BASE)
    parts, _ = go(BASE | {"accumulate": 4})
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=1e-9)


def test_batches_that_cannot_be_shared_out():
    with pytest.raises(ValueError, match="batch_size must be a multiple of 3"):
        go(BASE | {"accumulate": 3})
    with pytest.raises(ValueError, match=r"must be even for mixup=.*, which pair images, got 1"):
        go(BASE | {"accumulate": 16, "mixup": 0.5})


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.fixture(scope="module")
def trained_sharded(tmp_path_factory):
    """The folder of networks that two sharding processes trained, stopped after four steps, and went on with."""
    folder = tmp_path_factory.mktemp("sharded")
    values = {name: BASE | more | {"output": str(folder / name), "sharded": True} for name, more in RUNS.items()}
    runs = [run | more for run in values.values() for more in ({"max_steps": 4}, {"resume": True})]
    refused = BASE | {"ema_decay": 0.5, "refused": True, "result": str(folder / "refused.txt")}
    start_two(RUN, json.dumps([*runs, refused]), folder / "none.json", **FSDP)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_sharded_run_equals_one_process_and_resumes(name, trained_sharded):
    model, _ = go(BASE | RUNS[name])
    kept = timm.create_model(f"local-dir:{trained_sharded / name}", pretrained=True)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(kept.state_dict()[key].to(tensor), tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_what_does_not_go_with_sharding_is_refused(trained_sharded):
    assert "ema_decay must be None with FSDP2, got 0.5" in (trained_sharded / "refused.txt").read_text()
