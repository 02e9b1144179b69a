"""How often a backend of another precision or engine gives the class that the network gives in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import ServingConfig
from ..network import ServedNetwork
from .calibration import image_files, read_images, split_files

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
        source: the origin of the images, such as a folder, or `"noise"`.
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


def compared_images(network: ServedNetwork, config: ServingConfig, count: int) -> tuple[Tensor, str]:
    """Prepare the images that measure agreement: of the folder of a config, or noise if it names none.

    Args:
        network: the network that prepares images.
        config: the folder, and the precision. Images that calibrated int8 are left out if there are enough others.
        count: the most images.

    Returns:
        The images, shape (N, C, H, W), and their source.

    Raises:
        ValueError: if the folder has no images, or one cannot be read.
    """
    folder = config.calibration
    if folder is None:
        return torch.randn(count, *network.shape, generator=torch.Generator().manual_seed(0)), _NOISE
    files: Sequence[Path] = image_files(folder)
    source = folder
    if config.precision == "int8":
        calibrating, files = split_files(files)
        source += ", which also calibrated" if calibrating is files else " that did not calibrate"
    return read_images(network, files, count), source


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
