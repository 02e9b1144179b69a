"""Transforms of an image together with its mask or depth: what moves pixels moves labels too, colours stay the image's.

Source: mmsegmentation's training pipeline (resize, random scale, crop with a largest share of one class, flip,
photometric distortion, pad).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter

from .config import DataConfig

Labels = np.ndarray[Any, Any]
_LONGEST = 4  # times the short side: mmsegmentation resizes to (2048, 512)


@dataclass(frozen=True)
class ToTensors:
    """Turns an image into a normalised tensor (C, H, W), and labels (H, W) into one of int64 or float32.

    Args:
        mean, std: the mean and standard deviation of each channel.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: Image.Image, labels: Labels) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8, copy=True))
        pixels = (pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((pixels - mean) / std).contiguous(), torch.from_numpy(np.ascontiguousarray(labels))


@dataclass(frozen=True)
class TrainingTransform:
    """Scales, crops, flips and distorts an image, and its labels where pixels move.

    Args:
        config: the configuration of the augmentation.
        size: the height and width of the crop.
        none: the label of padded pixels.
        to_tensors: the function that makes tensors.
    """

    config: DataConfig
    size: tuple[int, int]
    none: int
    to_tensors: Callable[[Image.Image, Labels], tuple[Tensor, Tensor]]

    def __call__(self, image: Image.Image, labels: Labels) -> tuple[Tensor, Tensor]:
        config = self.config
        factor = random.uniform(*config.scale_range)
        image, labels = resize_both(image, labels, _target_size(image, config.short_side, factor))
        top, left = self._place(labels)
        height, width = self.size
        image = image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))
        labels = labels[top : top + height, left : left + width]
        if random.random() < config.hflip:
            image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
        if config.color_jitter:
            strength = config.color_jitter
            jitter = ColorJitter(strength, strength, strength, min(strength / 5, 0.5) if image.mode == "RGB" else 0)
            image = jitter(image)
        pixels, target = self.to_tensors(image, labels)
        missing = (0, width - pixels.shape[2], 0, height - pixels.shape[1])
        pad = torch.nn.functional.pad
        return pad(pixels, missing), pad(target, missing, value=self.none)

    def _place(self, labels: Labels) -> tuple[int, int]:
        """Draw the top and left of a crop in which no class has too large a share, in ten tries."""
        place = (0, 0)
        for _ in range(10):
            place = tuple(random.randint(0, max(n - m, 0)) for n, m in zip(labels.shape, self.size, strict=True))  # type: ignore[assignment]
            if labels.dtype.kind == "f" or self.config.cat_max_ratio >= 1:
                break
            top, left = place
            crop = labels[top : top + self.size[0], left : left + self.size[1]]
            counts = np.unique(crop[crop != self.none], return_counts=True)[1]
            if len(counts) > 1 and counts.max() < self.config.cat_max_ratio * counts.sum():
                break
        return place


@dataclass(frozen=True)
class EvaluationTransform:
    """Prepares whole images; the labels keep their own size, to which outputs are resized.

    Args:
        short_side: the shorter side to which images are resized; None keeps their size.
        divisor: the number of which height and width must be multiples, to which images are resized.
        size: the only size that the network takes, if there is one.
        to_tensors: the function that makes tensors.
    """

    short_side: int | None
    divisor: int
    size: tuple[int, int] | None
    to_tensors: Callable[[Image.Image, Labels], tuple[Tensor, Tensor]]

    def __call__(self, image: Image.Image, labels: Labels) -> tuple[Tensor, Tensor]:
        if self.size is not None:
            height, width = self.size
        else:
            width, height = _target_size(image, self.short_side, 1.0)
            height, width = (max(round(n / self.divisor), 1) * self.divisor for n in (height, width))
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return self.to_tensors(image, labels)


def resize_both(image: Image.Image, labels: Labels, size: tuple[int, int]) -> tuple[Image.Image, Labels]:
    """Resize an image bilinearly to (width, height), and its labels to the nearest pixels."""
    if size == image.size:
        return image, labels
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(np.int64), old - 1)
        for new, old in ((size[1], labels.shape[0]), (size[0], labels.shape[1]))
    )
    return image.resize(size, Image.Resampling.BILINEAR), labels[rows[:, None], columns]


def _target_size(image: Image.Image, short_side: int | None, factor: float) -> tuple[int, int]:
    """Compute the width and height of an image resized to a short side, times a factor."""
    scale = factor
    if short_side is not None:
        scale *= min(short_side / min(image.size), _LONGEST * short_side / max(image.size))
    return max(round(image.width * scale), 1), max(round(image.height * scale), 1)
