"""What a training run is, as plain values that are checked when they are read.

Imports the standard library and `sampling` only.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from .sampling import RULES

_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, math.inf), "max_steps": (1, math.inf), "batch_size": (1, math.inf), "accumulate": (1, math.inf),
    "lr": (0, math.inf), "anchor_lr_scale": (0, math.inf), "stitch_lr_scale": (0, math.inf),
    "weight_decay": (0, math.inf), "momentum": (0, 1), "clip_grad": (0, math.inf), "ema_decay": (0, 1),
    "warmup_epochs": (0, math.inf), "warmup_lr": (0, math.inf), "min_lr": (0, math.inf), "smoothing": (0, 1),
    "mixup": (0, math.inf), "cutmix": (0, math.inf), "color_jitter": (0, math.inf), "hflip": (0, 1), "erase": (0, 1),
    "repeated_aug": (1, math.inf), "distill_weight": (0, 1), "temperature": (1e-6, math.inf), "workers": (0, math.inf),
    "stitches": (1, math.inf), "group_width": (1, math.inf), "groups": (1, math.inf), "group_bias": (-1, 1),
    "checkpoint_steps": (1, math.inf), "keep": (1, math.inf), "evaluate_every": (0, math.inf),
}  # fmt: skip

_CHOICES: dict[str, tuple[Any, ...]] = {
    "distillation": ("none", "soft", "hard"),
    "precision": ("no", "bf16", "fp16"),
    "sampling": RULES,
    "tune": ("all", "stitches"),
    "clip_mode": ("norm", "value", "agc"),
    "crop_mode": ("rrc", "rkrc", "rkrr"),
    "erase_mode": ("const", "rand", "pixel"),
    "resume": (False, True, "auto"),
    "sched": ("cosine", "tanh", "poly", "constant", "wsd", "rsqrt", "none"),
}
DATASET_ARGS = ("download", "input_key", "target_key", "class_map", "num_samples")

# A resumed run may differ in these from the one that wrote the checkpoint.
FREE = frozenset(
    {"output", "resume", "workers", "keep", "trackers", "checkpoint_steps", "evaluate_every", "max_steps", "data_dir"}
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run needs, as plain values. The defaults are SN-Net's recipe for DeiT.

    Args:
        output: folder for the trained network and the run's checkpoints; None keeps it in memory only.
        dataset, data_dir, train_split, val_split: the images, named as timm's scripts name them.
        dataset_args: further arguments of timm's reader, `{name: value}`: `download` (for `torch/`, `tfds/`),
            `input_key` and `target_key` (columns of `hfds/`, `wds/`), `class_map`, `num_samples`.
        epochs: passes over the images.
        max_steps: stop after so many steps; the schedule is still that of all epochs.
        batch_size: images in one step, over all processes and accumulated parts together.
        accumulate: parts in which a step is worked off, to save memory; it changes nothing else.
        sampling: which stitches a step trains: `"uniform"` (SN-Net), `"resource"` (SN-Netv2: a group of
            like macs, then one of it), `"sandwich"` (largest and smallest anchor and some at random),
            `"anchors"` (all anchors and some at random) or `"importance"` (by `scores`).
        stitches: how many a step trains, on the same images; for `"sandwich"` and `"anchors"` besides those.
        group_width, groups, group_bias: of `"resource"`: a group's width in macs (default 1e9) or how
            many groups; from -1 to 1, how much dearer groups are preferred.
        scores: of `"importance"`: `{stitch_id: score}`.
        inplace_distillation: of `"sandwich"` and `"anchors"`: the other stitches learn from the largest anchor's
            outputs instead of the labels.
        tune: `"all"`, or `"stitches"` for the stitching layers alone (anchors alone are not drawn then).
        anchor_lr_scale, stitch_lr_scale: of the learning rate, for the anchors' parameters and for the
            stitching layers'.
        dense_updates: give parameters that a step did not use a zero gradient, so that they decay and
            keep moving, as in the authors' runs (torch 1.12). Otherwise such a step leaves them alone.
        opt, lr, weight_decay, momentum: timm's optimiser by name and its values.
        clip_grad, clip_mode: the largest gradient `"norm"` or `"value"`, or the ratio of `"agc"`; None for none.
        sched, warmup_epochs, warmup_lr, min_lr: timm's schedule by name and its values; the warm-up is by
            default a tenth of the epochs, and 5 at most.
        ema_decay: of an average of the weights, which is then what the run gives; None for none.
        smoothing: of the labels.
        mixup, cutmix: their alphas; 0 for none.
        repeated_aug: how many differently augmented copies of an image an epoch holds (of fewer images).
        auto_augment, color_jitter, hflip, crop_mode, crop_scale, crop_ratio, erase, erase_mode,
            train_interpolation: timm's augmentation.
        distillation: `"none"`, `"soft"` (the teacher's probabilities) or `"hard"` (its labels).
        teacher: a timm model's name.
        distill_weight: the teacher's part of the loss, 0 to 1.
        temperature: of soft distillation.
        precision: `"no"`, `"bf16"` or `"fp16"`.
        workers: processes that read images.
        seed: of the order of images, of augmentation and of the stitches.
        checkpoint_steps: steps between checkpoints; None for one an epoch.
        keep: how many of the last checkpoints to keep; the best one is kept besides.
        resume: continue from the last checkpoint in `output`: True insists on one, `"auto"` begins anew
            if there is none, False refuses to write over one.
        evaluate_every: epochs between evaluations of all stitches; 0 for none.
        trackers: Accelerate's, by name; `"auto"` is TensorBoard if it is installed and there is an output.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a value is out of range, or two contradict each other.
    """

    output: str | None = None
    dataset: str | None = None
    data_dir: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    dataset_args: dict[str, bool | int | str] | None = None
    epochs: int = 50
    max_steps: int | None = None
    batch_size: int = 1024
    accumulate: int = 1
    sampling: str = "uniform"
    stitches: int = 1
    group_width: float | None = None
    groups: int | None = None
    group_bias: float = 0.0
    scores: dict[int, float] | None = None
    inplace_distillation: bool = False
    tune: str = "all"
    anchor_lr_scale: float = 1.0
    stitch_lr_scale: float = 1.0
    dense_updates: bool = False
    opt: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.05
    momentum: float = 0.9
    clip_grad: float | None = None
    clip_mode: str = "norm"
    sched: str = "cosine"
    warmup_epochs: float | None = None
    warmup_lr: float = 1e-7
    min_lr: float = 1e-6
    ema_decay: float | None = None
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    repeated_aug: int = 1
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.3
    hflip: float = 0.5
    crop_mode: str = "rrc"
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    crop_ratio: tuple[float, ...] = (0.75, 4 / 3)
    erase: float = 0.25
    erase_mode: str = "pixel"
    train_interpolation: str = "bicubic"
    distillation: str = "none"
    teacher: str | None = None
    distill_weight: float = 0.5
    temperature: float = 1.0
    precision: str = "no"
    workers: int = 4
    seed: int = 0
    checkpoint_steps: int | None = None
    keep: int = 2
    resume: bool | str = False
    evaluate_every: int = 0
    trackers: str | tuple[str, ...] | None = "auto"

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            value = getattr(self, name)
            if not _fits(value, hint):
                wanted = {f.name: f.type for f in fields(self)}[name]
                raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected {wanted}.")
            if name in _RANGES and value is not None:
                low, high = _RANGES[name]
                if not low <= value <= high:
                    raise ValueError(f"{name}={value!r} is out of range: expected {low} <= {name} <= {high}.")
            if name in _CHOICES and value not in _CHOICES[name]:
                raise ValueError(f"{name}={value!r} is unknown: expected one of {_CHOICES[name]}.")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse fields that contradict each other, by name."""
        guided = self.sampling in ("sandwich", "anchors")
        for name, needs, holds in (
            ("teacher", "distillation to 'hard' or 'soft'", self.teacher is None or self.distillation != "none"),
            ("temperature", "distillation='soft'", self.temperature == 1 or self.distillation == "soft"),
            ("distill_weight", "distillation to 'hard' or 'soft'",
             self.distill_weight == 0.5 or self.distillation != "none"),
            ("group_width", "sampling='resource'", self.group_width is None or self.sampling == "resource"),
            ("groups", "sampling='resource'", self.groups is None or self.sampling == "resource"),
            ("group_bias", "sampling='resource'", self.group_bias == 0 or self.sampling == "resource"),
            ("scores", "sampling='importance'", self.scores is None or self.sampling == "importance"),
            ("inplace_distillation", "sampling='sandwich' or 'anchors'", not self.inplace_distillation or guided),
            ("anchor_lr_scale", "tune='all'", self.anchor_lr_scale == 1 or self.tune == "all"),
            ("clip_mode", "clip_grad", self.clip_mode == "norm" or self.clip_grad is not None),
            ("resume", "output", not self.resume or self.output is not None),
            ("checkpoint_steps", "output", self.checkpoint_steps is None or self.output is not None),
            ("keep", "output", self.keep == 2 or self.output is not None),
        ):  # fmt: skip
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} has nothing to do: set {needs}, or leave {name} out.")
        if self.group_width is not None and self.groups is not None:
            raise ValueError(f"group_width={self.group_width} and groups={self.groups} contradict: give one of them.")
        if self.sampling == "importance" and not self.scores:
            raise ValueError("sampling='importance' needs scores: set scores to {stitch_id: score} of every stitch.")
        if self.sched != "none" and self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}: lower it.")
        if self.sched != "none" and self.warmup >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup} takes all of epochs={self.epochs}, so that lr={self.lr} is never "
                "reached: lower warmup_epochs."
            )
        unknown = sorted(set(self.dataset_args or ()) - set(DATASET_ARGS))
        if unknown:
            raise ValueError(f"dataset_args has {', '.join(unknown)}: expected some of {', '.join(DATASET_ARGS)}.")
        for name in ("crop_scale", "crop_ratio"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name}={pair} is no range: expected two numbers, the smaller first, above 0.")

    @property
    def warmup(self) -> float:
        """Epochs of warm-up."""
        return min(5, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read plain values, as YAML or JSON give them; unknown names are refused.

        Raises:
            TypeError: naming what has the wrong type.
            ValueError: naming what is unknown, out of range or contradictory.
        """
        hints = _hints()
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise ValueError(f"unknown fields {', '.join(unknown)}: the fields are {', '.join(sorted(hints))}.")
        return cls(**{name: _read(value, hints[name]) for name, value in values.items()})


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


# What is text even where it looks like a number.
TEXTS = frozenset(name for name, hint in _hints().items() if hint in (str, str | None))


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of which one must fit."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    for part in _parts(hint):
        origin = get_origin(part)
        if origin is tuple:
            fits = isinstance(value, tuple) and all(_fits(v, get_args(part)[0]) for v in value)
        elif origin is dict:
            key, item = get_args(part)
            fits = isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
        elif part is float:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
        elif part is int:
            fits = isinstance(value, int) and not isinstance(value, bool)
        else:
            fits = isinstance(value, part)
        if fits:
            return True
    return False


def _read(value: Any, hint: Any) -> Any:
    """A list as a tuple; for YAML `1e-4` is text, which becomes a number, and `no` is False, which becomes text."""
    if value is False and str in _parts(hint) and bool not in _parts(hint):
        return "no"
    if isinstance(value, list):
        return tuple(_read(v, float) if float in get_args(_parts(hint)[0]) else v for v in value)
    if isinstance(value, str) and float in _parts(hint):
        try:
            return float(value)
        except ValueError:
            return value
    return value
