"""Nothing lost: killed at any moment and resumed, a run ends with the same weights, bit for bit."""

import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_run import go

from timm_stitch.network.weights import fingerprint
from timm_stitch.training.checkpointing import Checkpoints

RUN = Path(__file__).parents[1] / "training_run.py"
BASE = {"epochs": 2, "batch_size": 16, "images": 96, "lr": 1e-3, "augmented": True, "checkpoint_steps": 2}
NOISY = BASE | {"mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2, "ema_decay": 0.9, "accumulate": 2}


@pytest.mark.slow
def test_killed_and_resumed_equals_left_alone(tmp_path):
    values = NOISY | {"workers": 2, "epochs": 4, "checkpoint_steps": 1}
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(RUN.parent.parent), str(RUN.parent)])}
    folder, rng, kills = tmp_path / "run" / "checkpoints", random.Random(0), 0
    seen = set()
    while True:
        arguments = json.dumps(values | {"output": str(tmp_path / "run"), "resume": "auto"})
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RUN), arguments, str(tmp_path / "result.json")],
            env=env, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        if kills < 2:  # once it has gone a few steps further, at a random moment
            before = Checkpoints(folder).last
            while process.poll() is None and Checkpoints(folder).last == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
            process.communicate()
            kills += 1
            seen.add(Checkpoints(folder).last)
            continue
        assert process.communicate()[1] == ""
        assert process.returncode == 0
        break
    assert len(seen) > 1  # it was killed at different steps
    alone, _ = go(values | {"workers": 0, "checkpoint_steps": None})
    assert json.loads((tmp_path / "result.json").read_text())["weights"] == fingerprint(alone)
    assert sorted(path.suffix for path in folder.iterdir()) == [".pt", ".pt"]  # the last two, and nothing half


def test_stopped_between_and_resumed(tmp_path):
    alone, _ = go(NOISY | {"sampling": "resource", "groups": 3, "checkpoint_steps": None})
    values = NOISY | {"sampling": "resource", "groups": 3, "output": str(tmp_path), "resume": "auto"}
    go(values | {"max_steps": 5})
    resumed, log = go(values | {"resume": True})
    assert fingerprint(resumed) == fingerprint(alone)
    assert log["steps"] == 12
    again, log = go(values)  # it is done: nothing is trained
    assert fingerprint(again) == fingerprint(alone)
    assert log["steps"] == 12


def test_the_last_and_the_best_are_kept(tmp_path):
    go(BASE | {"output": str(tmp_path), "evaluate_every": 1, "keep": 3})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.pt", "step-000000008.pt", "step-000000010.pt", "step-000000012.pt"]
    assert torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)["best"] > 0


def test_an_evaluation_that_fails_costs_no_epoch(tmp_path, monkeypatch):
    values = BASE | {"output": str(tmp_path), "evaluate_every": 1, "epochs": 1, "checkpoint_steps": None}

    def fails(model, loader, stitch_ids):
        if stitch_ids is None:  # the anchors alone are evaluated before the first step
            raise OSError("no such image")
        return [{"stitch_id": k, "top1": 0.0} for k in stitch_ids]

    with monkeypatch.context() as broken:
        broken.setattr("timm_stitch.training.trainer.evaluate", fails)
        with pytest.raises(OSError, match="no such image"):
            go(values)
    store = Checkpoints(tmp_path / "checkpoints")
    assert store.last is not None
    assert not (store.folder / "best.pt").exists()
    go(values | {"resume": True})  # nothing is trained, and what was not evaluated is
    assert torch.load(store.folder / "best.pt", weights_only=True)["scored"] == 1


def test_what_cannot_be_resumed_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .* to resume: use resume='auto'"):
        go(BASE | {"output": str(tmp_path), "resume": True})
    go(BASE | {"output": str(tmp_path), "max_steps": 2})
    with pytest.raises(ValueError, match=r"the output has a run already.*set resume='auto' to continue it"):
        go(BASE | {"output": str(tmp_path)})
    with pytest.raises(ValueError, match=r"started with other values: lr=0.5 \(was 0.001\)"):
        go(BASE | {"output": str(tmp_path), "lr": 0.5, "resume": "auto"})
    last = Checkpoints(tmp_path / "checkpoints").last
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        go(BASE | {"output": str(tmp_path), "resume": "auto"})
    torch.save({"format": 0}, last)
    with pytest.raises(ValueError, match="is not a checkpoint of format 2"):
        go(BASE | {"output": str(tmp_path), "resume": "auto"})


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path):
    store, rng = Checkpoints(tmp_path), random.Random(0)
    before = store.save(1, {"weights": torch.zeros(100)})
    path = store.save(2, {"weights": torch.ones(100), "best": 0.5})
    good = path.read_bytes()
    for _ in range(500):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"step-000000002.* cannot be read .* continue from .*step-000000001") as e:
            store.load()
        assert "\n" not in str(e.value)
    for length in range(0, len(good) - 64, 97):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"cannot be read"):
            store.load()
    before.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="begin the run again, since no earlier one is intact"):
        store.load()
    path.write_bytes(good)
    assert store.load()["best"] == 0.5
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(100))  # by torch itself


def test_a_damaged_checkpoint_is_removed_and_the_run_goes_on(tmp_path):
    alone, _ = go(BASE | {"checkpoint_steps": None})
    values = BASE | {"output": str(tmp_path), "resume": "auto"}
    go(values | {"max_steps": 6})
    path = Checkpoints(tmp_path / "checkpoints").last
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"remove it to continue from .*step-000000004"):
        go(values)
    path.unlink()
    resumed, _ = go(values)
    assert fingerprint(resumed) == fingerprint(alone)


def test_a_checkpoint_of_before_without_a_sum_loads_with_a_warning(tmp_path, caplog):
    store = Checkpoints(tmp_path)
    torch.save({"format": 2, "step": 3}, tmp_path / "step-000000003.pt")
    assert store.load() == {"format": 2, "step": 3}
    assert "step-000000003.pt' has no sum over its bytes" in caplog.text
    caplog.clear()
    store.save(4, {})
    store.load()
    assert not caplog.text


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    go(BASE | {"output": str(tmp_path), "max_steps": 4})
    path = Checkpoints(tmp_path / "checkpoints").last
    state = torch.load(path, weights_only=True)
    state["optimizer"]["param_groups"][0]["weight_decay"] = float("nan")
    torch.save(state, path)
    with pytest.raises(FloatingPointError, match=r"no longer finite \(step 6, epoch 1\).*good checkpoint is.*000004"):
        go(BASE | {"output": str(tmp_path), "resume": True})
    assert Checkpoints(tmp_path / "checkpoints").last == path
    with pytest.raises(FloatingPointError, match="There is no good checkpoint"):
        go(BASE | {"lr": 1e30, "checkpoint_steps": None})


def test_a_full_disk_and_a_vanished_folder(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints")
    first = store.save(1, {"weights": torch.zeros(1000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"could not write the checkpoint of step 2 .*last good .*000001") as e:
            store.save(2, {"weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(e.value)
    assert list(store.folder.iterdir()) == [first]
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="has vanished: no checkpoint of step 3"):
        store.save(3, {})


def test_what_a_killed_writer_left_is_removed(tmp_path):
    store = Checkpoints(tmp_path)
    for name in (".step-000000007.123-abcd.pt", ".best.123-abcd.pt"):
        (tmp_path / name).write_text("half")
    store.clean()
    assert not list(tmp_path.iterdir())
    assert store.load() is None
