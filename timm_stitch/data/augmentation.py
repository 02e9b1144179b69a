"""A fix to timm's augmentation, one of whose operations fails on some images.

Since Pillow 13 `posterize` refuses to keep no bits, as timm's policies sometimes ask. Before, the image became black,
as it does here.
"""

from __future__ import annotations

from typing import Any, TypeVar

from PIL import Image
from timm.data import auto_augment

T = TypeVar("T")


def patch_posterize(transform: T) -> T:
    """Replace `posterize` in the operations of a transform's policy, in place; returns the transform."""
    for step in getattr(transform, "transforms", ()):
        for operation in _operations(step):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits_to_keep: int, **more: object) -> Image.Image:
    """Posterize as timm does, for any number of bits; with none the image becomes black."""
    if bits_to_keep > 0:
        posterized: Image.Image = auto_augment.posterize(image, bits_to_keep, **more)
        return posterized
    return Image.new(image.mode, image.size)


def _operations(step: object) -> list[Any]:
    """Find the operations of one of timm's policies; none for another transform."""
    if isinstance(step, auto_augment.AutoAugment):
        return [operation for group in step.policy for operation in group]
    return list(step.ops) if isinstance(step, (auto_augment.RandAugment, auto_augment.AugMixAugment)) else []
