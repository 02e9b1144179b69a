"""The configuration of a training run: plain values that are checked when they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ..choices import ClipMode, Distillation, MixedPrecision, Resume, SamplingRule, Schedule, TunedPart
from ..data.config import DataConfig
from ..data.fields import option

# Fields in which a resumed run may differ from the one that wrote the checkpoint.
MAY_CHANGE_ON_RESUME = frozenset(
    {"output", "resume", "workers", "keep", "trackers", "checkpoint_steps", "evaluate_every", "max_steps", "data_dir"}
)

_run = partial(option, group="the run")
_stitches = partial(option, group="stitches")
_optimizer = partial(option, group="optimizer")
_schedule = partial(option, group="schedule")
_distillation = partial(option, group="distillation")
_speed = partial(option, group="speed")


class UnusedFieldError(ValueError):
    """A field that has no effect because of another.

    Args:
        message: the field, and what to do.
        causes: the field that takes the effect away, for each field that can be left out.
    """

    def __init__(self, message: str, causes: Mapping[str, str]) -> None:
        super().__init__(message)
        self.causes = causes


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """The configuration of a training run, as plain values.

    The defaults are the optimizer, schedule and sampling of SN-Net's recipe for DeiT. The teacher, repeated
    augmentation, half precision and drop-path of that recipe are in its file: `read_recipe("deit_tsb").config`.

    Each field has its help in `metadata["help"]`, which `timm-stitch train --help` prints with its type, range and
    default. The images' fields (`dataset`, `data_dir`, `batch_size`, augmentation, …) are those of `DataConfig`.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a value is out of range, or two contradict each other.

    Examples:
        >>> config = timm_stitch.TrainConfig(data_dir="imagenet", epochs=15, sampling="resource")
        >>> config.batch_size, config.warmup
        (1024, 1.5)
    """

    epochs: int = _run(50, "passes over the images", range=(1, math.inf))
    max_steps: int | None = _run(
        None, "most steps of the run; the schedule is still that of all epochs", range=(1, math.inf)
    )
    output: str | None = _run(
        None, "folder for the trained network and the run's checkpoints; null keeps it in memory only"
    )
    resume: Resume = _run(
        False,
        "whether to continue from the last checkpoint in output: true requires one, auto starts a new run if there is "
        "none, extend is auto for more epochs than the run had (with the schedule of all of them), false refuses to "
        "overwrite one",
        choices=Resume,
    )
    checkpoint_steps: int | None = _run(None, "steps between checkpoints; null for one an epoch", range=(1, math.inf))
    keep: int = _run(2, "latest checkpoints to keep, besides the best one", range=(1, math.inf))
    evaluate_every: int = _run(0, "epochs between evaluations of all stitches; 0 for none", range=(0, math.inf))
    trackers: str | tuple[str, ...] | None = _run(
        "auto", "trackers of Accelerate, by name; auto is TensorBoard if it is installed and there is an output"
    )
    precision: MixedPrecision = _run("no", "automatic mixed precision", choices=MixedPrecision)

    sampling: SamplingRule = _stitches(
        "uniform",
        "rule that draws stitches: uniform (SN-Net), resource (SN-Netv2: a group of like macs, then one of it), "
        "sandwich (largest and smallest anchor and some at random), anchors (all anchors and some at random), "
        "importance (by scores)",
        choices=SamplingRule,
    )
    stitches: int = _stitches(
        1,
        "stitches that a step trains, on the same images; for sandwich and anchors besides those",
        range=(1, math.inf),
    )
    group_width: float | None = _stitches(
        None, "width of resource's groups in macs; 1e9 unless groups is given", range=(1, math.inf)
    )
    groups: int | None = _stitches(None, "number of resource's groups, instead of a width", range=(1, math.inf))
    group_bias: float = _stitches(0.0, "preference of resource for expensive groups", range=(-1, 1))
    scores: Mapping[int, float] | None = _stitches(None, "scores of importance, {stitch_id: score}")
    inplace_distillation: bool = _stitches(
        False,
        "let the other stitches of sandwich and anchors learn from the largest anchor's outputs instead of the labels",
    )
    tune: TunedPart = _stitches(
        "all",
        "parameters that learn: all, or the stitching layers alone (anchors alone are not drawn then)",
        choices=TunedPart,
    )

    opt: str = _optimizer("adamw", "timm's optimizer, by name")
    lr: float = _optimizer(1e-4, "learning rate", range=(0, math.inf))
    anchor_lr_scale: float = _optimizer(
        1.0, "factor on the learning rate of the anchors' parameters", range=(0, math.inf)
    )
    stitch_lr_scale: float = _optimizer(
        1.0, "factor on the learning rate of the stitching layers' parameters", range=(0, math.inf)
    )
    weight_decay: float = _optimizer(0.05, "weight decay", range=(0, math.inf))
    momentum: float = _optimizer(0.9, "momentum of optimizers that have one", range=(0, 1))
    clip_grad: float | None = _optimizer(
        None, "largest gradient norm or value, or the ratio of agc; null for none", range=(0, math.inf)
    )
    clip_mode: ClipMode = _optimizer("norm", "quantity that clip_grad limits", choices=ClipMode)
    freeze_statistics: bool = _optimizer(
        False,
        "train with BatchNorm's running statistics fixed: with few images those of a batch are far from them; "
        "tune='stitches' does so in any case",
    )
    dense_updates: bool = _optimizer(
        False,
        "give unused parameters of a step a zero gradient, so that they decay and keep moving, as in the authors' runs "
        "(torch 1.12); otherwise such a step leaves them alone",
    )
    ema_decay: float | None = _optimizer(
        None, "decay of an average of the weights, which the run then returns; null for none", range=(0, 1)
    )

    sched: Schedule = _schedule(
        "cosine",
        "timm's schedule, by name, or onecycle: half a cosine from warmup_lr up to lr, another down to min_lr",
        choices=Schedule,
    )
    decay_rate: float = _schedule(0.1, "power of the poly schedule, as timm names it", range=(0, math.inf))
    warmup_epochs: float | None = _schedule(
        None, "epochs of warm-up; null for a tenth of the epochs, at most 5", range=(0, math.inf)
    )
    warmup_lr: float = _schedule(1e-7, "learning rate at the start of the warm-up", range=(0, math.inf))
    min_lr: float = _schedule(1e-6, "lowest learning rate", range=(0, math.inf))

    distillation: Distillation = _distillation(
        "none",
        "distillation from a teacher: soft (its probabilities) or hard (its labels)",
        choices=Distillation,
    )
    teacher: str | None = _distillation(None, "name of a timm model")
    distill_weight: float = _distillation(0.5, "share of the teacher in the loss", range=(0, 1))
    temperature: float = _distillation(1.0, "temperature of soft distillation", range=(1e-6, math.inf))

    compile: bool = _speed(
        False, "train with every block compiled in place, by torch.compile; the first steps take long"
    )
    grad_checkpointing: bool = _speed(
        False, "recompute activations in the backward pass instead of keeping them: less memory, a third more work"
    )
    channels_last: bool = _speed(False, "images and convolutions in channels-last layout, which GPUs prefer")
    tf32: bool = _speed(False, "multiply float32 matrices in TF32, on GPUs that have it")
    fused: bool | None = _speed(None, "use torch's fused form of the optimizer, one kernel; null if there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output == "":
            raise ValueError("output must be a folder, got '': leave it out to keep the network in memory only.")
        self._check_unused()
        if self.group_width is not None and self.groups is not None:
            raise UnusedFieldError(
                f"group_width={self.group_width} and groups={self.groups} contradict: give one of them.",
                {"group_width": "groups", "groups": "group_width"},
            )
        if self.sampling == "importance" and not self.scores:
            raise ValueError("sampling='importance' needs scores: set scores to {stitch_id: score} of every stitch.")
        if self.sched != "none" and self.min_lr > self.lr:
            raise ValueError(f"min_lr must be at most lr={self.lr}, got {self.min_lr}.")
        if self.sched != "none" and self.warmup >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be below epochs={self.epochs}, else lr={self.lr} is never reached, got "
                f"{self.warmup}."
            )

    def _check_unused(self) -> None:
        """Refuse fields that have no effect because of others."""
        guided = self.sampling in ("sandwich", "anchors")
        for name, cause, value, holds in (
            ("teacher", "distillation", " to 'hard' or 'soft'", self.teacher is None or self.distillation != "none"),
            ("temperature", "distillation", "='soft'", self.temperature == 1 or self.distillation == "soft"),
            ("distill_weight", "distillation", " to 'hard' or 'soft'",
             self.distill_weight == 0.5 or self.distillation != "none"),
            ("group_width", "sampling", "='resource'", self.group_width is None or self.sampling == "resource"),
            ("groups", "sampling", "='resource'", self.groups is None or self.sampling == "resource"),
            ("group_bias", "sampling", "='resource'", self.group_bias == 0 or self.sampling == "resource"),
            ("scores", "sampling", "='importance'", self.scores is None or self.sampling == "importance"),
            ("inplace_distillation", "sampling", "='sandwich' or 'anchors'", not self.inplace_distillation or guided),
            ("anchor_lr_scale", "tune", "='all'", self.anchor_lr_scale == 1 or self.tune == "all"),
            ("clip_mode", "clip_grad", "", self.clip_mode == "norm" or self.clip_grad is not None),
            ("resume", "output", "", not self.resume or self.output is not None),
            ("checkpoint_steps", "output", "", self.checkpoint_steps is None or self.output is not None),
            ("keep", "output", "", self.keep == 2 or self.output is not None),
        ):  # fmt: skip
            if not holds:
                raise UnusedFieldError(
                    f"{name}={getattr(self, name)!r} has no effect: set {cause}{value}, or leave {name} out.",
                    {name: cause},
                )

    @property
    def warmup(self) -> float:
        """The epochs of warm-up."""
        return min(5, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs
