"""Segmentation of a real head MRI with every stitch of one network, in minutes on two cores.

    apt-get download mricron-data && dpkg -x mricron-data_*.deb mricron
    python examples/head_mri.py --data mricron/usr/share/mricron/templates

Two small ConvNeXts learn eight groups of brain regions on the slices of a head's left half, mirrored, from the start
under one segmentation head. Then all their stitches learn together; the right half tests every stitch. For comparison,
each anchor and the stitch halfway in cost learn alone with a head of their own, on as many images. One head is one
subject: the figures compare stitches, and say nothing of other heads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from head_mri_data import CLASSES, IGNORED, write_slices
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import timm_stitch
from timm_stitch import DenseNetwork, TrainConfig
from timm_stitch.data.dataset import build_dataset

SIZE = (128, 64)
DEPTHS = (2, 2, 4, 2)  # blocks in the stages of both anchors
COLOURS = np.array(
    [
        (240, 240, 240), (78, 121, 167), (237, 201, 72), (176, 122, 161), (225, 87, 89), (242, 142, 43),
        (156, 117, 95), (89, 161, 79), (118, 183, 178),
    ],
    np.uint8,
)  # fmt: skip


def make_anchor(width: int) -> nn.Module:
    """Make a small ConvNeXt for images of one channel, with random weights."""
    images = {"mean": (0.4,), "std": (0.3,), "input_size": (1, *SIZE), "crop_pct": 1.0}
    return timm.create_model(
        "convnext_atto", in_chans=1, num_classes=0, depths=DEPTHS, dims=[width * 2**stage for stage in range(4)],
        pretrained_cfg_overlay=images,
    )  # fmt: skip


def make_config(data: Path, epochs: int, seed: int, **others: Any) -> TrainConfig:
    """Make the configuration that all runs share; slices keep their left and right, which are not alike."""
    values = {
        "lr": 4e-3, "min_lr": 2e-5, "warmup_epochs": min(2, epochs / 4), "weight_decay": 0.05, "batch_size": 4,
        "crop_size": SIZE, "scale_range": (0.85, 1.2), "cat_max_ratio": 1.0, "hflip": 0.0, "color_jitter": 0.3,
        "smoothing": 0.0, "mixup": 0, "cutmix": 0, "workers": 0, "trackers": None, **others,
    }  # fmt: skip
    return TrainConfig(data_dir=str(data), train_split="training", epochs=epochs, seed=seed, **values)


def load_slices(net: DenseNetwork, data: Path, training: bool) -> DataLoader:
    """Make a loader of the slices of a half, without augmentation."""
    config = make_config(data, 1, 0)
    return DataLoader(build_dataset(config, net, training, augment=False), batch_size=16, shuffle=training)


def draw(net: DenseNetwork, data: Path, stitch_ids: Sequence[int], path: Path) -> None:
    """Draw slices of the test half: the image, the truth, and the masks of some stitches side by side."""
    pairs = load_slices(net, data, training=False).dataset
    rows = []
    for number in (len(pairs) // 3, len(pairs) // 2):
        image, truth = pairs.pair(number)
        pixels = pairs[number][0][None]
        masks = [truth, *(net.predict(pixels, stitch_id=k)[0].argmax(0).numpy() for k in stitch_ids)]
        counts = (truth != IGNORED)[..., None]
        panels = [np.asarray(image.convert("RGB")), *(np.where(counts, COLOURS[m % IGNORED], 255) for m in masks)]
        height, width = counts.any(1).sum(), counts.any(0).sum()
        rows.append(
            np.hstack([np.pad(p[:height, :width], ((0, 6), (0, 6), (0, 0)), constant_values=255) for p in panels])
        )
    picture = np.vstack(rows).astype(np.uint8)
    Image.fromarray(picture).resize((2 * picture.shape[1], 2 * picture.shape[0]), Image.Resampling.NEAREST).save(path)


def run(data: Path, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and stitch with one seed; return the rows of every stitch, and of those that learn alone."""
    used = time.process_time()
    torch.manual_seed(seed)
    anchors = [make_anchor(width) for width in options.widths]
    network = timm_stitch.stitch(anchors, kernel_size=1)
    net = timm_stitch.dense(network, head="linear", num_classes=len(CLASSES), label_names=CLASSES)
    small, large, *others = (row["macs"] for row in net.stitch_table())
    middle = 2 + min(range(len(others)), key=lambda k: abs(others[k] - (small + large) / 2))
    alone = [net.extract(stitch_id, copy=True) for stitch_id in (0, 1, middle)]
    test = load_slices(net, data, training=False)
    print(f"Seed {seed}. 1. Both anchors learn in every step, under one head.")
    first = make_config(
        data, options.anchor_epochs, seed, sampling="importance", stitches=len(anchors),
        scores={stitch_id: float(stitch_id < len(anchors)) for stitch_id in net.stitch_ids},
    )  # fmt: skip
    timm_stitch.train(net, first)

    print(f"2. All {net.num_stitches} stitches learn together.")
    timm_stitch.least_squares_init(net, load_slices(net, data, training=True), layers="stitching_layers")
    together = make_config(data, options.epochs, seed, sampling="sandwich", stitches=1, ema_decay=0.99)
    timm_stitch.train(net, together)
    rows = [{"network": "stitched", **row} for row in timm_stitch.evaluate(net, test)]
    timm_stitch.save_pretrained(net, options.output / f"snnet_{seed}", results=rows)

    print("3. Each anchor and the stitch halfway in cost learn alone, on as many images.")
    for one in alone:
        timm_stitch.train(one, make_config(data, options.anchor_epochs, seed))
        timm_stitch.train(one, make_config(data, options.epochs, seed, ema_decay=0.99))
        rows += [{"network": "alone", **row} for row in timm_stitch.evaluate(one, test)]
    draw(net, data, [0, middle, 1], options.output / "slices.png")
    seconds, threads = round(time.process_time() - used), torch.get_num_threads()
    return [{"seed": seed, **row, "cpu_seconds": seconds, "threads": threads} for row in rows]


