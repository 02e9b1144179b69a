"""Segmentation heads on one SN-Net: `make quickstart`, then `python examples/dense_head.py`.

Scenes are four Fashion-MNIST images on one canvas, and each pixel is to be told its garment or the background.
Three stitches serve as backbones; they share the network's weights, which stay as they are, and each has a small
head of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from quickstart import load_images
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from tqdm.auto import tqdm

import timm_stitch  # noqa: F401  registers the models

BACKGROUND = 10


def scenes(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four images in a square each, (count, 1, 56, 56), and the class of every pixel, (count, 56, 56)."""
    chosen = torch.randint(len(images), (count, 4), generator=torch.Generator().manual_seed(seed))
    tiles = images[chosen]  # (count, 4, 1, 28, 28)
    dark = images.min()
    classes = torch.where(tiles[:, :, 0] > dark + 0.1, labels[chosen][:, :, None, None], BACKGROUND)

    def square(parts: Tensor) -> Tensor:
        return torch.cat([torch.cat([parts[:, 0], parts[:, 1]], -1), torch.cat([parts[:, 2], parts[:, 3]], -1)], -2)

    return square(tiles), square(classes)


class Head(nn.Module):
    """Feature maps of all levels, brought to one width and size, to the class of every pixel."""

    def __init__(self, channels: list[int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.predict = nn.Sequential(
            nn.GELU(), nn.ConvTranspose2d(width, width, 7, 7), nn.GELU(), nn.Conv2d(width, classes, 3, padding=1)
        )

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        summed = sum(conv(m) for conv, m in zip(self.lateral, maps, strict=True))
        return nn.functional.interpolate(self.predict(summed), size, mode="bilinear")


def mean_iou(predicted: Tensor, wanted: Tensor, classes: int) -> float:
    """Intersection over union, averaged over the classes, in per cent."""
    pairs = torch.bincount((wanted * classes + predicted).flatten(), minlength=classes**2).reshape(classes, classes)
    both = pairs.diag()
    return 100 * float((both / (pairs.sum(0) + pairs.sum(1) - both).clamp_min(1)).mean())


def main() -> None:
    """Train a head for each of three stitches, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="local-dir:quickstart-output/snnet")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    torch.manual_seed(0)
    images, labels, test_images, test_labels = load_images(Path(__file__).parent / "data/fashion_mnist_10k.npz")
    model = timm.create_model(options.model, pretrained=True).eval()
    model.set_input_size((56, 56))
    table = model.stitch_table()
    order = sorted(table, key=lambda row: row["macs"])
    chosen = [order[0], order[len(order) // 2], next(row for row in table if row["stitch_id"] == 2)]
    backbones = [model.backbone(row["stitch_id"]).requires_grad_(False) for row in chosen]
    heads = [Head(backbone.feature_info.channels(), BACKGROUND + 1) for backbone in backbones]
    optimizer = create_optimizer_v2([p for head in heads for p in head.parameters()], "adamw", lr=2e-3)
    for step in tqdm(range(options.steps), unit="step"):
        x, wanted = scenes(images, labels, options.batch_size, seed=step)
        for backbone, head in zip(backbones, heads, strict=True):
            nn.functional.cross_entropy(head(backbone(x), x.shape[-2:]), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
    x, wanted = scenes(test_images, test_labels, 500, seed=-1)
    held = len({p.data_ptr() for backbone in backbones for p in backbone.parameters()})
    print(
        f"three backbones, {held} tensors in all; mean intersection over union on {len(x)} scenes of the test images:"
    )
    with torch.inference_mode():
        for row, backbone, head in zip(chosen, backbones, heads, strict=True):
            score = mean_iou(head(backbone.eval()(x), x.shape[-2:]).argmax(1), wanted, BACKGROUND + 1)
            print(f"  stitch {row['stitch_id']:>2}  {row['macs'] / 1e6:6.1f} MMACs  {score:5.1f} %  {row['name']}")


if __name__ == "__main__":
    main()
