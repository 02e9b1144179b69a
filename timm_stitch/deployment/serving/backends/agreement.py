"""How often a backend of another precision or engine gives the class that the network gives in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ServingConfig
from ..network import ServedNetwork
from .calibration import image_files, read_images, split_files

Run = Callable[[Any, int], Tensor]
Agrees = Callable[[Tensor, Tensor], Tensor]

MOST_IMAGES = 256
LEAST_IMAGES = 16
SECONDS = 20.0  # of the calls that a measurement may take, by the table
NOISE_SECONDS = 5.0  # of those on noise, which says little
BATCH = 16  # images of a call
NOISE = "noise"


@dataclass(frozen=True)
class Agreement:
    """The agreement of a backend with the network in float32.

    Args:
        images: the number of images or texts.
        source: the origin of the images or texts, such as a folder, or `"noise"`.
        each: the share of them with the same class, by stitch; of embeddings the mean cosine.
        largest_difference: the largest difference of any logit.
        kind: `"images"` or `"texts"`.
    """

    images: int
    source: str
    each: Mapping[int, float]
    largest_difference: float
    kind: str = "images"

    @property
    def lowest(self) -> float:
        """The agreement of the stitch that agrees least."""
        return min(self.each.values())

    def __str__(self) -> str:
        mean, advice = sum(self.each.values()) / len(self.each), ""
        if self.source == NOISE:
            file = "FILE" if self.kind == "texts" else "FOLDER"
            advice = f", which says little of real {self.kind}: give some by --calibration {file}"
        return (
            f"{100 * mean:.2f} % (lowest of {len(self.each)} stitches {100 * self.lowest:.2f} %) on {self.images} "
            f"{self.kind} of {self.source}{advice}; the largest difference of a logit is {self.largest_difference:.2g}"
        )


def count_images(seconds_per_image: float, are_noise: bool) -> int:
    """Choose a number of images whose calls take `SECONDS` at most, or `LEAST_IMAGES` if more would take longer."""
    return max(LEAST_IMAGES, min(MOST_IMAGES, int((NOISE_SECONDS if are_noise else SECONDS) / seconds_per_image)))


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
        return torch.randn(count, *network.shape, generator=torch.Generator().manual_seed(0)), NOISE
    files: Sequence[Path] = image_files(folder)
    source = folder
    if config.precision == "int8":
        calibrating, files = split_files(files)
        source += ", which also calibrated" if calibrating is files else " that did not calibrate"
    return read_images(network, files, count), source


def same_class(expected: Tensor, logits: Tensor) -> Tensor:
    """Whether each row of logits has its largest value at the same place."""
    return expected.argmax(-1) == logits.argmax(-1)


def measure_agreement(
    reference: Run,
    run: Run,
    batches: Iterable[Any],
    source: str,
    stitch_ids: Sequence[int],
    agrees: Agrees = same_class,
    kind: str = "images",
) -> Agreement:
    """Compare the outputs of two ways to run stitches, the reference first.

    Args:
        reference, run: functions of a batch and a stitch.
        batches: the inputs.
        source: the origin of the inputs.
        stitch_ids: the ids of the stitches.
        agrees: a function of both outputs, which returns a value for each row.
        kind: the kind of the inputs.

    Raises:
        ValueError: if a logit is not finite where that of the reference is.
    """
    batches = list(batches)
    each, largest, count = {}, 0.0, sum(map(len, batches))
    for stitch_id in stitch_ids:
        same = 0.0
        for batch in batches:
            expected, logits = reference(batch, stitch_id), run(batch, stitch_id)
            if expected.isfinite().all() and not logits.isfinite().all():
                raise ValueError(f"stitch {stitch_id} gives logits that are not finite in this precision: use fp32.")
            same += float(agrees(expected, logits).sum())
            largest = max(largest, float((expected - logits).abs().max()))
        each[stitch_id] = same / count
    return Agreement(count, source, each, largest, kind)
