"""Two gloo processes equal one process at the same global batch."""

import json
from pathlib import Path

import pytest
import timm
import torch
from training_run import go, start_two

RUN = Path(__file__).parents[1] / "training_run.py"
BASE = {"epochs": 1, "batch_size": 16, "images": 96, "lr": 1e-3, "augmented": True, "double": True}


def two(values, path, **more):
    """Train on two processes; the result that the first one wrote."""
    start_two(RUN, json.dumps(values), path, **more)
    return (json.loads(path.read_text()), torch.load(f"{path}.pt")) if path.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, {"accumulate": 2, "stitches": 3, "clip_grad": 0.5, "ema_decay": 0.5, "dense_updates": True}],
    ids=["plain", "accumulated"],
)
def test_two_processes_equal_one(more, tmp_path):
    import timm_stitch

    values = BASE | more
    result, weights = two(values, tmp_path / "two.json")
    model, log = go(values)
    assert result["log"]["steps"] == log["steps"] == 6
    assert result["log"]["loss"] == pytest.approx(log["loss"], rel=1e-6)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-9)
    # exact counts of an odd number of images, shared out to two processes
    from torch.utils.data import DataLoader
    from training_run import Noisy

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


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"accumulate": 2, "stitches": 3, "clip_grad": 0.5}], ids=["plain", "accumulated"])
def test_a_sharded_run_equals_one_process_and_resumes(more, tmp_path):
    values = BASE | more | {"output": str(tmp_path / "net"), "sharded": True}
    two(values | {"max_steps": 4}, tmp_path / "none.json", **FSDP)
    two(values | {"resume": True}, tmp_path / "none.json", **FSDP)
    model, _ = go(BASE | more)
    kept = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(kept.state_dict()[name].to(tensor), tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_what_does_not_go_with_sharding_is_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"ema_decay must be None with FSDP2, got 0\.5"):
        two(BASE | {"ema_decay": 0.5, "sharded": True}, tmp_path / "none.json", **FSDP)
