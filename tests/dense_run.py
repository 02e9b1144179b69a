"""A small training run of a dense network in a process of its own: python dense_run.py '{"epochs": 2, …}' RESULT_FILE.

Fields of `TrainConfig`, `task` ("segmentation" or "depth"), and `double`; or a list of such runs, each with a `result`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

import timm_stitch
from timm_stitch.network.weights import fingerprint

CLASSES = 4
QUIET = {"workers": 0, "warmup_epochs": 0, "trackers": None, "lr": 1e-3, "batch_size": 8, "epochs": 2}


class Scenes(torch.utils.data.Dataset):
    """Images of one square each, whose brightness is its class and its depth; some pixels have no label."""

    def __init__(self, count=24, task="segmentation", double=False):
        self.count, self.task, self.dtype = count, task, torch.double if double else torch.float

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image, mask = scene(index)
        pixels = torch.tensor(image).permute(2, 0, 1).to(self.dtype) / 128 - 1
        pixels = pixels + 0.05 * torch.randn(pixels.shape, dtype=self.dtype)
        labels = torch.tensor(mask).long()
        if self.task == "depth":
            return pixels, torch.where(labels == 255, 0, labels + 1).to(self.dtype)
        return pixels, labels


def scene(index, size=32):
    """Make an image (H, W, 3) and its mask (H, W)."""
    random = np.random.default_rng(index)
    image = random.integers(0, 40, (size, size, 3)).astype(np.uint8)
    mask = np.zeros((size, size), np.uint8)
    top, left = random.integers(0, size // 2, 2)
    label = 1 + index % (CLASSES - 1)
    image[top : top + size // 2, left : left + size // 2] += np.uint8(60 * label)
    mask[top : top + size // 2, left : left + size // 2] = label
    mask[: 1 + index % 5] = 255  # of unequal number in different images
    return image, mask


def write_scenes(folder, task="segmentation", count=24):
    """Write scenes as a folder of images and masks or depths."""
    for index in range(count):
        split = "training" if index % 4 else "validation"
        image, mask = scene(index)
        name = "masks" if task == "segmentation" else "depth"
        for part in ("images", name):
            (Path(folder) / part / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(Path(folder) / "images" / split / f"{index}.png")
        if task == "depth":
            mask = np.where(mask == 255, 0, (mask.astype(np.uint16) + 1) * 1000).astype(np.uint16)
        Image.fromarray(mask).save(Path(folder) / name / split / f"{index}.png")


def network(task="segmentation", head="linear", seed_weights=0):
    torch.manual_seed(seed_weights)
    anchors = [
        timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=depth, num_heads=heads, embed_dim=16 * heads,
            num_classes=2,
        )
        for depth, heads in ((2, 1), (4, 2))
    ]  # fmt: skip
    net = timm_stitch.stitch(anchors)
    if task == "depth":
        return timm_stitch.dense(net, head=head, task="depth", max_depth=10.0)
    return timm_stitch.dense(net, head=head, num_classes=CLASSES)


def go(values):
    values = dict(values)
    task, head, double = (
        values.pop(k, v) for k, v in (("task", "segmentation"), ("head", "linear"), ("double", False))
    )
    net = network(task, head)
    if double:
        net.double()
    data = None if "data_dir" in values else Scenes(values.pop("images", 24), task, double)
    config = timm_stitch.TrainConfig.from_dict(QUIET | values)
    log = timm_stitch.train(net, config, train_data=data, val_data=data, progress=False)
    return net, log


def write_result(values, path):
    """Train, and write what came of it."""
    from timm_stitch.data.processes import rank

    net, log = go(values)
    result = {"log": log, "weights": fingerprint(net)}
    if "data_dir" not in values:
        odd = Scenes(13, values.get("task", "segmentation"), values.get("double", False))
        torch.manual_seed(0)
        result["rows"] = timm_stitch.evaluate(net, torch.utils.data.DataLoader(still(odd), batch_size=4))
    if rank() == 0:
        Path(path).write_text(json.dumps(result))
        torch.save(net.state_dict(), f"{path}.pt")


def still(data):
    """The items of a dataset as they are once, without further noise."""
    torch.manual_seed(0)
    return [data[i] for i in range(len(data))]


if __name__ == "__main__":
    runs = json.loads(sys.argv[1])
    for values in runs if isinstance(runs, list) else [runs]:
        write_result(values, values.pop("result", sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
