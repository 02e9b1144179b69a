"""End-to-end example on real images, in a few minutes on two cores: `make quickstart`.

It trains three small DeiTs on Fashion-MNIST and stitches them into one network. It initializes the stitching layers by
least squares, trains and evaluates every stitch, draws the curve, and saves and loads the network. At the end it
selects the best stitch within a budget and extracts it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import timm_stitch
from timm_stitch import plot_curve, write_rows
from timm_stitch.progress import progress_bar

MEAN, STD = 0.2860, 0.3530
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SMALL_DEIT = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10, "depth": 6}
NAMES = ["deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"]


def load_images(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read training and test images (N, 1, 28, 28), normalized, with their labels."""
    data = np.load(path)

    def images(name: str) -> Tensor:
        return (torch.from_numpy(data[name]).float()[:, None] / 255 - MEAN) / STD

    train_labels, test_labels = (torch.from_numpy(data[f"{part}_labels"]).long() for part in ("train", "test"))
    return images("train_images"), train_labels, images("test_images"), test_labels


def train_anchor(name: str, width: int, data: Dataset, epochs: int) -> nn.Module:
    """Train one small DeiT from scratch with timm's optimizer and schedule."""
    torch.manual_seed(0)
    images = {"mean": (MEAN,), "std": (STD,), "input_size": (1, 28, 28), "num_classes": 10, "crop_pct": 1.0}
    size = {"embed_dim": width, "num_heads": max(1, width // 32)}
    model = timm.create_model(name, pretrained_cfg_overlay=images, **SMALL_DEIT, **size)
    loader = DataLoader(data, batch_size=200, shuffle=True, drop_last=True)
    optimizer = create_optimizer_v2(model, "adamw", lr=2e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=len(loader)
    )
    step = 0
    for _ in progress_bar(range(epochs), desc=f"anchor {name}", unit="epoch"):
        for images, labels in loader:
            scheduler.step_update(step)
            nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return model.eval()


def main() -> None:
    """Run every step and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("quickstart-output"), help="folder of what it writes")
    parser.add_argument(
        "--widths",
        type=int,
        nargs=3,
        default=[16, 32, 64],
        help="channels of the three anchors, up to 32 or multiples of it",
    )
    parser.add_argument(
        "--anchor-epochs", type=int, default=14, help="epochs of each anchor's own training (default: 14)"
    )
    parser.add_argument("--epochs", type=int, default=24, help="epochs of joint training (default: 24)")
    options = parser.parse_args()
    began = time.monotonic()
    train_images, train_labels, test_images, test_labels = load_images(
        Path(__file__).parent / "data/fashion_mnist_10k.npz"
    )
    train = TensorDataset(train_images, train_labels)
    test = DataLoader(TensorDataset(test_images, test_labels), batch_size=500)

    print("1. Train three anchors. In your own project they come pretrained.")
    sizes = zip(NAMES, options.widths, strict=True)
    anchors = [train_anchor(name, width, train, options.anchor_epochs) for name, width in sizes]

    print("2. Stitch them and initialize the stitching layers by least squares on 500 images.")
    model = timm_stitch.stitch(anchors)
    timm_stitch.least_squares_init(model, train_images[:500])
    before = timm_stitch.evaluate(model, test, progress=True)

    print(f"3. Train all {model.num_stitches} stitches together: each step trains a random one.")
    config = timm_stitch.TrainConfig(
        epochs=options.epochs, batch_size=50, lr=1e-3, min_lr=1e-5, warmup_epochs=1, stitch_lr_scale=2,
        mixup=0, cutmix=0, workers=0,
    )  # fmt: skip
    timm_stitch.train(model, config, train_data=train)
    after = timm_stitch.evaluate(model, test, progress=True)

    print("4. Draw the curve, save the network, and load it like any timm model.")
    write_rows(options.output / "results.jsonl", after)
    plot_curve(after, options.output / "curve.png", title="One SN-Net on Fashion-MNIST (8,000 training images)")
    folder = timm_stitch.save_pretrained(model, options.output / "snnet", results=after, label_names=CLASSES)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    print("5. Select the best stitch within half the cost of the largest anchor, and extract it.")
    budget = after[2]["macs"] / 2
    stitch_id = timm_stitch.select(loaded, after, macs=budget)
    small = loaded.extract(stitch_id, copy=True)
    with torch.inference_mode():
        agree = torch.equal(small(test_images), model(test_images, stitch_id=stitch_id))
    report(model, before, after, stitch_id, budget, small, agree)
    print(
        f"\nCurve: {options.output / 'curve.png'}   Network: {folder}   Total time: {time.monotonic() - began:.0f} s."
    )


def report(model, before, after, stitch_id, budget, small, agree) -> None:
    """Print every stitch before and after training, and the selected one."""
    frontier = {row["stitch_id"] for row in timm_stitch.pareto_frontier(after)}
    print("\n  id  network                                             MMACs   params  before  after   (top-1, %)")
    for old, new in zip(before, after, strict=True):
        mark = "*" if new["stitch_id"] in frontier else " "
        chosen = "  <- selected" if new["stitch_id"] == stitch_id else ""
        print(
            f"{mark} {new['stitch_id']:>2}  {new['name'].replace('_patch16_224', ''):<48} {new['macs'] / 1e6:>8.2f} "
            f"{new['params'] / 1e3:>7.0f}k  {old['top1']:>5.1f}   {new['top1']:>5.1f}{chosen}"
        )
    ranks = [np.argsort(np.argsort([row[key] for row in after])) for key in ("macs", "top1")]
    print("\n* on the frontier: no other stitch is as cheap and as accurate. Before: initialized only; after: trained.")
    print(f"Rank correlation of cost and accuracy over {len(after)} stitches: {np.corrcoef(*ranks)[0, 1]:.2f}")
    held, whole = (sum(p.numel() for p in m.parameters()) for m in (small, model))
    top1 = after[stitch_id]["top1"]
    anchor = max(row["top1"] for row in (*before[:3], *after[:3]) if row["macs"] <= budget)
    print(
        f"Within {budget / 1e6:.1f} MMACs, stitch {stitch_id} reaches {top1:.1f} %; the best anchor, before or after "
        f"training, {anchor:.1f} %.\nThe extracted stitch has {held:,} of {whole:,} parameters. Its outputs on the "
        f"test images {'equal' if agree else 'DIFFER FROM'} the whole network's."
    )


if __name__ == "__main__":
    main()
