"""The three small DeiTs of Fashion-MNIST: made, trained alone, and what training them costs."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset

import timm_stitch
from timm_stitch.plan.prefix_sharing import shared_macs
from timm_stitch.training.sampling import make_rule

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from fashion_mnist_images import MEAN, STD

WIDTHS = {"deit_fmnist_t": (32, 1), "deit_fmnist_s": (64, 2), "deit_fmnist_b": (128, 4)}
ANCHOR_EPOCHS = {"deit_fmnist_t": 6, "deit_fmnist_s": 6, "deit_fmnist_b": 5}
BATCH = 250
COMMON: dict[str, Any] = {
    "batch_size": BATCH, "weight_decay": 0.05, "mixup": 0, "cutmix": 0, "smoothing": 0.1, "workers": 0,
    "trackers": None,
}  # fmt: skip


def make_anchor(name: str, seed: int) -> nn.Module:
    """Make a small DeiT with random weights."""
    width, heads = WIDTHS[name]
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=width, depth=6, num_heads=heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    model.pretrained_cfg = {"architecture": name, "mean": (MEAN,), "std": (STD,), "input_size": (1, 28, 28)}
    return model


def read_anchors(folder: Path, data: Dataset) -> list[nn.Module]:
    """Read the three trained anchors; train and keep those that are missing."""
    anchors = [make_anchor(name, seed=0) for name in WIDTHS]
    for index, name in enumerate(WIDTHS):
        path = folder / f"{name}.safetensors"
        if path.exists():
            anchors[index].load_state_dict(load_file(path))
        else:
            alone = timm_stitch.stitch(anchors).extract(index)
            train_alone(alone, data, epochs=ANCHOR_EPOCHS[name], lr=2e-3, seed=0)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(anchors[index].state_dict(), path)
    return [anchor.eval() for anchor in anchors]


def schedule(epochs: int, steps: int, lr: float) -> dict[str, Any]:
    """Choose a linear warm-up over a tenth of the steps, then a cosine to a hundredth: fields of `TrainConfig`."""
    return {
        "epochs": epochs, "max_steps": steps, "lr": lr, "warmup_epochs": epochs / 10, "warmup_lr": lr / 100,
        "min_lr": lr / 100,
    }  # fmt: skip


def train_alone(
    network: timm_stitch.SNNet, data: Dataset, epochs: float, lr: float, seed: int, batch: int = BATCH
) -> None:
    """Train one extracted stitch, in place, as a plain network; a part of an epoch is a part of the images."""
    seen = round(epochs * len(data))
    once = Subset(ConcatDataset([data] * math.ceil(epochs)), range(seen))
    values = {**COMMON, "batch_size": batch, **schedule(1, steps=seen // batch, lr=lr)}
    timm_stitch.train(network, timm_stitch.TrainConfig(**values, seed=seed), train_data=once, progress=False)


def macs_an_image(model: timm_stitch.SNNet, config: timm_stitch.TrainConfig, steps: int) -> float:
    """Count the multiply-adds of the forward passes for one training image, on average over the steps."""
    costs = model.costs()
    anchors = [s.stitch_id for s in model.plan if s.is_anchor][::-1]
    macs = {s.stitch_id: costs.cost(s).macs for s in model.plan if config.tune == "all" or not s.is_anchor}
    rule = make_rule(
        config.sampling, macs, config.seed, anchors=anchors, stitches=config.stitches, scores=config.scores
    )
    return statistics.fmean(shared_macs([model.plan[i] for i in rule(step)], costs) for step in range(steps))


def even_in_cost(macs: Mapping[int, int]) -> list[int]:
    """Choose seven stitches, the smallest and the largest anchor among them, about even in log MACs."""
    targets = [macs[0] * (macs[2] / macs[0]) ** (i / 6) for i in range(1, 6)]
    between = [min(range(3, len(macs)), key=lambda i: abs(math.log(macs[i] / t))) for t in targets]
    return [0, *between, 2]
