"""A small training run in a process of its own: python training_run.py '{"epochs": 2, …}' RESULT_FILE.

Fields of `TrainConfig`, and `drop_path`, `seed_weights`, `double`, `images`, `augmented` for the network and the data;
or a list of such runs, one after the other, each with a `result` file of its own.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from tiny import deit_specs

import timm_stitch
from timm_stitch.network.weights import fingerprint

TESTS = Path(__file__).parent
BASE_QUIET = {"mixup": 0, "cutmix": 0, "workers": 0, "warmup_epochs": 0, "trackers": None}


class Noisy(torch.utils.data.Dataset):
    """Ten classes that differ in brightness, with noise from the process's own random numbers."""

    def __init__(self, count=64, augmented=False, double=False):
        self.count, self.augmented, self.dtype = count, augmented, torch.double if double else torch.float

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % 10
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 32, 32, generator=generator) * 0.1 + label / 5 - 1
        return (image + 0.1 * torch.randn(image.shape) if self.augmented else image).to(self.dtype), label


def network(drop_path=0.0, seed_weights=0, depth=3):
    torch.manual_seed(seed_weights)
    return timm.create_model("snnet", anchors=deit_specs(depth=depth), drop_path_rate=drop_path)


def start_two(*command, **more):
    """Run a command on two processes of one group; what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} | more
    env |= {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *map(str, command)],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    return [out for out, _ in told]


def go(values):
    values = dict(values)
    model = network(values.pop("drop_path", 0.0), values.pop("seed_weights", 0), values.pop("depth", 3))
    data = Noisy(values.pop("images", 64), values.pop("augmented", False), values.get("double", False))
    if values.pop("double", False):
        model.double()
    config = timm_stitch.TrainConfig.from_dict(BASE_QUIET | values)
    log = timm_stitch.train(model, config, train_data=data, val_data=data, progress=False)
    return model, log


def write_result(values, path):
    """Train, and write what came of it: of a sharded run nothing, for what is whole is in its output."""
    from timm_stitch.data.processes import rank

    sharded, refused = values.pop("sharded", False), values.pop("refused", False)
    if refused:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 the test looks at the words
            go(values)
        Path(path).write_text(str(caught.value))
        return
    model, log = go(values)
    if sharded:
        return
    odd = torch.utils.data.DataLoader(Noisy(61, double=values.get("double", False)), batch_size=8)
    rows = timm_stitch.evaluate(model, odd, [0, 1, 2])
    prepared = timm_stitch.evaluate(model, Accelerator().prepare_data_loader(odd), [0, 1, 2])
    if rank() == 0:
        result = {"log": log, "weights": fingerprint(model), "rows": rows, "prepared": prepared}
        Path(path).write_text(json.dumps(result))
        torch.save(model.state_dict(), f"{path}.pt")


if __name__ == "__main__":
    runs = json.loads(sys.argv[1])
    for values in runs if isinstance(runs, list) else [runs]:
        write_result(values, values.pop("result", sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
