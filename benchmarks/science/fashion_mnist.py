"""The paper's claims on all of Fashion-MNIST: three small DeiTs, stitched and trained in many ways.

    python benchmarks/science/fashion_mnist.py OUT                        # every comparison, two seeds: hours on two cores
    python benchmarks/science/fashion_mnist.py OUT --only plain kaiming   # some of them
    python benchmarks/science/fashion_mnist.py OUT --report               # what the rows say: tables and plots

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
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import timm_stitch
from timm_stitch.evaluation.plotting import plot_curve
from timm_stitch.families.timm_models.network import SNNet
from timm_stitch.plan.frontier import frontier_area
from timm_stitch.plan.prefix_sharing import shared_macs
from timm_stitch.training.sampling import make_rule

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from quickstart import MEAN, STD

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
        anchors_first: epochs in which the anchors alone are trained on, a random one each step, before least squares.
        augmented: train on flipped and shifted images, as the authors' code did here and as the anchors were trained.
        config: fields of `TrainConfig` that differ from `OURS`.
        short: one of the runs of one epoch, evaluated on the first half of the test images only.
    """

    stitch: dict[str, Any] = field(default_factory=dict)
    init_images: int = 100
    trained_anchors: bool = True
    anchors_first: int = 0
    augmented: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    short: bool = True


AUTHORS = {"batch_size": 250, "lr": 1.5e-4, "stitch_lr_scale": 1.0}  # and augmented images
OURS = {"batch_size": 50, "lr": 1e-3, "stitch_lr_scale": 2.0}
SANDWICH = {"sampling": "sandwich", "stitches": 1, "inplace_distillation": True}
ALL_ANCHORS = {**SANDWICH, "sampling": "anchors"}
VARIANTS: dict[str, Variant] = {
    "plain": Variant(),
    "kaiming": Variant(init_images=0),
    "images 1000": Variant(init_images=1000),
    "slow to fast": Variant(stitch={"direction": "slow_to_fast"}),
    "all pairs": Variant(stitch={"nearest": False}),
    "kernel 1": Variant(stitch={"kernel_size": 1}),
    "kernel 3": Variant(stitch={"kernel_size": 3}),
    "stitches only": Variant(config={"tune": "stitches"}),
    "two a step": Variant(config={"stitches": 2}),
    "sandwich": Variant(config=SANDWICH),
    "all anchors": Variant(config=ALL_ANCHORS),
    "random anchors": Variant(trained_anchors=False, init_images=0),
    "authors' recipe, 4 epochs": Variant(augmented=True, config={**AUTHORS, "epochs": 4}, short=False),
    "plain, 4 epochs": Variant(config={"epochs": 4}, short=False),
    "anchors first, 2 + 2 epochs": Variant(anchors_first=2, config={"epochs": 2}, short=False),
    "sandwich, 4 epochs": Variant(config={**SANDWICH, "epochs": 4}, short=False),
    "all anchors, 4 epochs": Variant(config={**ALL_ANCHORS, "epochs": 4}, short=False),
    "sandwich, augmented, 4 epochs": Variant(augmented=True, config={**SANDWICH, "epochs": 4}, short=False),
}
BESIDE = ["anchors trained on", "alone, anchors free", "alone"]  # what is no SN-Net

COMPARISONS = [
    ("plain", "kaiming"), ("images 1000", "plain"), ("plain", "slow to fast"), ("plain", "all pairs"),
    ("plain", "kernel 1"), ("kernel 3", "plain"), ("plain", "stitches only"), ("two a step", "plain"),
    ("sandwich", "plain"), ("sandwich", "two a step"), ("all anchors", "sandwich"), ("plain", "random anchors"),
    ("plain, 4 epochs", "plain"), ("sandwich, 4 epochs", "sandwich"),
    ("authors' recipe, 4 epochs", "authors' code, none"), ("plain, 4 epochs", "authors' recipe, 4 epochs"),
    ("sandwich, 4 epochs", "plain, 4 epochs"), ("all anchors, 4 epochs", "sandwich, 4 epochs"),
    ("anchors first, 2 + 2 epochs", "plain, 4 epochs"), ("anchors first, 2 + 2 epochs", "sandwich, 4 epochs"),
    ("anchors first, 2 + 2 epochs", "anchors trained on"),
    ("sandwich, augmented, 4 epochs", "authors' recipe, 4 epochs"),
    ("plain, 4 epochs", "anchors trained on"), ("sandwich, 4 epochs", "anchors trained on"),
    ("plain, 4 epochs", "alone, anchors free"), ("plain, 4 epochs", "alone"), ("sandwich, 4 epochs", "alone"),
]  # fmt: skip
LOW, HIGH = 1_425_120, 20_740_992  # multiply-adds of the smallest and the largest anchor


class Augmented(Dataset):
    """Fashion-MNIST with random flips and shifts of up to two pixels."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.padded, self.labels = nn.functional.pad(images, (2, 2, 2, 2), value=-MEAN / STD), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        top, left = torch.randint(0, 5, (2,)).tolist()
        image = self.padded[index, :, top : top + 28, left : left + 28]
        return (image.flip(-1) if torch.rand(()) < 0.5 else image), self.labels[index]


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


def schedule(epochs: int, steps: int, lr: float) -> dict[str, Any]:
    """Linear warm-up over a tenth of the steps, cosine to a hundredth."""
    return {
        "epochs": epochs, "max_steps": steps, "lr": lr, "warmup_epochs": epochs / 10, "warmup_lr": lr / 100,
        "min_lr": lr / 100,
    }  # fmt: skip


def train_alone(network: SNNet, data: Dataset, epochs: float, lr: float, seed: int, batch: int = BATCH) -> None:
    """Train one extracted stitch, in place, as a plain network; a part of an epoch is a part of the images."""
    seen = round(epochs * len(data))
    once = Subset(ConcatDataset([data] * math.ceil(epochs)), range(seen))
    values = {**COMMON, "batch_size": batch, **schedule(1, steps=seen // batch, lr=lr)}
    timm_stitch.train(network, timm_stitch.TrainConfig(**values, seed=seed), train_data=once, progress=False)


def evaluated(model: SNNet, tests: Sequence[DataLoader]) -> dict[str, Any]:
    """Accuracy of every stitch on all of these equal parts of the test images, and on the first alone."""
    parts = [{r["stitch_id"]: r["top1"] for r in timm_stitch.evaluate(model, test)} for test in tests]
    whole = {k: round(statistics.fmean(part[k] for part in parts), 2) for k in parts[0]}
    return {"final": whole, "first": {k: round(v, 2) for k, v in parts[0].items()}}


def described(model: SNNet) -> dict[str, Any]:
    """What the stitches of a network are and cost."""
    table = model.stitch_table()
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "names": {row["stitch_id"]: row["name"] for row in table},
        "macs": {row["stitch_id"]: row["macs"] for row in table},
    }


def run(variant: Variant, seed: int, folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Stitch, initialise, train, evaluate: one row."""
    if variant.trained_anchors:
        anchors = read_anchors(folder, data["augmented"])
    else:
        anchors = [make_anchor(name, seed) for name in WIDTHS]
    torch.manual_seed(seed)
    model = timm_stitch.stitch(anchors, **variant.stitch)
    train_data, runs = data["augmented" if variant.augmented else "plain"], []
    if variant.anchors_first:
        scores = {s.stitch_id: float(s.is_anchor) for s in model.plan}
        first = {"epochs": variant.anchors_first, "sampling": "importance", "scores": scores}
        runs.append(train_stitches(model, train_data, {**OURS, **first, "seed": seed}))
    if variant.init_images:
        chosen = torch.randperm(len(data["images"]), generator=torch.Generator().manual_seed(seed))
        timm_stitch.least_squares_init(model, data["images"][chosen[: variant.init_images]])
    tests = data["tests"][:1] if variant.short else data["tests"]
    begins = variant in (Variant(init_images=n) for n in (0, 100, 1000))  # the others begin as the second
    before = evaluated(model, tests)["first"] if begins else {}
    runs.append(train_stitches(model, train_data, {"epochs": 1, **OURS, **variant.config, "seed": seed}))
    images = sum(r["images"] for r in runs)
    return {
        "steps": sum(r["steps"] for r in runs),
        "images": images,
        "seconds": round(sum(r["seconds"] for r in runs), 1),
        "macs_an_image": sum(r["images"] * r["macs_an_image"] for r in runs) / images,
        **described(model),
        "init": before,
        **evaluated(model, tests),
    }


def train_stitches(model: SNNet, data: Dataset, values: Mapping[str, Any]) -> dict[str, Any]:
    """Train with the fields given, and say what it took."""
    fields = {**COMMON, **values}
    steps = fields["epochs"] * len(data) // fields["batch_size"]
    config = timm_stitch.TrainConfig(**{**fields, **schedule(fields["epochs"], steps, fields["lr"])})
    done = timm_stitch.train(model, config, train_data=data, progress=False)
    return {**done, "macs_an_image": macs_an_image(model, config, done["steps"])}


