"""Do the paper's claims hold on all of Fashion-MNIST? Three small DeiTs, stitched and trained in many ways.

    python benchmarks/science/fashion_mnist.py OUT                        # every comparison, two seeds: hours
    python benchmarks/science/fashion_mnist.py OUT --only plain kaiming   # some of them
    python benchmarks/science/fashion_mnist.py OUT --report               # tables and plots of the rows

Each run is one line of OUT/runs.jsonl, and what is there is not run again. Images: the Debian package
`dataset-fashion-mnist`, or any folder with the four gzip files of the data set. The anchors are read from
`--anchors` (deit_fmnist_t, _s, _b.safetensors), or trained first and kept there. One figure for a curve is its
frontier area: the best accuracy at or below a cost, averaged over log MACs from the smallest to the largest anchor.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fashion_mnist_report import report
from small_deits import (
    ANCHOR_EPOCHS,
    COMMON,
    WIDTHS,
    even_in_cost,
    macs_an_image,
    make_anchor,
    read_anchors,
    schedule,
    train_alone,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import timm_stitch
from timm_stitch import SNNet

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import append_row, make_parser, read_rows
from fashion_mnist_images import MEAN, STD, WHOLE, read_whole


@dataclass(frozen=True)
class Variant:
    """One way to make an SN-Net of the three anchors.

    Args:
        stitch: the arguments of `timm_stitch.stitch`.
        init_images: the number of images for least squares; with 0, stitching layers keep Kaiming's random weights.
        trained_anchors: whether the anchors are trained; otherwise they have random weights.
        anchors_first: the epochs in which the anchors alone are trained on, a random one each step, before least
            squares.
        augmented: whether images are flipped and shifted, as in the authors' code and in the anchors' training.
        config: the fields of `TrainConfig` that differ from `OURS`.
        short: whether this is a run of one epoch, evaluated on the first half of the test images only.
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
NOT_STITCHED = ["anchors trained on", "alone, anchors free", "alone"]


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


def evaluate_parts(model: SNNet, tests: Sequence[DataLoader]) -> dict[str, Any]:
    """Evaluate every stitch on all of these equal parts of the test images, and on the first alone."""
    parts = [{r["stitch_id"]: r["top1"] for r in timm_stitch.evaluate(model, test)} for test in tests]
    whole = {k: round(statistics.fmean(part[k] for part in parts), 2) for k in parts[0]}
    return {"final": whole, "first": {k: round(v, 2) for k, v in parts[0].items()}}


def describe(model: SNNet) -> dict[str, Any]:
    """List the names and costs of a network's stitches."""
    table = model.stitch_table()
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "names": {row["stitch_id"]: row["name"] for row in table},
        "macs": {row["stitch_id"]: row["macs"] for row in table},
    }


def run(variant: Variant, seed: int, folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Stitch, initialise, train and evaluate a variant: one row."""
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
    has_own_start = variant in (Variant(init_images=n) for n in (0, 100, 1000))  # the others start as the second
    before = evaluate_parts(model, tests)["first"] if has_own_start else {}
    runs.append(train_stitches(model, train_data, {"epochs": 1, **OURS, **variant.config, "seed": seed}))
    images = sum(r["images"] for r in runs)
    return {
        "steps": sum(r["steps"] for r in runs),
        "images": images,
        "seconds": round(sum(r["seconds"] for r in runs), 1),
        "macs_an_image": sum(r["images"] * r["macs_an_image"] for r in runs) / images,
        **describe(model),
        "init": before,
        **evaluate_parts(model, tests),
    }


def train_stitches(model: SNNet, data: Dataset, values: Mapping[str, Any]) -> dict[str, Any]:
    """Train with these fields of `TrainConfig`; return steps, images, seconds and multiply-adds an image."""
    fields = {**COMMON, **values}
    steps = fields["epochs"] * len(data) // fields["batch_size"]
    config = timm_stitch.TrainConfig(**{**fields, **schedule(fields["epochs"], steps, fields["lr"])})
    done = timm_stitch.train(model, config, train_data=data, progress=False)
    return {**done, "macs_an_image": macs_an_image(model, config, done["steps"])}


def run_trained_on(seed: int, folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Train each anchor on alone; together they see as many images as a run of four epochs."""
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


def run_alone(seed: int, data: Mapping[str, Any], base: Mapping[str, Any], anchors_too: bool) -> dict[str, Any]:
    """Train networks of seven costs along the frontier alone from scratch, on plain images, equal epochs each.

    In total they cost as much as the SN-Net's run `base`; with `anchors_too`, its anchors' training is added.
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
    for key, values in (describe(network) | evaluate_parts(network, tests)).items():
        if key != "params":
            row[key][number] = values[number]


def anchor_row(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the anchors before any stitching."""
    model = timm_stitch.stitch(read_anchors(folder, data["augmented"]))
    row: dict[str, Any] = {"init": {}, "final": {}, "first": {}, "names": {}, "macs": {}}
    for i in range(3):
        add_alone(row, i, model.extract(i), data["tests"])
    return row


def read_runs(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Read all rows by variant and seed."""
    return {(row["variant"], row["seed"]): row for row in read_rows(path)}


def main() -> None:
    """Run what is missing, then report."""
    parser, names = make_parser(__doc__), [*VARIANTS, *NOT_STITCHED]
    parser.add_argument("out", type=Path, help="folder of rows, anchors, tables and plots")
    parser.add_argument("--images", type=Path, default=WHOLE, help="folder with the gzip files of Fashion-MNIST")
    parser.add_argument("--anchors", type=Path, help="folder of trained anchors (default: OUT/anchors)")
    parser.add_argument("--only", nargs="+", default=names, choices=names, help="variants to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="seeds of every variant")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--official", type=Path, help="rows of the authors' code on the same anchors")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, kept = options.anchors or options.out / "anchors", options.out / "runs.jsonl"
    if not options.report:
        options.out.mkdir(parents=True, exist_ok=True)
        parts = read_whole(options.images)
        data = {
            "images": parts["train"][0],
            "plain": TensorDataset(*parts["train"]),
            "augmented": Augmented(*parts["train"]),
            "tests": [
                DataLoader(TensorDataset(*half), batch_size=250)
                for half in zip(*(part.chunk(2) for part in parts["test"]), strict=True)
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
                append_row(kept, {"variant": name, "seed": seed, **row})
                print(f"{name}, seed {seed}: {row.get('seconds', 0)} s", flush=True)
    text = report(read_runs(kept), list(VARIANTS), NOT_STITCHED, options.out, options.official)
    (options.out / "report.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
