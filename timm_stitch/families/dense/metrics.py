"""Metrics of segmentation and depth, from sums that processes and batches add up.

Each stitch has one tensor of float64 sums, so counts are exact up to 2^53 pixels.

Sources: mmsegmentation's `IoUMetric` for mIoU, aAcc and mAcc; Eigen et al. (arXiv:1406.2283) and the Monocular Depth
Estimation Toolbox for the errors of depth, which are means over images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .losses import IGNORED, log_depth_errors, pixel_cross_entropy, resize_to

_EIGEN_SIZE, _EIGEN_CROP = (480, 640), (slice(45, 471), slice(41, 601))


def eigen_crop(depth: Tensor) -> Tensor:
    """Keep the depths of NYUv2's images (…, 480, 640) in Eigen's crop, and set the others to 0, which is none.

    Raises:
        ValueError: if the images have another size.
    """
    if depth.shape[-2:] != _EIGEN_SIZE:
        raise ValueError(
            f"eigen_crop is of NYUv2's images of 480 x 640 pixels, got {depth.shape[-2]} x {depth.shape[-1]}: set "
            "eigen_crop to false."
        )
    kept = torch.zeros_like(depth)
    kept[..., _EIGEN_CROP[0], _EIGEN_CROP[1]] = depth[..., _EIGEN_CROP[0], _EIGEN_CROP[1]]
    return kept


class SegmentationMetrics:
    """Mean IoU, accuracy over pixels and mean accuracy of classes, from a confusion matrix.

    A class that is neither in the labels nor predicted counts for no mean IoU, and one that is not in the labels for no
    mean accuracy, as in mmsegmentation.

    Args:
        classes: the number of classes.
        ignored: the label of pixels that do not count.

    Examples:
        >>> import torch
        >>> from timm_stitch.families.dense.metrics import SegmentationMetrics
        >>> metrics = SegmentationMetrics(3)
        >>> logits = torch.eye(3)[[0, 0, 1, 1]].T.reshape(1, 3, 2, 2)  # predicts 0, 0, 1, 1
        >>> row = metrics.row(metrics.sums(logits, torch.tensor([[[0, 1], [1, 255]]])))
        >>> row["miou"], round(row["aacc"], 2), row["macc"]
        (50.0, 66.67, 75.0)
    """

    def __init__(self, classes: int, ignored: int = IGNORED) -> None:
        self.classes, self.ignored = classes, ignored
        self.size = classes * classes + 1  # the confusion matrix, and the sum of the cross-entropy

    @torch.no_grad()
    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over a batch: the confusion matrix (labels by predictions), then the cross-entropy.

        Args:
            logits: the outputs, (B, classes, h, w); resized to the labels.
            labels: the classes (B, H, W).

        Returns:
            The sums, shape (classes² + 1,).
        """
        logits, counts = resize_to(logits, labels).float(), labels != self.ignored
        pairs = labels[counts].long() * self.classes + logits.argmax(1)[counts]
        confusion = torch.bincount(pairs, minlength=self.classes**2)
        loss = pixel_cross_entropy(logits, labels, ignored=self.ignored).double().sum()
        return torch.cat([confusion.to(loss), loss[None]])

    def count(self, sums: Tensor) -> int:
        """Count the pixels with a label that counts."""
        return int(sums[:-1].sum())

    def row(self, sums: Tensor) -> dict[str, float]:
        """Compute the metrics: `miou`, `aacc` and `macc` in per cent, and `loss`, the mean over pixels."""
        confusion = sums[:-1].reshape(self.classes, self.classes)
        hits, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        union = labelled + predicted - hits
        pixels = labelled.sum()
        return {
            "miou": 100 * float((hits / union)[union > 0].mean()),
            "aacc": 100 * float(hits.sum() / pixels),
            "macc": 100 * float((hits / labelled)[labelled > 0].mean()),
            "loss": float(sums[-1] / pixels),
        }


class DepthMetrics:
    """Errors of depth: each is a mean over an image's valid pixels, then over the images that have any.

    Args:
        min_depth: the depth in metres that valid pixels exceed; pixels without a depth are 0.
        max_depth: the depth below which pixels are valid; default no limit.

    Examples:
        >>> import torch
        >>> from timm_stitch.families.dense.metrics import DepthMetrics
        >>> metrics = DepthMetrics()
        >>> predicted, depth = torch.tensor([[[[2.0, 1.0, 7.0]]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
        >>> row = metrics.row(metrics.sums(predicted, depth))
        >>> row["abs_rel"], row["delta1"], round(row["rmse"], 4)
        (0.5, 50.0, 0.7071)
    """

    size = 6  # the sums of abs_rel, delta1, rmse, silog and loss, and the number of images

    def __init__(self, min_depth: float = 0.0, max_depth: float | None = None) -> None:
        self.min_depth, self.max_depth = min_depth, max_depth

    @torch.no_grad()
    def sums(self, predicted: Tensor, depth: Tensor) -> Tensor:
        """Sum over a batch the metrics of each image, and the number of images with valid pixels.

        Args:
            predicted: the depths (B, 1, h, w), positive; resized to `depth`.
            depth: the true depths (B, H, W), 0 where there is none.

        Returns:
            The sums, shape (6,).
        """
        theirs, ours = depth.double(), resize_to(predicted, depth).squeeze(1).double()
        valid = theirs > self.min_depth
        if self.max_depth is not None:
            valid &= theirs < self.max_depth
        count = valid.sum((1, 2))
        has_any = count > 0

        def mean(values: Tensor) -> Tensor:
            return torch.where(valid, values, 0).sum((1, 2)) / count.clamp(min=1)

        safe = theirs.clamp(min=torch.finfo(theirs.dtype).tiny)
        ours = ours.clamp(min=1e-9)
        ratio = torch.maximum(ours / safe, safe / ours)
        logs = ours.log() - safe.log()
        variance = (mean(logs.square()) - mean(logs).square()).clamp(min=0)
        metrics = torch.stack(
            [
                mean((ours - theirs).abs() / safe),
                100 * mean((ratio < 1.25).to(ours)),
                mean((ours - theirs).square()).sqrt(),
                100 * variance.sqrt(),
                log_depth_errors(ours, theirs, valid),
                torch.ones_like(variance),
            ]
        )
        return metrics[:, has_any].sum(1)

    def count(self, sums: Tensor) -> int:
        """Count the images with a depth that counts."""
        return int(sums[-1])

    def row(self, sums: Tensor) -> dict[str, float]:
        """Compute the metrics: `abs_rel`, `delta1` in per cent, `rmse` in metres, `silog` times 100, and `loss`."""
        values = (sums[:-1] / sums[-1]).tolist()
        return dict(zip(("abs_rel", "delta1", "rmse", "silog", "loss"), values, strict=True))
