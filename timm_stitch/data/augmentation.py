"""timm's augmentation, mended where one of its operations fails on some images.

From Pillow 13 on `posterize` refuses to keep no bits, which timm's policies ask of it now and then; before, that gave a
black image, and so it does here.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import auto_augment


def mended(transform: Any) -> Any:
    """Mend the operations of a policy in place, where a transform has one; returns the transform."""
    for step in getattr(transform, "transforms", ()):
        for operation in _operations(step):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits_to_keep: int, **more: Any) -> Image.Image:
    """timm's, for any number of bits; without any the image is black."""
    if bits_to_keep > 0:
        posterized: Image.Image = auto_augment.posterize(image, bits_to_keep, **more)
        return posterized
    return Image.new(image.mode, image.size)


def _operations(step: Any) -> list[Any]:
    """The operations of one of timm's policies; none of another transform."""
    if isinstance(step, auto_augment.AutoAugment):
        return [operation for group in step.policy for operation in group]
    return list(step.ops) if isinstance(step, (auto_augment.RandAugment, auto_augment.AugMixAugment)) else []
