"""The objectives of dense networks: segmentation and depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from .losses import (
    check_depth,
    check_labels,
    depth_distillation,
    depth_loss,
    ignored_label,
    segmentation_distillation,
    segmentation_loss,
)
from .metrics import DepthMetrics, SegmentationMetrics

Outputs = Tensor | Sequence[Tensor]  # the output, and in training those of auxiliary heads behind it


class Segmentation:
    """Segmentation into classes.

    Args:
        classes: the number of classes.
        weights: the weights of the classes in the loss; default equal ones.
    """

    labels: Literal["mask", "depth"] = "mask"

    def __init__(self, classes: int, weights: Tensor | None = None) -> None:
        self.classes: int | None = classes
        self.weights, self.ignored = weights, ignored_label(classes)
        self.metrics = SegmentationMetrics(classes, self.ignored)
        self.size = self.metrics.size

    def check_targets(self, labels: object) -> Tensor:
        """Refuse labels that are no class numbers (B, H, W)."""
        return check_labels(labels, self.metrics.classes, self.ignored)

    def sum_scores(self, output: Outputs, labels: Tensor) -> Tensor:
        """Sum the confusion matrix and the cross-entropy."""
        return self.metrics.sums(_outputs(output)[0], labels)

    def row(self, sums: Tensor) -> Mapping[str, float] | None:
        """Compute `miou`, `aacc`, `macc` and `loss`."""
        return self.metrics.row(sums) if self.metrics.count(sums) else None

    def loss(self, output: Outputs, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of every pixel, with auxiliary outputs."""
        weights = None if self.weights is None else self.weights.to(labels.device)
        return segmentation_loss(_outputs(output), labels, weights, self.ignored)

    def distillation(self, output: Outputs, guide: Outputs, labels: Tensor) -> Tensor:
        """Compute the cross-entropy with the probabilities of the largest anchor."""
        return segmentation_distillation(_outputs(output)[0], _outputs(guide)[0], labels, self.ignored)


class Depth:
    """Depth in metres.

    Args:
        max_depth: the largest depth of the network.
    """

    labels: Literal["mask", "depth"] = "depth"
    classes: int | None = None

    def __init__(self, max_depth: float | None = None) -> None:
        self.max_depth = max_depth
        self.metrics = DepthMetrics(max_depth=max_depth)
        self.size = self.metrics.size

    def check_targets(self, labels: object) -> Tensor:
        """Refuse labels that are no metres (B, H, W)."""
        return check_depth(labels)

    def sum_scores(self, output: Outputs, labels: Tensor) -> Tensor:
        """Sum the metrics of each image."""
        return self.metrics.sums(_outputs(output)[0], labels)

    def row(self, sums: Tensor) -> Mapping[str, float] | None:
        """Compute `abs_rel`, `delta1`, `rmse`, `silog` and `loss`."""
        return self.metrics.row(sums) if self.metrics.count(sums) else None

    def loss(self, output: Outputs, labels: Tensor) -> Tensor:
        """Compute the scale-invariant log loss, with auxiliary outputs."""
        return depth_loss(_outputs(output), labels, self.max_depth)

    def distillation(self, output: Outputs, guide: Outputs, labels: Tensor) -> Tensor:
        """Compute the difference of log depth from the largest anchor's."""
        return depth_distillation(_outputs(output)[0], _outputs(guide)[0], labels, self.max_depth)


def _outputs(output: Any) -> Sequence[Tensor]:
    return [output] if isinstance(output, Tensor) else output
