"""What a classifier takes and what its classes are called, for those who show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from ..families.timm_models.network import SNNet


def class_names(model: SNNet, labels: Sequence[str] | None = None) -> list[str]:
    """One name for each class, no two alike.

    Args:
        model: the network.
        labels: one for each class; default those in its configuration, ImageNet's if it has the number of classes of
            one of its subsets, else numbers.

    Raises:
        ValueError: if the labels do not fit.
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    names, count = list(labels or config.get("label_names") or ()), model.num_classes
    if labels is not None and len(names) != count:
        raise ValueError(f"there are {len(names)} labels for {count} classes: give one for each.")
    if len(names) == count and labels is None:
        names = [(config.get("label_descriptions") or {}).get(name, name) for name in names]
    elif len(names) != count:
        subset = infer_imagenet_subset(model)
        names = list(ImageNetInfo(subset).label_descriptions()) if subset else [f"class {i}" for i in range(count)]
    alike = {name for name in names if names.count(name) > 1} if len(set(names)) < count else set()
    return [f"{name} ({i})" if name in alike else str(name) for i, name in enumerate(names)]


def pillow_mode(model: SNNet, what: str) -> str:
    """Pillow's mode of the images that a classifier takes: `"L"` or `"RGB"`.

    Args:
        model: the network.
        what: how the error begins.

    Raises:
        ValueError: if the network does not classify or takes no ordinary images.
    """
    if model.num_classes < 1 or model.in_chans not in (1, 3):
        raise ValueError(
            f"{what} classifiers of grey or colour images; this network has {model.num_classes} classes and takes "
            f"{model.in_chans} channels."
        )
    return "L" if model.in_chans == 1 else "RGB"