def macs_an_image(model: SNNet, config: timm_stitch.TrainConfig, steps: int) -> float:
    """Multiply-adds of the forward passes for one training image, on average over the steps."""
    costs = model.costs()
    anchors = [s.stitch_id for s in model.plan if s.is_anchor][::-1]
    macs = {s.stitch_id: costs.cost(s).macs for s in model.plan if config.tune == "all" or not s.is_anchor}
    rule = make_rule(
        config.sampling, macs, config.seed, anchors=anchors, stitches=config.stitches, scores=config.scores
    )
    return statistics.fmean(shared_macs([model.plan[i] for i in rule(step)], costs) for step in range(steps))


def run_trained_on(seed: int, folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The anchors, each trained on alone; together they see as many images as a run of four epochs."""
    model = timm_stitch.stitch(read_anchors(folder, data["augmented"]))
    row: dict[str, Any] = {"images": 4 * len(data["plain"]), "init": {}, "final": {}, "first": {}}
    row |= {"params": sum(p.numel() for p in model.anchors.parameters()), "names": {}, "macs": {}}
    began = time.monotonic()
    for i in range(3):
        network = model.extract(i, copy=True)
        train_alone(network, data["plain"], 4 / 3, lr=OURS["lr"], seed=seed, batch=OURS["batch_size"])
        add_alone(row, i, network, data["tests"])
    costs = model.costs()
    row["macs_an_image"] = statistics.fmean(costs.cost(model.plan[i]).macs for i in range(3))
    return row | {"seconds": round(time.monotonic() - began, 1)}


def even_in_cost(macs: Mapping[int, int]) -> list[int]:
    """Seven stitches, the smallest and the largest anchor among them, about even in log MACs."""
    targets = [macs[0] * (macs[2] / macs[0]) ** (i / 6) for i in range(1, 6)]
    between = [min(range(3, len(macs)), key=lambda i: abs(math.log(macs[i] / t))) for t in targets]
    return [0, *between, 2]


def run_alone(seed: int, data: Mapping[str, Any], base: Mapping[str, Any], anchors_too: bool) -> dict[str, Any]:
    """Networks of seven costs along the frontier, trained alone from scratch, on plain images, equal epochs each.

    In total they cost as much as the SN-Net's run `base`, and with `anchors_too` what its anchors cost besides.
    """
    model = timm_stitch.stitch([make_anchor(name, seed) for name in WIDTHS])
    macs = {row["stitch_id"]: row["macs"] for row in model.stitch_table()}
    chosen = even_in_cost(macs)
    total = base["images"] / len(data["plain"]) * base["macs_an_image"]
    if anchors_too:
        total += sum(ANCHOR_EPOCHS[n] * macs[i] for i, n in enumerate(WIDTHS))
    epochs = total / sum(macs[i] for i in chosen)
    row: dict[str, Any] = {"epochs_each": epochs, "init": {}, "final": {}, "first": {}, "names": {}, "macs": {}}
    row |= {"images": round(epochs * len(chosen) * len(data["plain"])), "params": 0}
    began = time.monotonic()
    for i in chosen:
        fresh = timm_stitch.stitch([make_anchor(name, seed) for name in WIDTHS])
        network = fresh.extract(i, copy=True)
        train_alone(network, data["plain"], epochs, lr=2e-3, seed=seed, batch=100)
        add_alone(row, i, network, data["tests"])
        row["params"] += sum(p.numel() for p in network.parameters())
    return row | {"seconds": round(time.monotonic() - began, 1)}


def add_alone(row: dict[str, Any], number: int, network: SNNet, tests: Sequence[DataLoader]) -> None:
    """Add one network's figures to a row."""
    for key, values in (described(network) | evaluated(network, tests)).items():
        if key != "params":
            row[key][number] = values[number]


def area(row: Mapping[str, Any], which: str = "final") -> float:
    """The frontier area of a row between the smallest and the largest anchor."""
    rows = [{"macs": row["macs"][i], "top1": top1} for i, top1 in row[which].items()]
    return frontier_area(rows, LOW, HIGH)


def anchor_row(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The anchors as they are, before any stitching."""
    model = timm_stitch.stitch(read_anchors(folder, data["augmented"]))
    row: dict[str, Any] = {"init": {}, "final": {}, "first": {}, "names": {}, "macs": {}}
    for i in range(3):
        add_alone(row, i, model.extract(i), data["tests"])
    return row


def straight_line(row: Mapping[str, Any]) -> float:
    """The area under straight lines from anchor to anchor, over log MACs: what mixing anchors image by image gives."""
    return under_lines(sorted((math.log(row["macs"][i]), row["final"][i]) for i in row["final"]))


def under_lines(points: Sequence[tuple[float, float]]) -> float:
    """The mean height of straight lines from point to point, which are (x, y) with rising x."""
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


def is_short(row: Mapping[str, Any]) -> bool:
    """Whether a row was evaluated on the first half of the test images only."""
    return row["final"] == row.get("first")


def areas(rows: Sequence[Mapping[str, Any]], first: bool) -> list[float]:
    """The area of each row, on all test images or on the first half."""
    return [area(row, "first" if first else "final") for row in rows]


def points(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row's stitches as `plot_curve` takes them."""
    names = row.get("names", {})
    return [{"macs": row["macs"][i], "top1": top1, "name": names.get(i, "")} for i, top1 in row["final"].items()]


def report(out: Path, official: Path | None) -> str:
    """Tables of all runs, comparisons, and a plot for each variant."""
    groups: dict[str, list[dict[str, Any]]] = {}
    runs = read_runs(out / "runs.jsonl")
    order = ["anchors", *VARIANTS, *BESIDE]
    for name, seed in sorted(runs, key=lambda key: (order.index(key[0]), key[1])):
        groups.setdefault(name, []).append(runs[name, seed])
    anchors = groups.pop("anchors")[0]
    theirs = json.loads(official.read_text())["runs"] if official else []
    for row in theirs:
        groups.setdefault(f"authors' code, {row['variant']}", []).append(row)
    lines = [
        f"Anchors left alone: area {area(anchors):.2f}, on the first half of the test images "
        f"{area(anchors, 'first'):.2f}; straight lines between them {straight_line(anchors):.2f}. Rows marked * are "
        "of the first half.",
        "",
        "| variant | seeds | stitches | images | MMACs an image | at init | area | anchors' change (T, S, B) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in groups.items():
        row, short = rows[0], is_short(rows[0])
        bare = anchors["first" if short else "final"]
        change = [statistics.fmean(r["final"].get(i, math.nan) - bare[i] for r in rows) for i in "012"]
        seen = f"{row['images']:,}" if "images" in row else f"{row.get('epochs', 0) * 60000:,}"
        paid = f"{row['macs_an_image'] / 1e6:.1f}" if "macs_an_image" in row else ""
        begin = spread([area(r, "init") for r in rows]) if "images" in row and row["init"] else ""
        lines.append(
            f"| {name}{' *' if short else ''} | {len(rows)} | {len(row['final'])} | {seen} | {paid} | {begin} "
            f"| {spread(areas(rows, False))} | {', '.join(f'{c:+.2f}' if c == c else '–' for c in change)} |"
        )
    lines += ["", "| comparison | difference of areas | seeds differ by | found |", "|---|---|---|---|"]
    for a, b in COMPARISONS:
        if a in groups and b in groups:
            short = is_short(groups[a][0]) or is_short(groups[b][0])
            left, right = areas(groups[a], short), areas(groups[b], short)
            difference = statistics.fmean(left) - statistics.fmean(right)
            noise = max(max(v) - min(v) for v in (left, right))
            found = "none" if abs(difference) <= noise else a if difference > 0 else b
            lines.append(f"| {a} against {b} | {difference:+.2f} | {noise:.2f} | {found} |")
    others = {"anchors before": points(anchors)}
    for row in [row for row in theirs if row["variant"] == "none"][:1]:
        others["authors' code"] = points(row)
    for name in [name for name in VARIANTS if name in groups]:
        file = "".join(c if c.isalnum() else "_" for c in name.replace(",", "").replace("'", ""))
        plot_curve(points(groups[name][0]), out / f"{file}.png", title=name, others=others)
    long = {name: points(groups[name][0]) for name in ("anchors trained on", "plain, 4 epochs") if name in groups}
    if "sandwich, 4 epochs" in groups:
        best = points(groups["sandwich, 4 epochs"][0])
        title = "Fashion-MNIST, 240,000 images seen; stitches of the sandwich rule"
        plot_curve(best, out / "overview.png", title=title, others={**others, **long})
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--anchors", type=Path, help="default: OUT/anchors")
    parser.add_argument("--only", nargs="+", default=[*VARIANTS, *BESIDE], choices=[*VARIANTS, *BESIDE])
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
            "plain": TensorDataset(*found["train"]),
            "augmented": Augmented(*found["train"]),
            "tests": [
                DataLoader(TensorDataset(*half), batch_size=250)
                for half in zip(*(part.chunk(2) for part in found["test"]), strict=True)
            ],
        }
        for seed in options.seeds:
            for name in ["anchors", *options.only]:
                done = read_runs(kept)
                if (name, seed) in done or (name == "anchors" and ("anchors", 0) in done):
                    continue
                if name == "anchors":
                    row = anchor_row(folder, data)
                elif name == "anchors trained on":
                    row = run_trained_on(seed, folder, data)
                elif name.startswith("alone"):
                    row = run_alone(seed, data, done["plain, 4 epochs", seed], anchors_too=name == "alone")
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
