"""The objectives of dense networks: segmentation and depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from .losses import (
    IGNORED,
    check_depth,
    check_labels,
    depth_distillation,
    depth_loss,
    segmentation_distillation,
    segmentation_loss,
)
from .metrics import DepthMetrics, SegmentationMetrics


class Segmentation:
    """Segmentation into classes.

    Args:
        classes: the number of classes.
        ignored: the label of pixels that do not count.
        weights: the weights of the classes in the loss; default equal ones.
    """

    labels: Literal["mask", "depth"] = "mask"

    def __init__(self, classes: int, ignored: int = IGNORED, weights: Tensor | None = None) -> None:
        self.classes: int | None = classes
        self.weights, self.none = weights, ignored
        self.metrics = SegmentationMetrics(classes, ignored)
        self.size = self.metrics.size

    def check_targets(self, labels: object) -> Tensor:
        """Refuse labels that are no class numbers (B, H, W)."""
        return check_labels(labels, self.metrics.classes, self.none)

    def sum_scores(self, output: Tensor, labels: Tensor) -> Tensor:
        """Sum the confusion matrix and the cross-entropy."""
        return self.metrics.sums(output, labels)

    def row(self, sums: Tensor) -> Mapping[str, float] | None:
        """Compute `miou`, `aacc`, `macc` and `loss`."""
        return self.metrics.row(sums) if self.metrics.count(sums) else None

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of every pixel, with auxiliary outputs."""
        weights = None if self.weights is None else self.weights.to(labels.device)
        return segmentation_loss(_outputs(output), labels, weights, self.none)

    def distillation(self, output: Tensor, guide: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy with the probabilities of the largest anchor."""
        return segmentation_distillation(output, guide, labels, self.none)


class Depth:
    """Depth in metres.

    Args:
        min_depth, max_depth: the range of depths in metres.
    """

    labels: Literal["mask", "depth"] = "depth"
    classes: int | None = None
    none = 0

    def __init__(self, min_depth: float = 0.0, max_depth: float | None = None) -> None:
        self.max_depth = max_depth
        self.metrics = DepthMetrics(min_depth, max_depth)
        self.size = self.metrics.size

    def check_targets(self, labels: object) -> Tensor:
        """Refuse labels that are no metres (B, H, W)."""
        return check_depth(labels)

    def sum_scores(self, output: Tensor, labels: Tensor) -> Tensor:
        """Sum the metrics of each image."""
        return self.metrics.sums(output, labels)

    def row(self, sums: Tensor) -> Mapping[str, float] | None:
        """Compute `abs_rel`, `delta1`, `rmse`, `silog` and `loss`."""
        return self.metrics.row(sums) if self.metrics.count(sums) else None

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Compute the scale-invariant log loss, with auxiliary outputs."""
        return depth_loss(_outputs(output), labels, self.max_depth)

    def distillation(self, output: Tensor, guide: Tensor, labels: Tensor) -> Tensor:
        """Compute the difference of log depth from the largest anchor's."""
        return depth_distillation(output, guide, labels, self.max_depth)


def make_objective(
    task: str, classes: int, ignored: int = IGNORED, min_depth: float = 0.0, max_depth: float | None = None
) -> Segmentation | Depth:
    """Make the objective of a task.

    Args:
        task: `"segmentation"` or `"depth"`.
        classes, ignored: the arguments of `Segmentation`.
        min_depth, max_depth: the arguments of `Depth`.
    """
    return Depth(min_depth, max_depth) if task == "depth" else Segmentation(classes, ignored)


def _outputs(output: Tensor) -> list[Tensor]:
    """List an output and, in training, those of auxiliary heads, which it carries."""
    return [output, *getattr(output, "auxiliary", ())]
