"""Fashion-MNIST as the benchmarks take it: the quickstart's 10,000 images, or the whole data set from gzip files."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from quickstart import MEAN, STD, load_images

__all__ = ["MEAN", "STD", "WHOLE", "read_quickstart_images", "read_whole"]

SMALL = Path(__file__).parents[2] / "examples/data/fashion_mnist_10k.npz"
WHOLE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it


def read_quickstart_images() -> dict[str, tuple[Tensor, Tensor]]:
    """Read the quickstart's training and test images (N, 1, 28, 28), normalised, with labels."""
    images, labels, test_images, test_labels = load_images(SMALL)
    return {"train": (images, labels), "test": (test_images, test_labels)}


def read_whole(folder: Path = WHOLE) -> dict[str, tuple[Tensor, Tensor]]:
    """Read all training and test images (N, 1, 28, 28), normalised, with labels."""
    parts = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        raw = [
            np.frombuffer(gzip.decompress((folder / f"{name}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
            for kind, offset in (("images-idx3", 16), ("labels-idx1", 8))
        ]
        pixels = torch.from_numpy(raw[0].copy()).reshape(-1, 1, 28, 28).float() / 255
        parts[part] = ((pixels - MEAN) / STD, torch.from_numpy(raw[1].copy()).long())
    return parts
