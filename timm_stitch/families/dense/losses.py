"""Losses of segmentation and depth, from labels and from the largest anchor.

A batch's loss is a mean over its images' pixels, or over its images, so that it does not depend on how a step's images
are split into micro-batches and over processes.

Sources: mmsegmentation's `CrossEntropyLoss` and FCN's auxiliary heads (weight 0.4); Eigen et al. (arXiv:1406.2283) and
`SigLoss` of the Monocular Depth Estimation Toolbox; in-place distillation of arXiv:1903.05134, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = 255  # the label of pixels that do not count
AUXILIARY_WEIGHT = 0.4
_MEAN_SHARE = 0.15  # of the squared mean of log errors in `SigLoss`: 1 - 0.85
_LOG_FLOOR = 1e-3  # metres that `SigLoss` adds to both depths


def resize_to(outputs: Tensor, labels: Tensor) -> Tensor:
    """Resize outputs (B, C, h, w) to the labels' size, if they differ.

    Raises:
        ValueError: if they are not outputs and labels of the same images.
    """
    if outputs.ndim != 4 or labels.ndim != 3 or len(outputs) != len(labels):
        raise ValueError(
            f"outputs must be (B, C, H, W) and labels (B, H, W) of the same images, got {tuple(outputs.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if outputs.shape[-2:] == labels.shape[-2:]:
        return outputs
    return functional.interpolate(outputs, labels.shape[-2:], mode="bilinear", align_corners=False)


def check_labels(labels: object, classes: int, ignored: int = IGNORED) -> Tensor:
    """Refuse labels that are no classes of the pixels.

    Args:
        labels: the labels (B, H, W).
        classes: the number of classes.
        ignored: the label of pixels that do not count.

    Raises:
        ValueError: naming the shape, or the label that is out of range (on a CPU; a GPU would wait for it).
    """
    if not isinstance(labels, Tensor) or labels.ndim != 3 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels of segmentation must be class numbers (B, H, W), got {_describe(labels)}: one-hot masks become "
            "class numbers by argmax(1)."
        )
    if labels.is_cpu and labels.numel():
        wrong = labels[(labels != ignored) & ((labels < 0) | (labels >= classes))]
        if len(wrong):
            raise ValueError(
                f"labels must be from 0 to {classes - 1}, or {ignored} for pixels that do not count, got "
                f"{int(wrong[0])}: correct the masks, or create the network with num_classes={int(wrong.max()) + 1}."
            )
    return labels


def check_depth(depth: object) -> Tensor:
    """Refuse labels that are no depths of the pixels.

    Raises:
        ValueError: naming what they are.
    """
    if not isinstance(depth, Tensor) or depth.ndim != 3 or not depth.is_floating_point():
        raise ValueError(
            "labels of depth must be metres (B, H, W) in floating point, 0 where there is none, got "
            f"{_describe(depth)}."
        )
    if depth.is_cpu and not bool((depth >= 0).all()):  # nan is not either
        raise ValueError("labels of depth must be metres of 0 or more, got negative ones or nan: mark none by 0.")
    return depth


def pixel_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, ignored: int = IGNORED
) -> Tensor:
    """Compute the cross-entropy of every pixel, 0 where it does not count; shape (B, H, W)."""
    return functional.cross_entropy(logits, labels.long(), weights, ignore_index=ignored, reduction="none")


def segmentation_loss(
    outputs: Sequence[Tensor], labels: Tensor, weights: Tensor | None = None, ignored: int = IGNORED
) -> Tensor:
    """Compute the cross-entropy, with 0.4 times that of each auxiliary output.

    Args:
        outputs: the logits (B, classes, h, w), then those of auxiliary heads; resized to the labels.
        labels: the classes (B, H, W).
        weights: the weights of the classes; default equal ones.
        ignored: the label of pixels that do not count.

    Returns:
        The mean over all pixels, those that do not count as 0, as in mmsegmentation.
    """
    terms = [pixel_cross_entropy(_resized(one, labels), labels, weights, ignored).mean() for one in outputs]
    return _weighted(terms)


def depth_loss(outputs: Sequence[Tensor], depth: Tensor, max_depth: float | None = None) -> Tensor:
    """Compute the scale-invariant log loss, with 0.4 times that of each auxiliary output.

    Args:
        outputs: the depths (B, 1, h, w) in metres, then those of auxiliary heads; resized to the labels.
        depth: the true depths (B, H, W), 0 where there is none.
        max_depth: the largest depth that counts; default no limit.

    Returns:
        The mean over images; one without valid pixels counts as 0.
    """
    valid = _is_trained(depth, max_depth)
    return _weighted([log_depth_errors(_resized(one, depth).squeeze(1), depth, valid).mean() for one in outputs])


def log_depth_errors(predicted: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Compute the scale-invariant log error of each image, shape (B,): `sqrt(variance + 0.15 mean²)` of the log ratio.

    # Deviation: the toolbox takes variance and mean over a batch; by image, the loss does not depend on its split.

    Args:
        predicted: the depths (B, H, W).
        depth: the true depths (B, H, W).
        valid: the pixels that count, (B, H, W).
    """
    count = valid.sum((1, 2))
    ratio = (predicted.clamp(min=0) + _LOG_FLOOR).log() - (depth + _LOG_FLOOR).log()
    mean = torch.where(valid, ratio, 0).sum((1, 2)) / count.clamp(min=1)
    squares = torch.where(valid, ratio - mean[:, None, None], 0).square().sum((1, 2))
    error = squares / (count - 1).clamp(min=1) + _MEAN_SHARE * mean.square()
    return error.clamp(min=1e-12).sqrt() * (count > 0)  # the root of 0 has no gradient


