"""SIGTERM and Ctrl-C, two runs in one output, the end by max_steps, and more epochs than a run had."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_run import BASE_QUIET, Noisy, go, network

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.training.interruption import Interruption, RunInterrupted, lock_output

ROOT = Path(__file__).parents[2]


class Signalling(Noisy):
    """Sends this process a signal when an image is read for the n-th time."""

    def __init__(self, number, after):
        super().__init__()
        self.signal, self.left = number, after

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.signal)
        return super().__getitem__(index)


def config(**values):
    return timm_stitch.TrainConfig.from_dict({**BASE_QUIET, "epochs": 1, "batch_size": 8, **values})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on_from_it(tmp_path, number):
    # images are read a batch ahead
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(
        RunInterrupted, match=r"interrupted after step 1: the checkpoint is .*step-000000001\.pt"
    ) as end:
        timm_stitch.train(network(), config(output=str(tmp_path)), train_data=Signalling(number, 12), progress=False)
    assert end.value.number == number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    resumed, alone = network(), network()
    timm_stitch.train(resumed, config(output=str(tmp_path), resume=True), train_data=Noisy(), progress=False)
    timm_stitch.train(alone, config(), train_data=Noisy(), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), alone.parameters(), strict=True))


def test_ctrl_c_interrupts_a_run_that_keeps_no_checkpoints():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt) as end:
            timm_stitch.train(network(), config(), train_data=Signalling(signal.SIGINT, 3), progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(end.value, RunInterrupted)


def test_a_signal_while_processes_agree_counts_the_next_time(monkeypatch):
    asked = Interruption()
    asked._group = object()

    def all_reduce(numbers, op, group):
        asked._notice(signal.SIGTERM, None)

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    assert asked.agreed() == 0
    monkeypatch.setattr("torch.distributed.all_reduce", lambda numbers, op, group: None)
    assert asked.agreed() == signal.SIGTERM


READING = """
from torch.utils.data import DataLoader
from timm_stitch.data.loader import ignore_signals_in_worker

images = DataLoader(range(100), num_workers=2, persistent_workers=True, worker_init_fn=ignore_signals_in_worker)
batches = iter(images)
first = [next(batches), next(batches)]  # one of each reader: both have begun
print(len(first), *[worker.pid for worker in batches._workers], sep="\\n", flush=True)
input()
print([int(batch) for batch in (*first, *batches)] == list(range(100)), flush=True)
"""


def test_readers_of_images_outlive_a_signal_but_not_the_run():
    command = [sys.executable, "-W", "ignore", "-c", READING]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _, *readers = [run.stdout.readline() for _ in range(3)]
        for reader in map(int, readers):
            os.kill(reader, signal.SIGTERM)
            os.kill(reader, signal.SIGINT)
        told, _ = run.communicate("go\n", timeout=60)  # the readers are there to its end, and would hold it up
    finally:
        run.kill()
    assert told.strip() == "True"
    assert run.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_on_the_command_line_is_one_line(tmp_path, processes):
    from PIL import Image
    from tiny import deit_specs

    for label in range(10):
        (tmp_path / "train" / f"c{label}").mkdir(parents=True)
        for n in range(2):
            Image.new("RGB", (40, 40), (label * 20, n * 30, 0)).save(tmp_path / f"train/c{label}/{n}.png")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: snnet\nmodel_args: {{anchors: {deit_specs(depth=2)}}}\npretrained: false\n")
    command = [sys.executable, "-W", "ignore", "-m", "timm_stitch", "train", recipe, "--data-dir", tmp_path]
    command += ["--output", tmp_path / "out", "--epochs", 10000, "--batch-size", 4, "--workers", 1]
    command += ["--trackers", "null", "--init-images", 0]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if processes > 1:
        env |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env |= {"LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(free.getsockname()[1])}
    runs = [
        subprocess.Popen(
            list(map(str, command)), env=env | ({"RANK": str(n), "LOCAL_RANK": str(n)} if processes > 1 else {}),
            stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )
        for n in range(processes)
    ]  # fmt: skip
    try:
        for _ in range(3000):
            if list((tmp_path / "out" / "checkpoints").glob("step-*.pt")):
                break
            time.sleep(0.1)
        os.killpg(runs[0].pid, signal.SIGTERM)  # its readers of images, too; the other process is told by it
        told = [run.communicate(timeout=120)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [143] * processes, told
    lines = [line for line in told[0].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "interrupted after step" in lines[0]
    assert "Traceback" not in "".join(told)
    assert all("error:" not in other for other in told[1:])


def test_two_runs_in_one_output_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    other = lock_output(tmp_path / "checkpoints")
    with pytest.raises(RuntimeError, match="another run is training into"):
        timm_stitch.train(network(), config(output=str(tmp_path)), train_data=Noisy(), progress=False)
    os.close(other)
    timm_stitch.train(network(), config(output=str(tmp_path)), train_data=Noisy(), progress=False)
    timm_stitch.train(network(), config(output=str(tmp_path), resume=True), train_data=Noisy(), progress=False)


def test_max_steps_ends_with_an_evaluation(tmp_path, monkeypatch):
    scores = []
    monkeypatch.setattr(
        "timm_stitch.training.trainer.TrainingRun.score", lambda run, rows: (scores.append(run.state.step) or 1.0, 1.0)
    )
    values = {"epochs": 3, "batch_size": 8, "evaluate_every": 1, "output": str(tmp_path), "resume": "auto"}
    go({**values, "max_steps": 3})
    go({**values, "max_steps": 3})  # has it already
    assert scores == [3]
    go({**values, "max_steps": 12})
    assert scores == [3, 8, 12]


def test_a_finished_run_can_be_extended(tmp_path):
    go({"epochs": 2, "batch_size": 32, "output": str(tmp_path)})
    more = {"epochs": 4, "batch_size": 32, "output": str(tmp_path)}
    with pytest.raises(ValueError, match=r"other values: epochs=4 \(was 2\)\. .*resume='extend'"):
        go({**more, "resume": True})
    assert go({**more, "resume": "extend"})[1]["steps"] == 8
    with pytest.raises(ValueError, match=r"epochs must be at least 4 with resume='extend', .*, got 3"):
        go({**more, "epochs": 3, "resume": "extend"})
    with pytest.raises(ValueError, match=r"lr=0.1 \(was 0.0001\)"):
        go({**more, "epochs": 5, "lr": 0.1, "resume": "extend"})


def test_training_without_a_place_is_refused(tmp_path, capsys):
    assert main(["train", "deit_tsb", "--data-dir", str(tmp_path)]) == 1
    assert "train has no place for the network and would throw it away: give --output FOLDER" in capsys.readouterr().err
