"""Slices of a real MRI of one head with 116 labelled regions, as folders of images and masks to train and to test on.

Debian's package `mricron-data` (BSD-3-Clause) has the volume `ch2` and the atlas `aal` (Tzourio-Mazoyer et al. 2002) of
the same head, voxel by voxel, 1 mm apart:

    apt-get download mricron-data && dpkg -x mricron-data_*.deb mricron   # mricron/usr/share/mricron/templates

The first digit of a region's code is its group: eight of them, and the background, are the classes.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = [
    "background",
    "frontal",
    "insula",
    "limbic",
    "occipital",
    "parietal",
    "deep nuclei",
    "temporal",
    "cerebellum",
]
FIRST_DIGIT = 2  # of the codes; the frontal lobe's
IGNORED = 255
MULTIPLE = 32  # of the sides of a slice, so that it is never resized
PIXEL = 2  # voxels along the sides of a pixel


def read_nifti(path: Path) -> np.ndarray:
    """Read a volume of bytes, (x, y, z) with x from left to right, from a gzipped NIfTI-1 file."""
    data = gzip.decompress(path.read_bytes())
    rank, *shape = struct.unpack_from("<4h", data, 40)
    kind, start, step = struct.unpack_from("<h", data, 70)[0], *struct.unpack_from("<f168xf", data, 108)
    if (data[344:348], rank, kind) != (b"n+1\0", 3, 2) or step <= 0:
        raise ValueError(f"{path} must be a NIfTI-1 volume of bytes whose x axis goes from left to right.")
    voxels = np.frombuffer(data, np.uint8, count=int(np.prod(shape)), offset=int(start))
    return voxels.reshape(shape, order="F")


def read_classes(path: Path) -> np.ndarray:
    """Read the table from a region's number to its class, from lines such as `1 Precentral_L 2001`."""
    table = np.zeros(256, np.uint8)
    for number, _, code in map(str.split, path.read_text().strip().splitlines()):
        table[int(number)] = int(code[0]) - FIRST_DIGIT + 1
    return table


def halves(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a volume into its left half, mirrored, and its right half; a plane in the middle is in neither."""
    width = len(volume) // 2
    return volume[:width][::-1], volume[-width:]


def slices(half: np.ndarray, filled: int) -> Iterator[np.ndarray]:
    """Iterate over the axial slices of a half, front up: every second voxel, at sides that are multiples of 32."""
    for plane in half[::PIXEL, ::-PIXEL].transpose(2, 1, 0):
        yield np.pad(plane, [(0, -side % MULTIPLE) for side in plane.shape], constant_values=filled)


def write_slices(data: Path, folder: Path) -> Path:
    """Write the left half as the training split and the right half as the validation split.

    Args:
        data: the folder with `ch2.nii.gz`, `aal.nii.gz` and `aal.nii.txt`.
        folder: the folder to write `images` and `masks` in, a PNG for each slice that has a region.
    """
    volume, regions = (read_nifti(data / f"{name}.nii.gz") for name in ("ch2", "aal"))
    if volume.shape != regions.shape:
        raise ValueError(f"the volume has {volume.shape} voxels, and its regions {regions.shape}.")
    classes = read_classes(data / "aal.nii.txt")[regions]
    for split, image, mask in zip(("training", "validation"), halves(volume), halves(classes), strict=True):
        for name in ("images", "masks"):
            (folder / name / split).mkdir(parents=True, exist_ok=True)
        for number, (pixels, labels) in enumerate(zip(slices(image, 0), slices(mask, IGNORED), strict=True)):
            if (labels % IGNORED).any():
                Image.fromarray(pixels).save(folder / "images" / split / f"{number:03}.png")
                Image.fromarray(labels).save(folder / "masks" / split / f"{number:03}.png")
    return folder
