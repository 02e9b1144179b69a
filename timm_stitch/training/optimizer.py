"""The optimizer of an SN-Net: which parameters learn, how fast, and what happens to those not used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad
from torch import nn
from torch.optim import Optimizer

from ..network.stitchable import StitchableNetwork
from .config import TrainConfig

# torch's fused SGD fails where some parameters have a momentum already and others do not, as after a step of theirs.
FUSED = ("adamw", "adam")
_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm


def parameter_groups(model: StitchableNetwork, config: TrainConfig) -> list[dict[str, Any]]:
    """Group parameters by weight decay and learning rate: those of anchors, of stitching layers, and of a head.

    Parameters without weight decay in timm (biases, norms, `model.no_weight_decay()`) have none here.
    """
    layers = _ids(model.stitching_layers, getattr(model, "projections", None))
    anchors = _ids(model.anchors) - layers
    groups = []
    for group in param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=model.no_weight_decay()):
        everything = {id(parameter) for parameter in group["params"]}
        for scale, ids in (
            (config.anchor_lr_scale, anchors),
            (config.stitch_lr_scale, layers),
            (1.0, everything - anchors - layers),
        ):
            chosen = [parameter for parameter in group["params"] if id(parameter) in ids]
            if chosen:
                groups.append({**group, "params": chosen, "lr_scale": scale})
    return groups


def _ids(*modules: nn.Module | None) -> set[int]:
    return {id(parameter) for module in modules if module is not None for parameter in module.parameters()}


def make_optimizer(model: StitchableNetwork, config: TrainConfig) -> Optimizer:
    """Make timm's optimizer over `parameter_groups`.

    Raises:
        ValueError: if `fused=True` and the optimizer has no fused form.
    """
    has_fused = config.opt in FUSED
    if config.fused and not has_fused:
        raise ValueError(f"opt must be {' or '.join(FUSED)} with fused=True, got {config.opt!r}: set fused=False.")
    more: dict[str, Any] = {"fused": True} if has_fused and config.fused is not False else {}
    optimizer = create_optimizer_v2(
        parameter_groups(model, config), opt=config.opt, lr=config.lr, weight_decay=config.weight_decay,
        momentum=config.momentum, **more,
    )  # fmt: skip
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", config.lr)
        group["lr"] = config.lr * group["lr_scale"]
    return optimizer


def make_scheduler(optimizer: Optimizer, config: TrainConfig, steps: int) -> Scheduler | None:
    """Make timm's schedule, a function of the step; None for `sched="none"`.

    Args:
        optimizer: the optimizer whose learning rates it sets, each times its group's `lr_scale`.
        config: the configuration, with the schedule's name.
        steps: the number of steps per epoch.
    """
    if config.sched == "none":
        return None
    if config.sched == "onecycle":
        return OneCycle(optimizer, config, steps)
    warmup: Any = config.warmup  # timm declares int, and takes fractions of an epoch
    scheduler: Scheduler | None
    scheduler, _ = create_scheduler_v2(
        optimizer, config.sched, num_epochs=config.epochs, warmup_epochs=warmup,
        warmup_lr=config.warmup_lr, min_lr=config.min_lr, step_on_epochs=False, updates_per_epoch=steps,
        warmup_prefix=False, decay_rate=config.decay_rate,
    )  # fmt: skip
    return scheduler


class OneCycle(Scheduler):
    """The one-cycle schedule: half a cosine from `warmup_lr` up to `lr`, and another down to `min_lr`.

    Source: Smith and Topin (arXiv:1708.07120), as torch's `OneCycleLR` anneals.

    Args:
        optimizer: the optimizer whose learning rates it sets.
        config: the configuration, with the rates and the epochs of both halves.
        steps: the number of steps per epoch.
    """

    def __init__(self, optimizer: Optimizer, config: TrainConfig, steps: int) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.rates = config.warmup_lr, config.lr, config.min_lr
        self.rise, self.steps = config.warmup * steps, config.epochs * steps
        self.update_groups(self._get_lr(0))

    def _get_lr(self, t: int) -> list[float]:
        low, high, end = self.rates
        rises = t < self.rise
        part = t / self.rise if rises else min((t - self.rise) / (self.steps - self.rise), 1.0)
        start, stop = (low, high) if rises else (high, end)
        rate = stop + (start - stop) * (1 + math.cos(math.pi * part)) / 2
        return [rate] * len(self.optimizer.param_groups)


@contextmanager
def tuning(model: StitchableNetwork, config: TrainConfig) -> Iterator[None]:
    """Freeze the parameters that `tune` excludes until the end of the block, with their statistics.

    `freeze_statistics` freezes the statistics even if the weights learn.
    """
    kept = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.train()
    try:
        if config.tune == "stitches":
            model.anchors.requires_grad_(False)
        if config.tune == "stitches" or config.freeze_statistics:
            for module in model.anchors.modules():
                if isinstance(module, _BATCH_NORM):
                    module.eval()
        yield
    finally:
        for parameter, requires_grad in kept.items():
            parameter.requires_grad_(requires_grad)
        model.eval()


def update_parameters(
    accelerator: Accelerator, optimizer: Optimizer, parameters: list[nn.Parameter], config: TrainConfig
) -> None:
    """Clip the gradients, fill in zeros for `dense_updates`, step, and free them."""
    if config.clip_grad is not None:
        accelerator.unscale_gradients(optimizer)
        used = [parameter for parameter in parameters if parameter.grad is not None]
        dispatch_clip_grad(used, config.clip_grad, mode=config.clip_mode)
    if config.dense_updates:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
