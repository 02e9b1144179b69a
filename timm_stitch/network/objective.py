"""What a network learns and how it is scored, for networks that do more than classify.

`StitchableNetwork.objective` holds one, or None for classification; evaluation and training ask it for all that depends
on the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from torch import Tensor


class Objective(Protocol):
    """The targets, scores and losses of a network that does not classify whole images or texts.

    Attributes:
        labels: the kind of files that its targets come from: masks of classes, or depths.
        classes: the number of classes; None for depth.
        none: the label of pixels that do not count.
        size: the number of sums that `sum_scores` gives.
    """

    labels: Literal["mask", "depth"]
    classes: int | None
    none: int
    size: int

    def check_targets(self, labels: object) -> Tensor:
        """Check the labels of a batch.

        Raises:
            ValueError: if they are none of this task.
        """
        ...

    def sum_scores(self, output: Any, labels: Tensor) -> Tensor:
        """Sum over a batch all that the metrics need, as float64; batches and processes add up the sums."""
        ...

    def row(self, sums: Tensor) -> Mapping[str, float] | None:
        """Compute the metrics from the sums; None if no label counted."""
        ...

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        """Compute a stitch's loss from the labels: a mean over equal parts of the batch."""
        ...

    def distillation(self, output: Any, guide: Any, labels: Tensor) -> Tensor:
        """Compute a stitch's loss from the detached output of the largest anchor."""
        ...
