"""How often a backend of another precision or engine gives the class that the network gives in float32."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ....data.images import read_image
from ..network import ServedNetwork

Run = Callable[[Tensor, int], Tensor]

MOST_IMAGES = 256
LEAST_IMAGES = 16
SECONDS = 20.0  # of the calls that a measurement may take, by the table
_BATCH = 16
_NOISE = "noise"


@dataclass(frozen=True)
class Agreement:
    """The agreement of a backend with the network in float32.

    Args:
        images: the number of images.
        source: the folder of the images, or `"noise"`.
        each: the share of images with the same class, by stitch.
        largest_difference: the largest difference of any logit.
    """

    images: int
    source: str
    each: Mapping[int, float]
    largest_difference: float

    @property
    def lowest(self) -> float:
        """The agreement of the stitch that agrees least."""
        return min(self.each.values())

    def __str__(self) -> str:
        mean, advice = sum(self.each.values()) / len(self.each), ""
        if self.source == _NOISE:
            advice = ", which says little of real images: give some by --calibration FOLDER"
        return (
            f"{100 * mean:.2f} % (lowest of {len(self.each)} stitches {100 * self.lowest:.2f} %) on {self.images} "
            f"images of {self.source}{advice}; the largest difference of a logit is {self.largest_difference:.2g}"
        )


def count_images(seconds_per_image: float) -> int:
    """Choose a number of images whose calls take `SECONDS` at most, or `LEAST_IMAGES` if more would take longer."""
    return max(LEAST_IMAGES, min(MOST_IMAGES, int(SECONDS / seconds_per_image)))


def calibration_images(network: ServedNetwork, folder: str | None, count: int) -> tuple[Tensor, str]:
    """Prepare images from a folder, or draw noise.

    Args:
        network: the network that prepares images.
        folder: a folder with images at any depth; None for noise.
        count: the most images to read, evenly spaced among all files.

    Returns:
        The images, shape (N, C, H, W), and their source.

    Raises:
        ValueError: if the folder has no images, or one cannot be read.
    """
    if folder is None:
        return torch.randn(count, *network.shape, generator=torch.Generator().manual_seed(0)), _NOISE
    suffixes = set(Image.registered_extensions())
    files = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in suffixes
    )
    if not files:
        raise ValueError(f"there are no images in {folder!r}: give a folder of images as calibration.")
    count = min(count, len(files))
    picked = [files[n * len(files) // count] for n in range(count)]
    return torch.stack([network.transform(read_image(str(file), network.mode)) for file in picked]), folder


def measure_agreement(reference: Run, run: Run, images: Tensor, source: str, stitch_ids: Sequence[int]) -> Agreement:
    """Compare the classes of two ways to run stitches, the reference first.

    Raises:
        ValueError: if a logit is not finite where that of the reference is.
    """
    each, largest = {}, 0.0
    for stitch_id in stitch_ids:
        same = 0
        for batch in images.split(_BATCH):
            expected, logits = reference(batch, stitch_id), run(batch, stitch_id)
            if expected.isfinite().all() and not logits.isfinite().all():
                raise ValueError(f"stitch {stitch_id} gives logits that are not finite in this precision: use fp32.")
            same += int((expected.argmax(-1) == logits.argmax(-1)).sum())
            largest = max(largest, float((expected - logits).abs().max()))
        each[stitch_id] = same / len(images)
    return Agreement(len(images), source, each, largest)
