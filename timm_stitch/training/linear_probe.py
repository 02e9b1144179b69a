"""Fit new classifiers to labelled images by ridge regression, so that training begins with what the anchors know.

timm begins the classifier of new classes with random weights. On a few hundred images a short run hardly gets over
that, while a linear map of the same features, fitted in closed form, is often right at once. How strong the ridge is,
and the scale of the logits, are chosen by what each image would get had it been left out.

Source: ridge regression with leave-one-out residuals in closed form (the PRESS statistic).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anchors.block_view import BlockView
from ..anchors.view import ImageInputs
from ..data.batches import Batch
from ..evaluation.scores import split_targets, to_class_numbers
from ..families.registry import require
from ..families.timm_models.network import SNNet
from ..network.modes import evaluating

RIDGES = tuple(10.0**k for k in range(-6, 3))  # over the mean of the squared singular values
SCALES = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)

_logger = logging.getLogger(__name__)


@torch.no_grad()
def linear_probe(
    model: SNNet, loader: Iterable[Any], images: int = 1000, *, keep: Collection[int] = ()
) -> list[float | None]:
    """Fit the classifier of every anchor, in place.

    Args:
        model: the network.
        loader: batches of (images (B, C, H, W), labels (B,)).
        images: the number of images to use, to the end of a batch; the features of all are held at once.
        keep: the numbers of anchors whose classifiers stay as they are.

    Returns:
        The accuracy of each anchor in per cent, on images that are left out; None where its classifier is kept, or
        is not one linear layer, which then stays as it is.

    Raises:
        ValueError: if there are no images, their features are not finite or all the same, the labels are not class
            numbers or one-hot, or the network has no classifiers that it can fit. The network is then unchanged.

    Examples:
        >>> from timm.models.vision_transformer import VisionTransformer
        >>> sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
        >>> network = timm_stitch.stitch([VisionTransformer(embed_dim=width, **sizes) for width in (16, 32)])
        >>> images, labels = torch.randn(60, 3, 32, 32), torch.arange(60) % 3
        >>> accuracies = timm_stitch.linear_probe(network, [(images, labels)])
        >>> len(accuracies)
        2
    """
    require(model, "linear_probe")
    if images < 1:
        raise ValueError(f"images must be 1 or more, got {images}.")
    if unknown := sorted(set(keep) - set(range(len(model.views)))):
        raise ValueError(f"keep must name anchors from 0 to {len(model.views) - 1}, got {unknown}.")
    heads = {n: _linear_head(view) for n, view in enumerate(model.views) if n not in keep}
    probed = {n: head for n, head in heads.items() if head is not None}
    features: dict[int, list[Tensor]] = {n: [] for n in probed}
    labels: list[Tensor] = []
    device, classes, seen = next(model.parameters()).device, model.num_classes, 0
    with evaluating(model):
        for item in loader:
            images_of_batch, targets = split_targets(model, Batch.of(item).to(device))
            labels.append(_check_labels(to_class_numbers(targets.labels, classes), len(images_of_batch), classes))
            inputs = ImageInputs(images_of_batch)
            for number in probed:
                features[number].append(_features(model.views[number], inputs).double())
            seen += len(images_of_batch)
            if seen >= images:
                break
    if not seen:
        raise ValueError("there are no images to fit classifiers to.")
    wanted = torch.cat(labels)
    fits = {number: _fit(torch.cat(parts), wanted, classes) for number, parts in features.items()}
    for number, (weight, bias, _) in fits.items():
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"no classifier of anchor {number} fits: give different images, with finite values.")
    for number, (weight, bias, _) in fits.items():
        probed[number].weight.copy_(weight)
        probed[number].bias.copy_(bias)
    for number in sorted(set(heads) - set(probed)):
        _logger.warning("the classifier of anchor %d is left as it is: it is not one linear layer.", number)
    model.results.clear()
    return [fits[number][2] if number in fits else None for number in range(len(model.views))]


def trained_classifiers(model: SNNet, classes: Sequence[str]) -> list[int]:
    """Find the anchors whose classifiers came with pretrained weights for these classes, which a fit would destroy.

    A classifier of the same classes in another order is put into this one.

    Args:
        model: the network, whose anchors have pretrained weights.
        classes: the name of each class by its number in the network; empty if they have none.

    Returns:
        The numbers of the anchors. Of an anchor that does not name its classes, their number decides.
    """
    trained = []
    for number, view in enumerate(model.views):
        cfg = getattr(view.anchor, "pretrained_cfg", None) or {}
        names = cfg.get("label_names") or ()  # timm's may be a mapping from numbers to names
        own = [str(name) for name in (names.values() if isinstance(names, Mapping) else names)]
        if cfg.get("num_classes") != model.num_classes:
            continue  # timm began a new one
        if own and classes and own != list(classes):
            head = _linear_head(view)
            if head is None or sorted(own) != sorted(classes):
                _logger.warning("anchor %d classifies others (%s, …): its classifier is replaced.", number, own[0])
                continue
            order = torch.tensor([own.index(name) for name in classes], device=head.weight.device)
            with torch.no_grad():
                head.weight.copy_(head.weight[order])
                head.bias.copy_(head.bias[order])
            cfg["label_names"] = list(classes)
        trained.append(number)
    return trained


def _check_labels(labels: Tensor, count: int, classes: int) -> Tensor:
    """Refuse labels that are not one class of the network for each image.

    Raises:
        ValueError: naming what they are.
    """
    if len(labels) != count or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels must be {count} class numbers from 0 to {classes - 1} for {count} images, got {len(labels)} from "
            f"{int(labels.min())} to {int(labels.max())}."
        )
    return labels.long()


def _linear_head(view: BlockView) -> nn.Linear | None:
    head: Any = view.anchor.get_classifier() if view.has_head else None
    return head if isinstance(head, nn.Linear) and head.bias is not None else None


def _features(view: BlockView, inputs: ImageInputs) -> Tensor:
    """What enters the classifier, (B, D)."""
    h = view.run_to_boundaries(None, 0, (view.depth,), inputs)[view.depth]
    return view.head(view.norm(h), pre_logits=True)


def _fit(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, float]:
    """Weight (classes, D), bias (classes,) and the accuracy of images left out, in per cent."""
    if not x.isfinite().all():  # no decomposition of these
        return x.new_full((classes, x.shape[1]), math.nan), x.new_full((classes,), math.nan), 0.0
    y = F.one_hot(labels, classes).to(x)
    mean_x, mean_y = x.mean(0), y.mean(0)
    u, s, vt = torch.linalg.svd(x - mean_x, full_matrices=False)
    inside = u.T @ (y - mean_y)
    best: tuple[float, Tensor, Tensor] | None = None
    for ridge in RIDGES:
        shrink = s.square() / (s.square() + ridge * s.square().mean())
        leverage = (u.square() @ shrink + 1 / len(x)).clamp(max=1 - 1e-6)
        predicted = mean_y + u @ (shrink[:, None] * inside)
        left_out = y + (predicted - y) / (1 - leverage)[:, None]
        error = float((left_out - y).square().sum())
        if best is None or error < best[0]:
            solved = (shrink / s.clamp(min=1e-12))[:, None] * inside
            best = error, vt.T @ solved, left_out
    assert best is not None
    _, solution, left_out = best
    scale = min(SCALES, key=lambda one: float(F.cross_entropy(one * left_out, labels)))
    rate = 100 * float((left_out.argmax(1) == labels).double().mean())
    return scale * solution.T, scale * (mean_y - mean_x @ solution), rate
