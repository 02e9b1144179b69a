"""How long does a training step take, against timm-style training of a plain network of the same multiply-adds?

    python benchmarks/speed/training_step.py [--rounds 15] [--images 64] [--batch-size 16] [--compile]
    python benchmarks/speed/training_step.py --dense                          # segmentation

Both sides run the same modules: the plain side trains one stitch extracted from the network as a module
of its own, in the loop of timm's train.py (loader, Mixup, loss, backward, AdamW, schedule). Ours trains
the same stitch inside the whole network through `timm_stitch.train`'s own step. Steps take turns, and
each is compared with its neighbour. The last columns are what the options cost.

With `--dense` both sides have a linear head for segmentation. For the largest anchor the plain side is timm's backbone
(`features_only`) with that head.
"""

import contextlib
import itertools
import sys
from pathlib import Path

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import timm_stitch
from timm_stitch.training.optimizer import tuning
from timm_stitch.training.speed import set_up
from timm_stitch.training.trainer import TrainingRun

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import compare, medians, time_in_turns

OPTIONS = {"ema": {"ema_decay": 0.999}, "dense": {"dense_updates": True}, "not fused": {"fused": False}}
ANCHORS = ("deit_tiny_patch16_224", "deit_small_patch16_224")


def network(size):
    """Make the network of two small DeiTs with random weights."""
    torch.manual_seed(0)
    return timm.create_model(
        "snnet", anchors=[{"architecture": n, "img_size": size, "num_classes": 10} for n in ANCHORS]
    )


def dense_network(size):
    """Make the network of two small DeiTs with a linear head for segmentation."""
    return timm_stitch.dense(network(size), head="linear", num_classes=10)


class PlainDense(nn.Module):
    """timm's backbone of the largest anchor, with the head of a dense network.

    Args:
        size: the pixels along a side.
    """

    def __init__(self, size):
        super().__init__()
        self.num_classes = 10
        self.backbone = timm.create_model(ANCHORS[-1], img_size=size, features_only=True, out_indices=(2, 5, 8, 11))
        self.head = dense_network(size).head

    def forward(self, x):
        return nn.functional.interpolate(self.head(self.backbone(x)), x.shape[2:], mode="bilinear")


def ours(model, data, stitch_id, **values):
    """Make a function that does one step of `timm_stitch.train`."""
    config = timm_stitch.TrainConfig(epochs=10_000, workers=0, trackers=None, **values)
    run = TrainingRun(model, config, data, progress=False)
    run.kept = contextlib.ExitStack()
    for context in (tuning(model, config), set_up(model, config)):
        run.kept.enter_context(context)
    run.prepare()
    run.rule = lambda step: (stitch_id,)

    def batches():
        for epoch in itertools.count():
            yield from run.micro_batches(epoch)

    source = batches()

    def step():
        run.micro_step(0, next(source).to(run.device, channels_last=run.config.channels_last))
        run.optimizer_step()
        run.report_and_save_if_due()

    return step


def plain(model, data, batch_size, *, device="cpu", precision="no", compiled=False, dense=False):
    """Make a function that does one step as timm's train.py does."""
    model.to(device).train()
    classes = model.num_classes
    if compiled:
        model = torch.compile(model)
    half, cuda = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision), torch.device(device).type == "cuda"
    scaler = torch.amp.GradScaler(enabled=precision == "fp16")
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=True, pin_memory=cuda)
    mixup, loss_fn = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=classes), SoftTargetCrossEntropy()
    if dense:
        mixup, loss_fn = lambda images, labels: (images, labels), nn.CrossEntropyLoss(ignore_index=255)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(
        optimizer, num_epochs=10_000, step_on_epochs=False, updates_per_epoch=len(loader)
    )
    numbers, source = itertools.count(), itertools.chain.from_iterable(iter(lambda: loader, None))

    def step():
        scheduler.step_update(next(numbers))
        images, labels = (tensor.to(device, non_blocking=True) for tensor in next(source))
        images, labels = mixup(images, labels)
        with torch.autocast(torch.device(device).type, half, enabled=half is not None):
            loss = loss_fn(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def main():
    """Measure three stitches."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each side")
    parser.add_argument("--images", type=int, default=64, help="pixels along a side")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a step")
    parser.add_argument("--compile", action="store_true", help="compile both sides, and leave out the options")
    parser.add_argument("--dense", action="store_true", help="train a segmentation")
    options = parser.parse_args()
    size, make = options.images, dense_network if options.dense else network
    labels = torch.randint(0, 10, (256, size, size)) if options.dense else torch.arange(256) % 10
    data = TensorDataset(torch.randn(256, 3, size, size), labels)
    table = make(size).stitch_table()
    for row in (table[0], table[len(table) // 2], table[1]):
        k, b = row["stitch_id"], options.batch_size
        alone = PlainDense(size) if options.dense and k == 1 else make(size).extract(k, copy=True)
        steps = {
            "plain": plain(alone, data, b, compiled=options.compile, dense=options.dense),
            "ours": ours(make(size), data, k, batch_size=b, compile=options.compile),
        }
        for name, values in {} if options.compile else OPTIONS.items():
            steps[f"ours, {name}"] = ours(make(size), data, k, batch_size=b, **values)
        times = time_in_turns(steps, options.rounds, warm_up=2)
        result = {"stitch_id": k, "macs": row["macs"], "plain_ms": round(medians(times)["plain"], 1)}
        for name in list(steps)[1:]:
            result[f"{name}: overhead %"] = round(100 * (compare(times[name], times["plain"]).median - 1), 1)
        print_row(result)


if __name__ == "__main__":
    main()
