"""What stitching gives on anchors that are trained out and apart in accuracy, at equal multiply-adds of training.

    python benchmarks/science/converged.py OUT                      # anchors, then every way to train on, two seeds
    python benchmarks/science/converged.py OUT --only plain few     # some of them
    python benchmarks/science/converged.py OUT --epochs 40 --only "few, slow to fast"   # longer; 4 unless given
    python benchmarks/science/converged.py OUT --epochs 40 --share 0.1 --turned   # a tenth of the labels of another task
    python benchmarks/science/converged.py OUT --report             # what the rows say, as tables

The task is Fashion-MNIST made harder: every image is shifted by up to three pixels and flipped at random, in training
and in evaluation. Two small DeiTs (32 and 64 channels, six blocks) are trained on 55,000 of the training images until
they stop getting better (26 and 22 epochs). Everything is chosen on the other 5,000, each shifted twice; figures of
the test images, shifted once, are in the rows, but shown by `--report --test` alone. Each row of OUT/runs.jsonl is one
run, and what is there is not run again. Multiply-adds of a training step are three times those of its forward passes
(twice where anchors are frozen).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fashion_mnist as full  # which finds the quickstart
import torch
from quickstart import MEAN, STD
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import timm_stitch
from timm_stitch.families.timm_models.network import SNNet
from timm_stitch.plan.frontier import frontier_area
from timm_stitch.plan.stitch_plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan

SHIFT = 3
ANCHORS = {"deit_fmnist_t": (4e-3, 26), "deit_fmnist_s": (3e-3, 22)}  # rate, epochs
BATCH = 200


@dataclass(frozen=True)
class Variant:
    """One way to go on from the anchors.

    Args:
        stitch: arguments of `timm_stitch.stitch`.
        config: fields of `TrainConfig` that differ from `OURS`.
        alone: ids of the stitches that are extracted and trained alone, at equal shares of the cost; empty for all
            together.
        first: share of the cost that trains the anchors alone, in equal parts, before they are stitched.
        fresh: begin with random weights.
        trained: else they are left as they are.
    """

    stitch: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    alone: tuple[int, ...] = ()
    first: float = 0
    fresh: bool = False
    trained: bool = True


def same_depth(anchors: Sequence[Anchor]) -> StitchPlan:
    """Stitches from the large to the small anchor that run as many blocks as either, each with a layer of its own."""
    small, large = anchors
    cuts = range(1, small.depth)
    layers = [LayerSpec(1, 0, large.widths[cut], small.widths[cut]) for cut in cuts]
    alone = [(Segment(number, 0, anchor.depth),) for number, anchor in enumerate(anchors)]
    joined = [(Segment(1, 0, cut), Segment(0, cut, small.depth)) for cut in cuts]
    used = [()] * len(alone) + [(number,) for number in range(len(layers))]
    stitches = [Stitch(i, route, used[i]) for i, route in enumerate([*alone, *joined])]
    return StitchPlan(tuple(anchors), tuple(layers), tuple(stitches))


OURS: dict[str, Any] = {**full.COMMON, "batch_size": BATCH, "lr": 1e-3}
FEW = {"kernel_size": 1}
SLOW = {**FEW, "direction": "slow_to_fast"}
GUIDED = {"sampling": "anchors", "stitches": 1, "inplace_distillation": True}
OFTEN = {"sampling": "importance", "scores": {i: 3 if i < 2 else 1 for i in range(8)}}  # half of the steps
UNTOUCHED = "anchors left alone"
VARIANTS: dict[str, Variant] = {
    UNTOUCHED: Variant(FEW, alone=(0, 1), trained=False),
    "authors' recipe": Variant(config={"batch_size": 250, "lr": 1.5e-4}),
    "plain": Variant(),
    "few": Variant(FEW),
    "few, slow to fast": Variant(SLOW),
    "few, all anchors": Variant(FEW, GUIDED),
    "anchors trained on": Variant(FEW, alone=(0, 1)),
    "few, slow to fast, all anchors": Variant(SLOW, GUIDED),
    "few, slow to fast, anchors often": Variant(SLOW, OFTEN),
    "few, slow to fast, anchors slow": Variant(SLOW, {"anchor_lr_scale": 0.1}),
    "few, slow to fast, stitching layers alone": Variant(SLOW, {"tune": "stitches"}),
    "five, slow to fast": Variant({"plan": same_depth}),
    "slow to fast": Variant({"direction": "slow_to_fast"}),
    "anchors first, then few, slow to fast": Variant(SLOW, first=0.5),
    "few, each alone from scratch": Variant(FEW, {"lr": 3e-3}, alone=(0, 1, 7, 6, 5, 4, 3, 2), fresh=True),
}


class Moved(Dataset[Any]):
    """Images, each shifted by up to three pixels and flipped at random whenever it is read."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.padded, self.labels = F.pad(images, (SHIFT,) * 4, value=-MEAN / STD)[:, 0], labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.take(torch.tensor([index]))[0], self.labels[index]

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Some of the images, (N, 1, 28, 28)."""
        n, ways, pixels = len(index), 2 * SHIFT + 1, torch.arange(28)
        top, left = (torch.randint(0, ways, (n, 1), generator=generator) for _ in range(2))
        flip = torch.rand(n, 1, generator=generator) < 0.5
        columns = left + torch.where(flip, pixels.flip(0), pixels)
        return self.padded[index[:, None, None], (top + pixels)[:, :, None], columns[:, None]][:, None]

    def fixed(self, *seeds: int) -> DataLoader[Any]:
        """All images once a seed, always moved alike."""
        drawn = [self.take(torch.arange(len(self)), torch.Generator().manual_seed(seed)) for seed in seeds]
        return DataLoader(TensorDataset(torch.cat(drawn), self.labels.repeat(len(seeds))), 500)


@dataclass(frozen=True)
class Parts:
    """The images: for training, for choosing, and for the end."""

    train: Moved
    val: DataLoader[Any]
    test: DataLoader[Any]


def read_parts(folder: Path, share: float = 1.0, turned: bool = False) -> Parts:
    """55,000 images to train on (or a share of them), 5,000 to choose on, 10,000 for the end; upright, or on a side."""
    found = {part: (x.rot90(dims=(2, 3)) if turned else x, y) for part, (x, y) in full.read_images(folder).items()}
    images, labels = found["train"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept, used = order[:5000], order[5000:]
    used = used[: round(share * len(used))]
    val, test = Moved(images[kept], labels[kept]).fixed(1, 2), Moved(*found["test"]).fixed(3)
    return Parts(Moved(images[used], labels[used]), val, test)


def read_anchors(folder: Path, train: Moved, fresh: int | None = None) -> list[nn.Module]:
    """The trained anchors; those that are missing are trained and kept. With a seed: random ones."""
    anchors = [full.make_anchor(name, seed=fresh or 0) for name in ANCHORS]
    if fresh is not None:
        return anchors
    for anchor, (name, (lr, epochs)) in zip(anchors, ANCHORS.items(), strict=True):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            train_anchor(anchor, train, lr, epochs)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(anchor.state_dict(), path)
        anchor.load_state_dict(load_file(path))
    return [anchor.eval() for anchor in anchors]


def train_anchor(network: nn.Module, train: Moved, lr: float, epochs: int) -> None:
    """Train one anchor in place: AdamW, a short warm-up, cosine to a hundredth."""
    plain = [p for n, p in network.named_parameters() if p.ndim < 2 or n in ("pos_embed", "cls_token")]
    decayed = [p for n, p in network.named_parameters() if p.ndim > 1 and n not in ("pos_embed", "cls_token")]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    a_epoch = len(train) // BATCH
    steps = epochs * a_epoch
    rates = [min(1, (i + 1) / 250) * (0.01 + 0.495 * (1 + math.cos(math.pi * i / steps))) for i in range(steps + 1)]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rates.__getitem__)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(train))
        for index in order[: a_epoch * BATCH].split(BATCH):
            logits = network(train.take(index))
            F.cross_entropy(logits, train.labels[index], label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()


def cost_of(model: SNNet, config: timm_stitch.TrainConfig, steps: int) -> float:
    """Multiply-adds of training on one image, on average over the first steps."""
    return (3 if config.tune == "all" else 2) * full.macs_an_image(model, config, steps)


def train_for(model: SNNet, values: Mapping[str, Any], train: Moved, macs: float, row: dict[str, Any]) -> None:
    """Train in place for so many multiply-adds, and add steps and processor seconds to the row."""
    config = timm_stitch.TrainConfig(**{**OURS, **values})
    steps = max(1, round(macs / cost_of(model, config, 500) / config.batch_size))
    seen = steps * config.batch_size
    once: Subset[Any] = Subset(ConcatDataset([train] * math.ceil(seen / len(train))), range(seen))
    fields = {**OURS, **values, **full.schedule(1, steps, config.lr)}
    began = time.process_time()
    timm_stitch.train(model, timm_stitch.TrainConfig(**fields), train_data=once, progress=False)
    row["steps"] += steps
    row["seconds"] += round(time.process_time() - began)


def top1(model: SNNet, data: DataLoader[Any]) -> dict[int, float]:
    """Accuracy of every stitch, in percent."""
    return {row["stitch_id"]: round(row["top1"], 2) for row in timm_stitch.evaluate(model, data)}


def run(variant: Variant, seed: int, folder: Path, parts: Parts, epochs: float) -> dict[str, Any]:
    """One row."""
    fresh = seed if variant.fresh else None
    torch.manual_seed(seed)
    values = {**variant.config, "seed": seed}
    plain = timm_stitch.stitch(read_anchors(folder, parts.train))
    budget = epochs * len(parts.train) * cost_of(plain, timm_stitch.TrainConfig(**OURS), 500)
    row: dict[str, Any] = {"init": {}, "final": {}, "test": {}, "macs": {}, "steps": 0, "seconds": 0}
    for share in variant.alone or (None,):
        anchors = read_anchors(folder, parts.train, fresh)
        for number in range(len(anchors)) if variant.first else ():
            alone = timm_stitch.stitch(anchors).extract(number)
            train_for(alone, {"seed": seed}, parts.train, budget * variant.first / len(anchors), row)
        model = timm_stitch.stitch(anchors, **variant.stitch)
        if not variant.fresh:
            chosen = torch.randperm(len(parts.train))[:1000]
            timm_stitch.least_squares_init(model, parts.train.take(chosen))
        if share is not None:
            model = model.extract(share, copy=True)
        row["init"] |= top1(model, parts.val)
        if variant.trained:
            rest = budget * (1 - variant.first)
            train_for(model, values, parts.train, rest / max(1, len(variant.alone)), row)
        row["final"] |= top1(model, parts.val)
        row["test"] |= top1(model, parts.test)
        row["macs"] |= {r["stitch_id"]: r["macs"] for r in model.stitch_table()}
    return row


def area(top1: Mapping[str, float], macs: Mapping[str, int]) -> float:
    """The frontier area between the smallest and the largest anchor."""
    return frontier_area([{"macs": macs[i], "top1": value} for i, value in top1.items()], macs["0"], macs["1"])


def mixed(top1: Mapping[str, float], macs: Mapping[str, int]) -> float:
    """The area under straight lines along the frontier: what mixing two neighbours image by image gives."""
    within = [{"macs": macs[i], "top1": value} for i, value in top1.items() if macs[i] <= macs["1"]]
    rows = timm_stitch.pareto_frontier(within)
    points = sorted((math.log(row["macs"]), row["top1"]) for row in rows)
    ends = math.log(macs["0"]), math.log(macs["1"])
    points = [ends[:1] + points[0][1:], *points[1:]]
    if points[-1][0] < ends[1]:
        points.append((ends[1], points[-1][1]))
    return full.under_lines(points)


def beaten(top1: Mapping[str, float], macs: Mapping[str, int]) -> int:
    """How many stitches between anchors a network that costs no more equals or beats."""
    return sum(
        any(i != j and macs[j] <= macs[i] and top1[j] >= top1[i] for j in top1) for i in top1 if i not in ("0", "1")
    )


def report(rows: Sequence[Mapping[str, Any]], which: str) -> str:
    """A table of all variants for each set of training images."""
    lines: list[str] = []
    for task in dict.fromkeys((row["share"], row["turned"]) for row in rows):
        some = [row for row in rows if (row["share"], row["turned"]) == task]
        untouched = next(row[which] for row in some if row["variant"] == UNTOUCHED)
        small, large = untouched["0"], untouched["1"]
        lines += [
            f"{task[0]:.0%} of the training images{', on their side' if task[1] else ''}. Anchors: {small:.2f} and "
            f"{large:.2f} %; straight line between them in log MACs: {(small + large) / 2:.2f}.",
            "",
            "| epochs | variant | seeds | networks | area | with straight lines | anchors' change | stitches beaten |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for epochs, name in dict.fromkeys((row["epochs"], row["variant"]) for row in some):
            runs = [row for row in some if (row["epochs"], row["variant"]) == (epochs, name)]
            areas, lines_too = ([how(row[which], row["macs"]) for row in runs] for how in (area, mixed))
            changes = [f"{statistics.fmean(row[which][i] - untouched[i] for row in runs):+.2f}" for i in "01"]
            lost = sorted({beaten(row[which], row["macs"]) for row in runs})
            lines.append(
                f"| {epochs if runs[0]['steps'] else 0} | {name} | {len(runs)} | {len(runs[0][which])} "
                f"| {full.spread(areas)} | {full.spread(lines_too)} | {', '.join(changes)} "
                f"| {', '.join(map(str, lost))} of {len(runs[0][which].keys() - {'0', '1'})} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, evaluate on the test images, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=float, default=4, help="of the plain recipe, whose multiply-adds all have")
    parser.add_argument("--share", type=float, default=1, help="of the training images that are used")
    parser.add_argument("--turned", action="store_true", help="another task for the same anchors: images on their side")
    parser.add_argument("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--report", action="store_true", help="print the table of what was run")
    parser.add_argument("--test", action="store_true", help="the report's figures on the test images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    if options.report:
        print(report(read_rows(path), "test" if options.test else "final"))
        return
    parts = read_parts(options.images, options.share, options.turned)
    read_anchors(options.out / "anchors", read_parts(options.images).train)
    for seed, name in itertools.product(options.seeds, options.only):
        key = {
            "variant": name,
            "seed": seed,
            "epochs": options.epochs,
            "share": options.share,
            "turned": options.turned,
        }
        if key in [{k: row.get(k, False) for k in key} for row in read_rows(path)]:
            continue
        row = key | run(VARIANTS[name], seed, options.out / "anchors", parts, options.epochs)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, seed, row["seconds"], row["final"], flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file of runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