def mean_rows(rows: Sequence[dict[str, Any]], network: str) -> list[dict[str, Any]]:
    """Average the metrics of each stitch over the seeds."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["network"] == network:
            groups.setdefault(row["stitch_id"], []).append(row)
    return [
        {**group[0], **{name: statistics.fmean(row[name] for row in group) for name in ("miou", "aacc", "macc")}}
        for _, group in sorted(groups.items())
    ]


def report(rows: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> None:
    """Print every stitch, those that learned alone, and how all stand to the line between the anchors."""
    beside = {row["stitch_id"]: f"{row['miou']:6.1f}" for row in alone}
    print("\n  id  network                                        MMACs   params   mIoU   aAcc   alone (mIoU)")
    for row in sorted(rows, key=lambda row: row["macs"]):
        print(
            f"  {row['stitch_id']:>2}  {row['name']:<44} {row['macs'] / 1e6:>7.1f} {row['params'] / 1e3:>7.0f}k "
            f"{row['miou']:>6.1f} {row['aacc']:>6.1f}   {beside.get(row['stitch_id'], '')}"
        )
    gains, gain_alone = gains_over_line(rows), gains_over_line(alone)
    print(
        f"\nOf {len(gains)} stitches that cost less than the largest anchor, {sum(gain >= 0 for gain in gains)} are "
        f"on or above the straight line between the anchors, on average {statistics.fmean(gains):+.1f} mIoU. The one "
        f"that learned alone stands {gain_alone[0]:+.1f} to the line between the anchors alone."
    )


def gains_over_line(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Compute how far each stitch between the anchors, the first two rows, is above the straight line between them."""
    small, large, *others = rows
    slope = (large["miou"] - small["miou"]) / (large["macs"] - small["macs"])
    return [
        row["miou"] - small["miou"] - slope * (row["macs"] - small["macs"])
        for row in others
        if row["macs"] < large["macs"]
    ]


def main() -> None:
    """Run each seed that the output does not have yet, and end with a table of their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ch2.nii.gz, aal.nii.gz and aal.nii.txt")
    parser.add_argument("--output", type=Path, default=Path("head-mri-output"))
    parser.add_argument("--widths", type=int, nargs=2, default=[8, 32], help="channels of the anchors' first stage")
    parser.add_argument("--anchor-epochs", type=int, default=8, help="of training both anchors, before their stitches")
    parser.add_argument("--epochs", type=int, default=36, help="of training all stitches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    began, results = time.monotonic(), options.output / "results.jsonl"
    data = write_slices(options.data, options.output / "slices")
    rows = timm_stitch.read_rows(results) if results.exists() else []
    for seed in options.seeds:
        if seed not in {row["seed"] for row in rows}:
            rows += run(data, seed, options)
            timm_stitch.write_rows(results, rows)
    stitched, alone = (mean_rows(rows, network) for network in ("stitched", "alone"))
    report(stitched, alone)
    seeds = len({row["seed"] for row in rows})
    title = f"One network on the other half of a head (mean of {seeds} seeds)"
    timm_stitch.plot_curve(stitched, options.output / "curve.png", title=title, others={"alone": alone})
    print(f"Pictures and rows: {options.output}   All in {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
