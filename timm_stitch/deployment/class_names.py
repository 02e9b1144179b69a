"""The names of a classifier's classes and the mode of its images, for servers and pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from ..families.timm_models.network import SNNet


def class_names(model: SNNet, labels: Sequence[str] | None = None) -> list[str]:
    """Name each class, no two alike.

    Args:
        model: the network.
        labels: one name for each class; default the names in its configuration, ImageNet's if it has the number of
            classes of one of its subsets, else numbers.

    Raises:
        ValueError: if the number of labels is not that of the classes, or they are no texts.
    """
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own: Sequence[str] = getattr(model, "label_names", None) or ()  # of dense networks
    names, count = list(labels or own or config.get("label_names") or ()), model.num_classes
    if labels is not None and len(names) != count:
        raise ValueError(f"labels must be one for each of {count} classes, got {len(names)}.")
    if len(names) == count and labels is None and not own:
        descriptions = config.get("label_descriptions") or {}
        if not isinstance(descriptions, Mapping) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                "label_names and label_descriptions of this network must be texts: set its pretrained_cfg."
            )
        names = [str(descriptions.get(name, name)) for name in names]
    elif len(names) != count:
        subset = infer_imagenet_subset(model) if task_of(model) == "classification" else None
        names = list(ImageNetInfo(subset).label_descriptions()) if subset else [f"class {i}" for i in range(count)]
    names = [str(name) for name in names]
    while len(set(names)) < count:  # once, unless a name is what another gets
        times = Counter(names)
        names = [f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names)]
    return names


def task_of(model: SNNet) -> str:
    """Name the task of a network of images: `"classification"`, `"segmentation"` or `"depth"`."""
    return str(getattr(model, "task", "classification"))


def pillow_mode(model: SNNet, what: str) -> str:
    """Find Pillow's mode of the images that a classifier takes: `"L"` or `"RGB"`.

    Args:
        model: the network.
        what: the beginning of the error message.

    Raises:
        ValueError: if the network does not classify or takes no ordinary images.
    """
    if model.num_classes < 1 or model.in_chans not in (1, 3):
        raise ValueError(
            f"{what} classifiers of grey or colour images; this network has {model.num_classes} classes and takes "
            f"{model.in_chans} channels."
        )
    return "L" if model.in_chans == 1 else "RGB"
