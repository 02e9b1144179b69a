"""What does stitching give on converged anchors that differ in accuracy, at equal multiply-adds of training?

    python benchmarks/science/converged.py OUT                      # anchors, then every variant, two seeds
    python benchmarks/science/converged.py OUT --only plain few     # some of them
    python benchmarks/science/converged.py OUT --epochs 40 --only "few, slow to fast"   # longer than four epochs
    python benchmarks/science/converged.py OUT --epochs 40 --share 0.1 --turned   # another task, a tenth of its labels
    python benchmarks/science/converged.py OUT --report             # tables of the rows

The task is Fashion-MNIST made harder: every image is shifted by up to three pixels and flipped at random, in training
and in evaluation. Two small DeiTs (32 and 64 channels, six blocks) are trained on 55,000 of the training images until
they stop getting better (26 and 22 epochs). Everything is chosen on the other 5,000, each shifted twice; figures of
the test images, shifted once, are in the rows, but shown by `--report --test` alone. Each row of OUT/runs.jsonl is one
run, and what is there is not run again. Multiply-adds of a training step are three times those of its forward passes
(twice where anchors are frozen).
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from converged_report import UNTOUCHED, report
from safetensors.torch import load_file, save_file
from small_deits import COMMON, macs_an_image, make_anchor, schedule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import timm_stitch
from timm_stitch import SNNet
from timm_stitch.plan.stitch_plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import append_row, make_parser, read_rows
from fashion_mnist_images import MEAN, STD, WHOLE, read_whole

SHIFT = 3
ANCHORS = {"deit_fmnist_t": (4e-3, 26), "deit_fmnist_s": (3e-3, 22)}  # learning rate, epochs
BATCH = 200


@dataclass(frozen=True)
class Variant:
    """One way to go on from the anchors.

    Args:
        stitch: the arguments of `timm_stitch.stitch`.
        config: the fields of `TrainConfig` that differ from `OURS`.
        alone: the ids of the stitches that are extracted and trained alone, at equal shares of the cost; empty for all
            together.
        first: the share of the cost that trains the anchors alone, in equal parts, before they are stitched.
        fresh: whether the anchors have random weights.
        trained: whether the network is trained.
    """

    stitch: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    alone: tuple[int, ...] = ()
    first: float = 0
    fresh: bool = False
    trained: bool = True


def same_depth(anchors: Sequence[Anchor]) -> StitchPlan:
    """Plan stitches from the large to the small anchor that run as many blocks as either, each with its own layer."""
    small, large = anchors
    cuts = range(1, small.depth)
    layers = [LayerSpec(1, 0, large.widths[cut], small.widths[cut]) for cut in cuts]
    alone = [(Segment(number, 0, anchor.depth),) for number, anchor in enumerate(anchors)]
    joined = [(Segment(1, 0, cut), Segment(0, cut, small.depth)) for cut in cuts]
    used = [()] * len(alone) + [(number,) for number in range(len(layers))]
    stitches = [Stitch(i, route, used[i]) for i, route in enumerate([*alone, *joined])]
    return StitchPlan(tuple(anchors), tuple(layers), tuple(stitches))


OURS: dict[str, Any] = {**COMMON, "batch_size": BATCH, "lr": 1e-3}
FEW = {"kernel_size": 1}
SLOW = {**FEW, "direction": "slow_to_fast"}
GUIDED = {"sampling": "anchors", "stitches": 1, "inplace_distillation": True}
OFTEN = {"sampling": "importance", "scores": {i: 3 if i < 2 else 1 for i in range(8)}}  # half of the steps
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


class MovedImages(Dataset[Any]):
    """Images, each shifted by up to three pixels and flipped at random whenever it is read."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.padded, self.labels = F.pad(images, (SHIFT,) * 4, value=-MEAN / STD)[:, 0], labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.take(torch.tensor([index]))[0], self.labels[index]

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Take some of the images, (N, 1, 28, 28)."""
        n, ways, pixels = len(index), 2 * SHIFT + 1, torch.arange(28)
        top, left = (torch.randint(0, ways, (n, 1), generator=generator) for _ in range(2))
        flip = torch.rand(n, 1, generator=generator) < 0.5
        columns = left + torch.where(flip, pixels.flip(0), pixels)
        return self.padded[index[:, None, None], (top + pixels)[:, :, None], columns[:, None]][:, None]

    def fixed(self, *seeds: int) -> DataLoader[Any]:
        """Take all images once a seed, always moved alike."""
        drawn = [self.take(torch.arange(len(self)), torch.Generator().manual_seed(seed)) for seed in seeds]
        return DataLoader(TensorDataset(torch.cat(drawn), self.labels.repeat(len(seeds))), 500)


@dataclass(frozen=True)
class Parts:
    """The images: for training, for choosing, and for the end."""

    train: MovedImages
    val: DataLoader[Any]
    test: DataLoader[Any]


def read_parts(folder: Path, share: float = 1.0, turned: bool = False) -> Parts:
    """Read 55,000 images to train on (or a share), 5,000 to choose on, 10,000 for the end; upright, or on a side."""
    images_of = {part: (x.rot90(dims=(2, 3)) if turned else x, y) for part, (x, y) in read_whole(folder).items()}
    images, labels = images_of["train"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept, used = order[:5000], order[5000:]
    used = used[: round(share * len(used))]
    val, test = MovedImages(images[kept], labels[kept]).fixed(1, 2), MovedImages(*images_of["test"]).fixed(3)
    return Parts(MovedImages(images[used], labels[used]), val, test)


def read_anchors(folder: Path, train: MovedImages, fresh: int | None = None) -> list[nn.Module]:
    """Read the trained anchors; train and keep those that are missing. With the seed `fresh`: make random ones."""
    anchors = [make_anchor(name, seed=fresh or 0) for name in ANCHORS]
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


def train_anchor(network: nn.Module, train: MovedImages, lr: float, epochs: int) -> None:
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
    """Count the multiply-adds of training on one image, on average over the first steps."""
    return (3 if config.tune == "all" else 2) * macs_an_image(model, config, steps)


def train_for(model: SNNet, values: Mapping[str, Any], train: MovedImages, macs: float, row: dict[str, Any]) -> None:
    """Train in place for so many multiply-adds, and add steps and processor seconds to the row."""
    config = timm_stitch.TrainConfig(**{**OURS, **values})
    steps = max(1, round(macs / cost_of(model, config, 500) / config.batch_size))
    seen = steps * config.batch_size
    once: Subset[Any] = Subset(ConcatDataset([train] * math.ceil(seen / len(train))), range(seen))
    fields = {**OURS, **values, **schedule(1, steps, config.lr)}
    began = time.process_time()
    timm_stitch.train(model, timm_stitch.TrainConfig(**fields), train_data=once, progress=False)
    row["steps"] += steps
    row["seconds"] += round(time.process_time() - began)


def top1(model: SNNet, data: DataLoader[Any]) -> dict[int, float]:
    """Evaluate every stitch: accuracies in percent."""
    return {row["stitch_id"]: round(row["top1"], 2) for row in timm_stitch.evaluate(model, data)}


def run(variant: Variant, seed: int, folder: Path, parts: Parts, epochs: float) -> dict[str, Any]:
    """Stitch, train and evaluate a variant: one row."""
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


def main() -> None:
    """Run what is missing, evaluate on the test images, or report."""
    parser = make_parser(__doc__)
    parser.add_argument("out", type=Path, help="folder of rows and anchors")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="seeds of every variant")
    parser.add_argument(
        "--epochs", type=float, default=4, help="epochs of the plain recipe, whose multiply-adds all variants have"
    )
    parser.add_argument("--share", type=float, default=1, help="share of the training images")
    parser.add_argument("--turned", action="store_true", help="another task for the same anchors: images on their side")
    parser.add_argument("--images", type=Path, default=WHOLE, help="folder with the gzip files of Fashion-MNIST")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--report", action="store_true", help="print tables of the rows, and run nothing")
    parser.add_argument("--test", action="store_true", help="report on the test images")
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
        append_row(path, row)
        print(name, seed, row["seconds"], row["final"], flush=True)


if __name__ == "__main__":
    main()
