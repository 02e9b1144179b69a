"""Train an SN-Net: one random stitch a step, all of them over time, on Accelerate.

Source: SN-Net (arXiv:2302.06586), Algorithm 1. A parameter that a step did not use has no gradient and
is left alone by that step: no weight decay, no momentum. (The authors' runs, on torch 1.12, had zero
gradients there, and so decayed it.)

Imports torch, timm, Accelerate and the layers below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .data import build_dataset
from .network import SNNet
from .sampling import uniform
from .saving import save_pretrained

DISTILLATIONS = ("none", "soft", "hard")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run needs, as plain values. The defaults are SN-Net's recipe for DeiT.

    Args:
        output: folder for the trained network; None keeps it in memory only.
        dataset, data_dir, train_split, val_split: the images, named as timm's scripts name them.
        epochs: passes over the images.
        batch_size: images in one step, over all processes together.
        opt, lr, weight_decay, clip_grad: timm's optimiser by name and its values; clip_grad is the
            largest gradient norm, or None.
        sched, warmup_epochs, warmup_lr, min_lr: timm's schedule by name and its values.
        smoothing: of the labels.
        mixup, cutmix: their alphas; 0 for none.
        auto_augment, color_jitter, hflip, crop_scale, erase, train_interpolation: timm's augmentation.
        distillation: `"none"`, `"soft"` (the teacher's probabilities) or `"hard"` (its labels).
        teacher: a timm model's name.
        distill_weight: the teacher's part of the loss, 0 to 1.
        temperature: of soft distillation.
        precision: `"no"`, `"bf16"` or `"fp16"`.
        workers: processes that read images.
        seed: of the order of images, of augmentation and of the stitches.

    Raises:
        ValueError: if a value is out of range, or two contradict each other.
    """

    output: str | None = None
    dataset: str | None = None
    data_dir: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    epochs: int = 50
    batch_size: int = 1024
    opt: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.05
    clip_grad: float | None = None
    sched: str = "cosine"
    warmup_epochs: float = 5
    warmup_lr: float = 1e-7
    min_lr: float = 1e-6
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.3
    hflip: float = 0.5
    crop_scale: tuple[float, float] = (0.08, 1.0)
    erase: float = 0.25
    train_interpolation: str = "bicubic"
    distillation: str = "none"
    teacher: str | None = None
    distill_weight: float = 0.5
    temperature: float = 1.0
    precision: str = "no"
    workers: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, math.inf), ("batch_size", 1, math.inf), ("lr", 0, math.inf), ("weight_decay", 0, math.inf),
            ("warmup_epochs", 0, math.inf), ("smoothing", 0, 1), ("mixup", 0, math.inf), ("cutmix", 0, math.inf),
            ("distill_weight", 0, 1), ("erase", 0, 1), ("hflip", 0, 1), ("workers", 0, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name}={value!r} is out of range: expected {low} <= {name} <= {high}.")
        if self.distillation not in DISTILLATIONS:
            raise ValueError(f"distillation={self.distillation!r} is unknown: expected one of {DISTILLATIONS}.")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision={self.precision!r} is unknown: expected 'no', 'bf16' or 'fp16'.")
        if self.teacher and self.distillation == "none":
            raise ValueError(f"teacher={self.teacher!r} has nothing to do: set distillation to 'hard' or 'soft'.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Read plain values; unknown names are refused.

        Raises:
            ValueError: naming what is unknown or out of range.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown fields {', '.join(unknown)}: the fields are {', '.join(sorted(known))}.")
        scale = values.get("crop_scale")
        return cls(**(values | {"crop_scale": tuple(scale)} if isinstance(scale, list) else values))


def train(
    model: SNNet,
    config: TrainConfig,
    *,
    train_data: Any = None,
    teacher: nn.Module | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train all stitches of a network, one random stitch a step.

    Args:
        model: the network, initialised (`least_squares_init`); trained in place.
        config: how.
        train_data: a dataset of (image (C, H, W), label), instead of the one that `config` names.
        teacher: a frozen classifier to distil from, instead of the one that `config` names.
        progress: show a bar with the loss and the time left.

    Returns:
        `steps`, `images` seen, `seconds`, and `loss`: its mean over the last epoch.

    Raises:
        ValueError: if the configuration names no images, too few for one batch, or distillation has no
            teacher.
        FloatingPointError: if the loss is no longer finite.
    """
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=[ddp])
    set_seed(config.seed)
    data = train_data if train_data is not None else build_dataset(config, model, training=True)
    if len(data) < config.batch_size:
        raise ValueError(f"batch_size={config.batch_size} is more than the {len(data)} images: lower it.")
    loader = DataLoader(
        data,
        batch_size=config.batch_size // accelerator.num_processes,
        shuffle=True,
        drop_last=True,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        generator=torch.Generator().manual_seed(config.seed),
    )
    guide = _teacher(config, teacher, model)
    guide = guide.to(accelerator.device) if guide is not None else None
    loss_fn = _loss(config, guide)
    mixup = None
    if config.mixup > 0 or config.cutmix > 0:
        mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=model.num_classes)
    optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    network, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = len(loader)
    scheduler, _ = create_scheduler_v2(
        optimizer, config.sched, num_epochs=config.epochs, warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=config.warmup_lr, min_lr=config.min_lr, step_on_epochs=False, updates_per_epoch=steps,
        warmup_prefix=False,
    )  # fmt: skip
    ids, step, began, mean_loss = model.stitch_ids, 0, time.monotonic(), math.nan
    bar = tqdm(total=steps * config.epochs, desc="train", disable=not (progress and accelerator.is_main_process))
    network.train()
    scheduler.step_update(0)
    for epoch in range(config.epochs):
        total = torch.zeros((), device=accelerator.device)
        for images, labels in loader:
            targets = labels
            if mixup is not None:
                images, targets = mixup(images, labels)
            logits = network(images, stitch_id=uniform(ids, config.seed, step))
            loss = loss_fn(logits, images, targets)
            accelerator.backward(loss)
            if config.clip_grad is not None:
                accelerator.clip_grad_norm_(network.parameters(), config.clip_grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            scheduler.step_update(step)
            total += loss.detach()
            bar.update()
        mean_loss = total.item() / steps
        bar.set_postfix(epoch=epoch + 1, loss=f"{mean_loss:.3f}")
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"the loss is no longer finite (epoch {epoch + 1}): lower lr={config.lr}, set clip_grad, or use "
                "precision='bf16' instead of 'fp16'."
            )
    bar.close()
    model.eval()
    note_run(model, config, step)
    if config.output and accelerator.is_main_process:
        save_pretrained(model, Path(config.output))
    accelerator.wait_for_everyone()
    seconds = time.monotonic() - began
    return {"steps": step, "images": step * config.batch_size, "seconds": seconds, "loss": mean_loss}


def note_run(model: SNNet, config: TrainConfig, steps: int) -> None:
    """Record on the network how it was trained, for its card, and forget accuracies of the weights before."""
    private = ("output", "data_dir", "workers")
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in private}
    run = {"steps": steps} | {key: value for key, value in values.items() if value is not None}
    model.trained = {**model.trained, "runs": [*model.trained.get("runs", []), run]}
    model.known.clear()


def _teacher(config: TrainConfig, teacher: nn.Module | None, model: SNNet) -> nn.Module | None:
    if config.distillation == "none":
        return None
    if teacher is None:
        if not config.teacher:
            raise ValueError(f"distillation={config.distillation!r} needs a teacher: name a timm model.")
        teacher = timm.create_model(config.teacher, pretrained=True, num_classes=model.num_classes)
    return teacher.eval().requires_grad_(False)


def _loss(config: TrainConfig, teacher: nn.Module | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss of (logits, images, labels or mixed targets), with the teacher's part."""
    hard = LabelSmoothingCrossEntropy(config.smoothing) if config.smoothing else nn.CrossEntropyLoss()
    soft = SoftTargetCrossEntropy()

    def loss(logits: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        base: Tensor = (soft if targets.ndim > 1 else hard)(logits, targets)
        if teacher is None:
            return base
        with torch.no_grad():
            guide = teacher(images)
        if config.distillation == "hard":
            taught = nn.functional.cross_entropy(logits, guide.argmax(-1))
        else:
            t = config.temperature
            taught = t * t * nn.functional.kl_div(
                (logits / t).log_softmax(-1), (guide / t).log_softmax(-1), reduction="batchmean", log_target=True
            )  # fmt: skip
        return (1 - config.distill_weight) * base + config.distill_weight * taught

    return loss
