"""The losses of a step's stitches: from labels, a teacher, and the largest anchor.

Sources: SN-Net (arXiv:2302.06586, hard labels of a teacher as in DeiT); universally slimmable networks
(arXiv:1903.05134, in-place distillation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from ..errors import library_errors
from ..evaluation.scores import Targets, flatten_pairs
from ..hub.errors import fetch_error, local_files_advice
from ..network.objective import Objective
from .config import TrainConfig


class Teacher(nn.Module):
    """A frozen classifier that sees the student's images, normalised and, if it takes one size only, resized.

    Args:
        network: any classifier of images (B, C, H, W).
        student_cfg: the student's `pretrained_cfg`, with the mean and std of its images.
    """

    scale: Tensor | None
    shift: Tensor

    def __init__(self, network: nn.Module, student_cfg: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        own, theirs = student_cfg or {}, getattr(network, "pretrained_cfg", None) or {}
        self.register_buffer("scale", None)
        if own.get("mean") and theirs.get("mean") and any(tuple(own[k]) != tuple(theirs[k]) for k in ("mean", "std")):
            mean, std, to_mean, to_std = (
                torch.tensor(c[k])[:, None, None] for c in (own, theirs) for k in ("mean", "std")
            )
            self.scale = std / to_std
            self.register_buffer("shift", (mean - to_mean) / to_std)
        size = getattr(getattr(network, "patch_embed", None), "img_size", None) or theirs.get("input_size", ())[1:]
        self.size = tuple(size) if theirs.get("fixed_input_size") else None

    @torch.no_grad()
    def forward(self, images: Any) -> Any:
        if not isinstance(images, Tensor):
            return self.network(**images)
        if self.scale is not None:
            images = images * self.scale + self.shift
        if self.size is not None and self.size != images.shape[-2:]:
            images = nn.functional.interpolate(images, self.size, mode="bicubic", antialias=True)
        logits: Tensor = self.network(images)
        return logits


def find_teacher(config: TrainConfig, network: nn.Module | None, student: nn.Module) -> Teacher | None:
    """Find the teacher: the given network, or the one that a configuration names; None without distillation.

    Raises:
        ValueError: if distillation has no teacher, or the teacher has other classes or channels.
    """
    if config.distillation == "none":
        return None
    if getattr(student, "objective", None) is not None:
        raise ValueError(
            f"distillation={config.distillation!r} is from a classifier: for masks and depth set it to 'none', and "
            "inplace_distillation=True to learn from the largest anchor."
        )
    if network is None:
        if not config.teacher:
            raise ValueError(f"distillation={config.distillation!r} needs a teacher: name a timm model.")
        network = _make_teacher(config.teacher)
    for name, what in (("num_classes", "classes"), ("in_chans", "channels")):
        theirs, ours = getattr(network, name, None), getattr(student, name, None)
        if theirs not in (None, ours):
            raise ValueError(
                f"the teacher {config.teacher or type(network).__name__!r} has {theirs} {what}, the network {ours}: "
                f"give train(..., teacher=MODULE) one of the same {what}, or set distillation='none'."
            )
    return Teacher(network, getattr(student, "pretrained_cfg", None))


def _make_teacher(name: str) -> nn.Module:
    """Make a teacher by its timm name, folder or repository, with its weights.

    Raises:
        OSError: if its weights cannot be fetched.
        ValueError: if timm has no such model.
    """
    try:
        with library_errors(f"timm cannot make teacher={name!r}", RuntimeError):
            network: nn.Module = timm.create_model(name, pretrained=True)
            return network
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise FileNotFoundError(f"there is no teacher={name!r}: {error}.") from error
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) if ":" not in name else None
        repo_id = cfg.hf_hub_id if cfg is not None else name.partition(":")[2]
        raise fetch_error(f"teacher={name!r}", error, local_files_advice(name, repo_id)) from error


class StitchLoss:
    """The losses of a micro-batch, one for each stitch that the step trains.

    Args:
        config: the configuration of smoothing and distillation.
        teacher: the teacher to distil from, or None.
        objective: the objective of the network; default classification.
    """

    def __init__(self, config: TrainConfig, teacher: Teacher | None, objective: Objective | None = None) -> None:
        self.config, self.teacher, self.objective = config, teacher, objective
        self.hard = LabelSmoothingCrossEntropy(config.smoothing) if config.smoothing else nn.CrossEntropyLoss()
        self.soft = SoftTargetCrossEntropy()

    def teacher_logits(self, inputs: Any) -> Any:
        """Compute the teacher's output, logits (B, classes) for images, once for all stitches of the step."""
        return None if self.teacher is None else self.teacher(inputs)

    def of_each(
        self, outputs: Mapping[int, Any], labels: Targets, teacher_output: Any, largest: int
    ) -> dict[int, Tensor]:
        """Compute the loss of every stitch.

        Args:
            outputs: each stitch's logits (B, classes), or an output with them.
            labels: the labels (B,), mixed targets (B, classes), or the labels of texts.
            teacher_output: the teacher's output, or None.
            largest: the id of the stitch from which the others learn with in-place distillation.
        """
        if self.objective is not None:
            return self._by_objective(self.objective, outputs, labels.labels, largest)
        losses: dict[int, Tensor] = {}
        guide = None
        by_teacher = None if teacher_output is None else _in_float32(flatten_pairs(teacher_output, labels)[0])
        if self.config.inplace_distillation:
            guide = _in_float32(flatten_pairs(outputs[largest], labels)[0]).detach().softmax(-1)
        for stitch_id, out in outputs.items():
            logits, targets = flatten_pairs(out, labels)
            logits = _in_float32(logits)
            if guide is not None and stitch_id != largest:
                losses[stitch_id] = self.soft(logits, guide)
            else:
                losses[stitch_id] = self._loss(logits, targets, by_teacher)
        return losses

    def _by_objective(
        self, objective: Objective, outputs: Mapping[int, Any], labels: Tensor, largest: int
    ) -> dict[int, Tensor]:
        guide = outputs[largest].detach() if self.config.inplace_distillation else None
        return {
            stitch_id: objective.loss(out, labels)
            if guide is None or stitch_id == largest
            else objective.distillation(out, guide, labels)
            for stitch_id, out in outputs.items()
        }

    def _loss(self, logits: Tensor, targets: Tensor, teacher_output: Tensor | None) -> Tensor:
        base: Tensor = (self.soft if targets.ndim > 1 else self.hard)(logits, targets)
        if teacher_output is None:
            return base
        weight, t = self.config.distill_weight, self.config.temperature
        if self.config.distillation == "hard":
            distilled = nn.functional.cross_entropy(logits, teacher_output.argmax(-1))
        else:
            ours, theirs = ((x / t).log_softmax(-1) for x in (logits, teacher_output))
            distilled = t * t * nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1 - weight) * base + weight * distilled


def _in_float32(logits: Tensor) -> Tensor:
    """Convert logits in half precision to float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
