"""The paper's claims on all of Fashion-MNIST: three small DeiTs, stitched and trained in many ways.

    python benchmarks/fashion_mnist.py OUT                        # every comparison, two seeds: hours on two cores
    python benchmarks/fashion_mnist.py OUT --only base kaiming    # some of them
    python benchmarks/fashion_mnist.py OUT --report               # what the rows say: tables and plots

Each run is one line of OUT/runs.jsonl, and what is there is not run again. Images: the Debian package
`dataset-fashion-mnist`, or any folder with the four gzip files of the data set. The anchors are read from
`--anchors` (deit_fmnist_t, _s, _b.safetensors), or trained first and kept there. One figure for a curve is its
frontier area: the best accuracy at or below a cost, averaged over log MACs from the smallest to the largest anchor.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import timm_stitch
from timm_stitch.frontier import frontier_area
from timm_stitch.network import SNNet
from timm_stitch.plotting import plot_curve
from timm_stitch.prefixes import shared_macs
from timm_stitch.sampling import make_rule

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quickstart import MEAN, STD, Augmented

WIDTHS = {"deit_fmnist_t": (32, 1), "deit_fmnist_s": (64, 2), "deit_fmnist_b": (128, 4)}
ANCHOR_EPOCHS = {"deit_fmnist_t": 6, "deit_fmnist_s": 6, "deit_fmnist_b": 5}
BATCH = 250
COMMON: dict[str, Any] = {
    "batch_size": BATCH, "weight_decay": 0.05, "mixup": 0, "cutmix": 0, "smoothing": 0.1, "workers": 0,
    "trackers": None,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to make an SN-Net of the three anchors.

    Args:
        stitch: arguments of `timm_stitch.stitch`.
        init_images: for least squares; 0 leaves the stitching layers with Kaiming's random weights.
        trained_anchors: else they have random weights.
        taught: learn from the frozen largest anchor too.
        config: fields of `TrainConfig` that differ from SN-Net's run on these anchors.
    """

    stitch: dict[str, Any] = field(default_factory=dict)
    init_images: int = 100
    trained_anchors: bool = True
    taught: bool = False
    config: dict[str, Any] = field(default_factory=dict)


BETTER = {"sampling": "sandwich", "stitches": 2, "inplace_distillation": True}
VARIANTS: dict[str, Variant] = {
    "base": Variant(),
    "kaiming": Variant(init_images=0),
    "images 1000": Variant(init_images=1000),
    "slow to fast": Variant(stitch={"direction": "slow_to_fast"}),
    "all pairs": Variant(stitch={"nearest": False}),
    "kernel 1": Variant(stitch={"kernel_size": 1}),
    "kernel 3": Variant(stitch={"kernel_size": 3}),
    "stitches only": Variant(config={"tune": "stitches"}),
    "dense updates": Variant(config={"dense_updates": True}),
    "four a step": Variant(config={"stitches": 4}),
    "sandwich": Variant(config=BETTER),
    "random anchors": Variant(trained_anchors=False, init_images=0, config={"lr": 1e-3}),
    "long": Variant(config={"epochs": 4}),
    "long, higher rate": Variant(config={"epochs": 4, "lr": 1e-3}),
    "long, sandwich": Variant(config={**BETTER, "epochs": 4}),
    "best": Variant(taught=True, config={**BETTER, "epochs": 4, "lr": 1e-3, "distillation": "soft"}),
}


COMPARISONS = [
    ("base", "kaiming"), ("images 1000", "base"), ("base", "slow to fast"), ("base", "all pairs"),
    ("base", "kernel 1"), ("base", "kernel 3"), ("base", "stitches only"), ("dense updates", "base"),
    ("four a step", "base"), ("sandwich", "base"), ("sandwich", "four a step"), ("base", "random anchors"),
    ("long", "base"), ("long", "authors' code, none"), ("long, sandwich", "long"), ("best", "long"), ("best", "alone"),
]  # fmt: skip
LOW, HIGH = 1_425_120, 20_740_992  # multiply-adds of the smallest and the largest anchor


def read_images(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Training and test images (N, 1, 28, 28), normalised, with labels, from the data set's gzip files."""
    found = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        raw = [
            np.frombuffer(gzip.decompress((folder / f"{name}-{what}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
            for what, offset in (("images-idx3", 16), ("labels-idx1", 8))
        ]
        pixels = torch.from_numpy(raw[0].copy()).reshape(-1, 1, 28, 28).float() / 255
        found[part] = ((pixels - MEAN) / STD, torch.from_numpy(raw[1].copy()).long())
    return found


def make_anchor(name: str, seed: int) -> nn.Module:
    """A small DeiT with random weights."""
    width, heads = WIDTHS[name]
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=width, depth=6, num_heads=heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    model.pretrained_cfg = {"architecture": name, "mean": (MEAN,), "std": (STD,), "input_size": (1, 28, 28)}
    return model


def read_anchors(folder: Path, data: Dataset) -> list[nn.Module]:
    """The three trained anchors; those that are missing are trained and kept."""
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


def schedule(epochs: float, steps: int, lr: float) -> dict[str, Any]:
    """Linear warm-up over a tenth of the steps, cosine to a hundredth."""
    return {
        "epochs": math.ceil(epochs), "max_steps": steps, "lr": lr, "warmup_epochs": epochs / 10,
        "warmup_lr": lr / 100, "min_lr": lr / 100,
    }  # fmt: skip


def train_alone(network: SNNet, data: Dataset, epochs: float, lr: float, seed: int) -> None:
    """Train one extracted stitch, in place, as a plain network."""
    config = timm_stitch.TrainConfig(
        **COMMON, seed=seed, **schedule(epochs, steps=round(epochs * len(data) / BATCH), lr=lr)
    )
    timm_stitch.train(network, config, train_data=data, progress=False)


def run(variant: Variant, seed: int, folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Stitch, initialise, train, evaluate: one row."""
    if variant.trained_anchors:
        anchors = read_anchors(folder, data["train"])
    else:
        anchors = [make_anchor(name, seed) for name in WIDTHS]
    torch.manual_seed(seed)
    model = timm_stitch.stitch(anchors, **variant.stitch)
    if variant.init_images:
        chosen = torch.randperm(len(data["images"]), generator=torch.Generator().manual_seed(seed))
        timm_stitch.least_squares_init(model, data["images"][chosen[: variant.init_images]])
    changed = variant.stitch or not variant.trained_anchors or variant.init_images != 100
    before = timm_stitch.evaluate(model, data["test"]) if changed or variant == Variant() else []  # else as in "base"
    fields = {"epochs": 1, "lr": 1.5e-4, **variant.config}
    steps = fields["epochs"] * len(data["train"]) // BATCH
    config = timm_stitch.TrainConfig(
        **{**COMMON, "seed": seed, **fields, **schedule(fields["epochs"], steps, fields["lr"])}
    )
    teacher = read_anchors(folder, data["train"])[-1] if variant.taught else None
    done = timm_stitch.train(model, config, train_data=data["train"], teacher=teacher, progress=False)
    after = timm_stitch.evaluate(model, data["test"])
    return {
        "steps": done["steps"],
        "images": done["images"],
        "seconds": round(done["seconds"], 1),
        "macs_an_image": macs_an_image(model, config, done["steps"]),
        "params": sum(p.numel() for p in model.parameters()),
        "names": {row["stitch_id"]: row["name"] for row in after},
        "macs": {row["stitch_id"]: row["macs"] for row in after},
        "init": {row["stitch_id"]: round(row["top1"], 2) for row in before},
        "final": {row["stitch_id"]: round(row["top1"], 2) for row in after},
    }


def macs_an_image(model: SNNet, config: timm_stitch.TrainConfig, steps: int) -> float:
    """Multiply-adds of the forward passes for one training image, on average over the steps."""
    costs = model.costs()
    anchors = [s.stitch_id for s in model.plan if s.is_anchor]
    macs = {s.stitch_id: costs.cost(s).macs for s in model.plan if config.tune == "all" or not s.is_anchor}
    rule = make_rule(
        config.sampling, macs, config.seed, largest=anchors[-1], smallest=anchors[0], stitches=config.stitches
    )
    return statistics.fmean(shared_macs([model.plan[i] for i in rule(step)], costs) for step in range(steps))


def run_alone(seed: int, folder: Path, data: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Networks of seven costs along the frontier, trained alone at the total cost of anchors and SN-Net."""
    model = timm_stitch.stitch([make_anchor(name, seed) for name in WIDTHS])
    table = {row["stitch_id"]: row for row in model.stitch_table()}
    low, high = table[0]["macs"], table[2]["macs"]
    targets = [low * (high / low) ** (i / 6) for i in range(1, 6)]
    between = [min(range(3, len(table)), key=lambda i: abs(math.log(table[i]["macs"] / t))) for t in targets]
    chosen = [0, *between, 2]
    total = sum(ANCHOR_EPOCHS[n] * table[i]["macs"] for i, n in enumerate(WIDTHS)) + 4 * base["macs_an_image"]
    epochs = total / sum(table[i]["macs"] for i in chosen)
    row: dict[str, Any] = {"epochs_each": epochs, "names": {}, "macs": {}, "init": {}, "final": {}, "params": 0}
    started = time.monotonic()
    for i in chosen:
        fresh = timm_stitch.stitch([make_anchor(name, seed) for name in WIDTHS])
        network = fresh.extract(i, copy=True)
        train_alone(network, data["train"], epochs, lr=2e-3, seed=seed)
        (result,) = timm_stitch.evaluate(network, data["test"])
        row["names"][i], row["macs"][i], row["final"][i] = result["name"], result["macs"], round(result["top1"], 2)
        row["params"] += sum(p.numel() for p in network.parameters())
    row["seconds"] = round(time.monotonic() - started, 1)
    return row


def area(row: Mapping[str, Any], which: str = "final") -> float:
    """The frontier area of a row between the smallest and the largest anchor."""
    rows = [{"macs": row["macs"][i], "top1": top1} for i, top1 in row[which].items()]
    return frontier_area(rows, LOW, HIGH)


def anchor_row(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The anchors as they are, before any stitching."""
    model = timm_stitch.stitch(read_anchors(folder, data["train"]))
    rows = timm_stitch.evaluate(model, data["test"], [0, 1, 2])
    return {key: {r["stitch_id"]: r[name] for r in rows} for key, name in (("macs", "macs"), ("final", "top1"))}


def straight_line(row: Mapping[str, Any]) -> float:
    """The area under straight lines from anchor to anchor, over log MACs: what mixing anchors image by image gives."""
    points = sorted((math.log(row["macs"][i]), row["final"][i]) for i in row["final"])
    parts = [(b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points)]
    return sum(parts) / (points[-1][0] - points[0][0])


def read_runs(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """All rows by variant and seed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["variant"], row["seed"]): row for row in rows}


def spread(values: Sequence[float]) -> str:
    """Mean and, of several seeds, the range."""
    mean = statistics.fmean(values)
    return f"{mean:.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def report(out: Path, official: Path | None) -> str:
    """Tables of all runs, comparisons, and a plot for each variant."""
    runs = read_runs(out / "runs.jsonl")
    groups: dict[str, list[dict[str, Any]]] = {}
    for (name, _), row in sorted(runs.items(), key=lambda item: (list(VARIANTS).index(item[0][0]), item[0][1])
                                 if item[0][0] in VARIANTS else (99, 0)):  # fmt: skip
        groups.setdefault(name, []).append(row)
    anchors = groups.pop("anchors")[0]
    theirs = json.loads(official.read_text())["runs"] if official else []
    for row in theirs:
        groups.setdefault(f"authors' code, {row['variant']}", []).append(row)
    lines = [
        f"Anchors left alone: area {area(anchors):.2f}; straight lines between them {straight_line(anchors):.2f}.",
        "",
        "| variant | seeds | stitches | images seen | cost | area at init | area | anchors' change (T, S, B) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cost = statistics.fmean(r["macs_an_image"] for r in groups["base"]) if "base" in groups else math.nan
    for name, rows in groups.items():
        first = rows[0]
        change = [statistics.fmean(r["final"].get(i, math.nan) - anchors["final"][i] for r in rows) for i in "012"]
        seen = f"{first['images']:,}" if "images" in first else f"{first.get('epochs', 0) * 60000:,}"
        paid = f"{first['macs_an_image'] / cost:.2f}" if "macs_an_image" in first else ""
        begin = spread([area(r, "init") for r in rows]) if first["init"] else ""
        lines.append(
            f"| {name} | {len(rows)} | {len(first['final'])} | {seen} | {paid} | {begin} "
            f"| {spread([area(r) for r in rows])} | {', '.join(f'{c:+.2f}' for c in change)} |"
        )
    lines += ["", "| comparison | difference of areas | seeds differ by | found |", "|---|---|---|---|"]
    for a, b in COMPARISONS:
        if a in groups and b in groups:
            left, right = ([area(r) for r in groups[name]] for name in (a, b))
            difference = statistics.fmean(left) - statistics.fmean(right)
            noise = max(max(v) - min(v) for v in (left, right))
            found = "none" if abs(difference) <= noise else a if difference > 0 else b
            lines.append(f"| {a} against {b} | {difference:+.2f} | {noise:.2f} | {found} |")
    for name, rows in groups.items():
        if name.startswith("authors"):
            continue
        points = [
            {"macs": rows[0]["macs"][i], "top1": rows[0]["final"][i], "name": rows[0]["names"][i]}
            for i in rows[0]["final"]
        ]
        others = {"anchors before": [{"macs": anchors["macs"][i], "top1": anchors["final"][i]} for i in "012"]}
        if theirs:
            plain = next(r for r in theirs if r["variant"] == "none")
            others["authors' code"] = [{"macs": plain["macs"][i], "top1": t} for i, t in plain["final"].items()]
        plot_curve(points, out / f"{name.replace(' ', '_').replace(',', '')}.png", title=name, others=others)
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--anchors", type=Path, help="default: OUT/anchors")
    parser.add_argument("--only", nargs="+", default=[*VARIANTS, "alone"], choices=[*VARIANTS, "alone"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--official", type=Path, help="rows of the authors' code on the same anchors")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, kept = options.anchors or options.out / "anchors", options.out / "runs.jsonl"
    if not options.report:
        options.out.mkdir(parents=True, exist_ok=True)
        found = read_images(options.images)
        data = {
            "images": found["train"][0],
            "train": Augmented(*found["train"]),
            "test": DataLoader(TensorDataset(*found["test"]), batch_size=500),
        }
        for seed in options.seeds:
            for name in ["anchors", *options.only]:
                done = read_runs(kept)
                if (name, seed) in done or (name == "anchors" and ("anchors", 0) in done):
                    continue
                if name == "anchors":
                    row = anchor_row(folder, data)
                elif name == "alone":
                    row = run_alone(seed, folder, data, done["base", seed])
                else:
                    row = run(VARIANTS[name], seed, folder, data)
                with kept.open("a") as file:
                    file.write(json.dumps({"variant": name, "seed": seed, **row}) + "\n")
                print(f"{name}, seed {seed}: {row.get('seconds', 0)} s", flush=True)
    text = report(options.out, options.official)
    (options.out / "report.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
