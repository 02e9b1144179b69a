"""kill -9 at ten random moments, every other one while a checkpoint is being written: the weights stay the same.

    python benchmarks/resume.py [--kills 10] [--processes 1]

A small network trains with mixup, drop-path, EMA, accumulation, random augmentation and two loader workers, with a
checkpoint after each step. It is killed (all its processes at once), resumed, and so on, until it is left to end; its
weights are compared, bit for bit, with those of a run left alone. Prints one JSON line.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
VALUES = {
    "epochs": 8, "batch_size": 16, "images": 96, "lr": 1e-3, "augmented": True, "checkpoint_steps": 1, "keep": 2,
    "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2, "ema_decay": 0.9, "accumulate": 2, "workers": 2,
}  # fmt: skip


def start(values, result, processes):
    """A run in a session of its own, so that it can be killed whole."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore"]
    if processes > 1:
        env["ACCELERATE_USE_CPU"] = "true"
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
    command += [str(TESTS / "training_run.py"), json.dumps(values), str(result)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process):
    errors = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"the run failed:\n{errors}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    rng, writing, steps = random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        folder = root / "run" / "checkpoints"
        finish(start(VALUES | {"checkpoint_steps": None}, root / "alone.json", options.processes))
        began = time.monotonic()
        for number in range(options.kills):
            process = start(
                VALUES | {"output": str(root / "run"), "resume": "auto"}, root / "result.json", options.processes
            )
            before = {path.name for path in folder.glob("step-*")}
            while process.poll() is None and {path.name for path in folder.glob("step-*")} == before:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.2))
            if number % 2:  # wait for the next checkpoint to be under way
                while process.poll() is None and not any(name.startswith(".step") for name in os.listdir(folder)):
                    pass
            if process.poll() is not None:
                raise SystemExit(
                    f"the run ended before kill {number + 1}: give it more epochs.\n{process.communicate()[1]}"
                )
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            writing += any(folder.glob(".step-*"))
            steps.append(max(int(path.stem.split("-")[1]) for path in folder.glob("step-*")))
        finish(start(VALUES | {"output": str(root / "run"), "resume": "auto"}, root / "result.json", options.processes))
        seconds = time.monotonic() - began
        alone, resumed = (json.loads((root / name).read_text())["weights"] for name in ("alone.json", "result.json"))
    row = {"kills": options.kills, "while_writing": writing, "at_steps": steps, "processes": options.processes}
    print(json.dumps(row | {"seconds": round(seconds), "equal": alone == resumed, "weights": resumed}))
    return int(alone != resumed)


if __name__ == "__main__":
    sys.exit(main())