def segmentation_distillation(logits: Tensor, guide: Tensor, labels: Tensor, ignored: int = IGNORED) -> Tensor:
    """Compute the cross-entropy with the largest anchor's probabilities, over the pixels that count.

    Args:
        logits: the logits (B, classes, h, w).
        guide: the largest anchor's logits, detached.
        labels: the classes (B, H, W), for the pixels that count.
        ignored: the label of pixels that do not count.
    """
    target = _resized(guide, labels).softmax(1)
    losses = -(target * _resized(logits, labels).log_softmax(1)).sum(1)
    return torch.where(labels != ignored, losses, 0).mean()


def depth_distillation(predicted: Tensor, guide: Tensor, depth: Tensor, max_depth: float | None = None) -> Tensor:
    """Compute the mean absolute difference of log depth from the largest anchor's, over the pixels that count.

    Args:
        predicted: the depths (B, 1, h, w) in metres.
        guide: the largest anchor's depths, detached.
        depth: the true depths (B, H, W), for the pixels that count.
        max_depth: the largest depth that counts; default no limit.
    """
    ours, theirs = ((_resized(one, depth).squeeze(1).clamp(min=0) + _LOG_FLOOR).log() for one in (predicted, guide))
    valid = _is_trained(depth, max_depth)
    by_image = torch.where(valid, (ours - theirs).abs(), 0).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    return by_image.mean()


def _describe(labels: object) -> str:
    if labels is None:
        return "none"
    return f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__


def _is_trained(depth: Tensor, max_depth: float | None) -> Tensor:
    """Find the pixels whose depth counts in a loss."""
    valid = depth > 0
    return valid if max_depth is None else valid & (depth <= max_depth)


def _resized(outputs: Tensor, labels: Tensor) -> Tensor:
    """Resize outputs to the labels, in float32 where they are in half precision."""
    half = outputs.dtype in (torch.float16, torch.bfloat16)
    return resize_to(outputs.float() if half else outputs, labels)


def _weighted(terms: Sequence[Tensor]) -> Tensor:
    """Add the auxiliary terms to the first, each times 0.4."""
    total = terms[0]
    for term in terms[1:]:
        total = total + AUXILIARY_WEIGHT * term
    return total
