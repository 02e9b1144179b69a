"""Masks and depths of whole images by a dense network, and their files."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..data.dataset import evaluation_transform
from ..network.modes import evaluating
from .class_names import class_names, pillow_mode, task_of

Map = np.ndarray[Any, Any]
MOST_PIXELS = 4 << 20  # of an image that the network takes in its own size
_BAND = 64 << 20  # bytes of logits that are resized at once
_MILLIMETRES, _MOST_MILLIMETRES = 1000, 65535


@dataclass(frozen=True)
class MapPredictor:
    """Predicts masks or depths of images of any size, as `evaluate` does, at the images' own size.

    Args:
        model: a dense network.
        mode: Pillow's mode of its images.
        labels: the name of each class; none for depth.
        transform: the preparation of an image, whose labels are ignored.
        keeps_size: whether the network takes images in their own size.
    """

    model: Any
    mode: str
    labels: Sequence[str]
    transform: Any
    keeps_size: bool

    @classmethod
    def of(
        cls, model: Any, what: str, short_side: int | None = None, size: tuple[int, int] | None = None
    ) -> MapPredictor:
        """Describe a network.

        Args:
            model: a dense network.
            what: the beginning of the error message, as of `pillow_mode`.
            short_side: the shorter side to which images are resized; default their own, or what the network takes.
            size: the size to which all images are resized; default that which the network takes, if there is one.

        Raises:
            ValueError: if it takes no grey or colour images.
        """
        mode = pillow_mode(model, what)
        transform = evaluation_transform(model, short_side, size)
        keeps_size = short_side is None and transform.size is None
        return cls(model, mode, () if task_of(model) == "depth" else class_names(model), transform, keeps_size)

    def prepare(self, image: Image.Image, name: str = "the image") -> Tensor:
        """Turn an image into the network's input, shape (C, H, W).

        Raises:
            ValueError: if the network would take a very large image in its own size.
        """
        if self.keeps_size and image.width * image.height > MOST_PIXELS:
            raise ValueError(
                f"{name} has {image.width} x {image.height} pixels, on all of which the network would run, and at most "
                f"{MOST_PIXELS:,} are taken: give a short side, such as 512, to which images are resized first."
            )
        prepared: Tensor = self.transform(image, np.zeros((1, 1), np.uint8))[0]
        return prepared

    def predict(self, image: Image.Image, stitch_id: int | None = None, name: str = "the image") -> Map:
        """Predict the mask or the depths of an image, at its own size.

        Args:
            image: the image, in `mode`.
            stitch_id: the stitch; default the current one.
            name: the image's name, for errors.

        Returns:
            Numbers of classes (H, W), as uint8 or uint16, or depths in metres (H, W), as float32.

        Raises:
            ValueError: if the image is too large.
        """
        like = next(self.model.parameters())
        x = self.prepare(image, name)[None].to(like.device, like.dtype)
        with evaluating(self.model):
            output = self.model.predict(x, stitch_id=stitch_id)[0]
        return self.finish(output.float(), (image.height, image.width))

    def finish(self, output: Tensor, size: tuple[int, int]) -> Map:
        """Turn an output (classes, H, W) into the mask or the depths at the size (height, width) of its image."""
        if task_of(self.model) == "depth":
            depth = F.interpolate(output[None], size, mode="bilinear", align_corners=False)[0, 0]
            return np.asarray(depth.cpu().numpy(), dtype=np.float32)
        classes = largest_class(output, size).cpu().numpy()
        return np.asarray(classes, dtype=np.uint8 if output.shape[0] <= 256 else np.uint16)

    def nearest(self, values: Tensor, size: tuple[int, int]) -> Map:
        """Resize class numbers or depths (H, W) to the nearest pixels of a size (height, width)."""
        rows, columns = (
            ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
            for new, old in zip(size, values.shape, strict=True)
        )
        resized = values[rows[:, None], columns].numpy()
        if task_of(self.model) == "depth":
            return np.asarray(resized, dtype=np.float32)
        return np.asarray(resized, dtype=np.uint8 if len(self.labels) <= 256 else np.uint16)

    def describe(self, values: Map, top: int) -> dict[str, object]:
        """Describe a map: the classes with the largest shares of its pixels, or the range of its depths in metres."""
        if task_of(self.model) == "depth":
            low, median, high = (float(v) for v in np.percentile(values, (0, 50, 100)))
            return {"depth": {"min": low, "median": median, "max": high}}
        counts = np.bincount(values.ravel(), minlength=len(self.labels))
        order = [int(k) for k in np.argsort(-counts, kind="stable")[:top] if counts[k]]
        shares = [{"class": k, "label": self.labels[k], "share": float(counts[k] / values.size)} for k in order]
        return {"classes": shares}

    def png(self, values: Map) -> bytes:
        """Encode a map as PNG: numbers of classes with a palette, or depths as 16-bit millimetres.

        Raises:
            ValueError: if a depth is more than 16 bits of millimetres.
        """
        if task_of(self.model) == "depth":
            if float(values.max()) * _MILLIMETRES > _MOST_MILLIMETRES:
                raise ValueError(f"depths of up to {values.max():.1f} m are no 16-bit millimetres: write .npy instead.")
            values = np.rint(values * _MILLIMETRES).astype(np.uint16)
        picture = Image.fromarray(values)
        if values.dtype == np.uint8:
            picture.putpalette(palette(len(self.labels)))
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()


def largest_class(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Find the largest class of each pixel in logits (classes, H, W) resized to a size, some classes at a time.

    Returns:
        The numbers of the classes (height, width), as int64.
    """
    step = max(1, _BAND // (4 * size[0] * size[1]))
    best, number = None, None
    for start in range(0, len(logits), step):
        part = logits[None, start : start + step]
        resized = part if part.shape[2:] == size else F.interpolate(part, size, mode="bilinear", align_corners=False)
        values, classes = resized[0].max(0)
        if best is None or number is None:
            best, number = values, classes
            continue
        better = values > best
        best, number = torch.where(better, values, best), torch.where(better, classes + start, number)
    assert number is not None  # there are two classes or more
    return number


def palette(count: int) -> list[int]:
    """Make the colours of classes as Pillow's palette: black for the first, then hues that are far apart."""
    colours = [0, 0, 0]
    for k in range(1, min(count, 256)):
        red, green, blue = colorsys.hsv_to_rgb(k * 0.618034 % 1, 0.55 + 0.4 * (k % 2), 0.95 - 0.25 * (k % 3 == 2))
        colours += [round(255 * value) for value in (red, green, blue)]
    return colours


def overlay(image: Image.Image, values: Map, labels: Sequence[str]) -> Image.Image:
    """Draw a mask over its image, or depths in grey (the nearer the brighter) without the image."""
    if values.dtype == np.float32:
        low, high = float(values.min()), float(values.max())
        return Image.fromarray(np.rint(255 * (high - values) / max(high - low, 1e-6)).astype(np.uint8))
    colours = np.array(palette(len(labels)), np.uint8).reshape(-1, 3)[np.minimum(values, 255)]
    return Image.blend(image.convert("RGB"), Image.fromarray(colours), 0.55)
