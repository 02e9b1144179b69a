"""The images of a calibration folder: those that fix the ranges of int8, and those that measure agreement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ....data.images import read_image
from ..config import ServingConfig
from ..network import ServedNetwork

CALIBRATING = 64  # the most images that fix ranges
LEAST_SPLIT = 32  # images from which on those that measure agreement are others


def image_files(folder: str) -> list[Path]:
    """Find the images of a folder at any depth, in order.

    Raises:
        ValueError: if there are none.
    """
    suffixes = set(Image.registered_extensions())
    files = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in suffixes
    )
    if not files:
        raise ValueError(f"there are no images in {folder!r}: give a folder of images as calibration.")
    return files


def split_files(files: Sequence[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """Split files into those that fix the ranges of int8 and those that measure its agreement.

    Every second file measures. Below `LEAST_SPLIT` files, all of them do both.
    """
    return (files, files) if len(files) < LEAST_SPLIT else (files[::2], files[1::2])


def calibrating_images(network: ServedNetwork, config: ServingConfig) -> Tensor:
    """Prepare the images of a config's folder that fix the ranges of int8.

    Raises:
        ValueError: if there are none, or one cannot be read.
    """
    return read_images(network, split_files(image_files(config.calibration or ""))[0], CALIBRATING)


def read_images(network: ServedNetwork, files: Sequence[Path], count: int) -> Tensor:
    """Prepare images, shape (N, C, H, W).

    Args:
        network: the network that prepares images.
        files: the files.
        count: the most images to read, evenly spaced among all files.

    Raises:
        ValueError: if one cannot be read.
    """
    count = min(count, len(files))
    picked = [files[n * len(files) // count] for n in range(count)]
    return torch.stack([network.transform(read_image(str(file), network.mode)) for file in picked])
