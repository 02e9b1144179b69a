"""Does a run that is killed end with the weights of one that was not? kill -9 at ten random moments.

    python benchmarks/robustness/resume.py [--kills 10] [--processes 1] [--compile]

Every other kill falls into the writing of a checkpoint. A small network trains with mixup, drop-path, EMA,
accumulation, random augmentation, recomputed activations, evaluation and two loader workers, with a checkpoint after
each step. It is killed (all its processes at once), resumed, and so on, until it is left to end; its weights are
compared, bit for bit, with those of a run left alone. Prints one JSON line.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from processes import rank_environments

TESTS = Path(__file__).parents[2] / "tests"
VALUES = {
    "epochs": 8, "batch_size": 16, "images": 96, "lr": 1e-3, "augmented": True, "checkpoint_steps": 1, "keep": 2,
    "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2, "ema_decay": 0.9, "accumulate": 2, "workers": 2,
    "grad_checkpointing": True, "channels_last": True, "evaluate_every": 2,
}  # fmt: skip


def start(values, result, processes):
    """Start all processes of a run."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(TESTS / "training_run.py"), json.dumps(values), str(result)]
    several = [own | {"ACCELERATE_USE_CPU": "true"} for own in rank_environments(processes)]
    ranks: list[dict[str, str]] = several if processes > 1 else [{}]
    # Sessions of their own, so that each can be killed with its loader's workers.
    return [subprocess.Popen(command, env=env | own, start_new_session=True) for own in ranks]


def finish(run):
    """Wait for a run to end."""
    codes = [process.wait() for process in run]
    if any(codes):
        raise SystemExit("the run failed.")


def is_alive(run):
    """Whether all processes of a run are alive."""
    return all(process.poll() is None for process in run)


def main():
    """Kill, resume, compare."""
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=10, help="number of kills")
    parser.add_argument("--processes", type=int, default=1, help="processes of a run")
    parser.add_argument("--compile", action="store_true", help="compile every block")
    options = parser.parse_args()
    values = VALUES | {"compile": options.compile}
    rng, writing, steps = random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        folder = root / "run" / "checkpoints"
        resumed = values | {"output": str(root / "run"), "resume": "auto"}
        finish(start(values | {"checkpoint_steps": None}, root / "alone.json", options.processes))
        began = time.monotonic()
        for number in range(options.kills):
            run = start(resumed, root / "result.json", options.processes)
            before = {path.name for path in folder.glob("step-*")}
            while is_alive(run) and {path.name for path in folder.glob("step-*")} == before:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.2))
            if number % 2:  # wait for the next checkpoint to be under way
                while is_alive(run) and not any(name.startswith(".step") for name in os.listdir(folder)):
                    pass
            ended = not is_alive(run)
            for process in run:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if ended:
                raise SystemExit(f"the run ended before kill {number + 1}: give it more epochs.")
            writing += any(folder.glob(".step-*"))
            steps.append(max(int(path.stem.split("-")[1]) for path in folder.glob("step-*")))
        finish(start(resumed, root / "result.json", options.processes))
        seconds = time.monotonic() - began
        alone, last = (json.loads((root / name).read_text())["weights"] for name in ("alone.json", "result.json"))
    row = vars(options) | {"while_writing": writing, "at_steps": steps}
    print_row(row | {"seconds": round(seconds), "equal": alone == last, "weights": last})
    return int(alone != last)


if __name__ == "__main__":
    sys.exit(main())
