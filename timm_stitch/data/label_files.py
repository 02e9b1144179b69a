"""The files of masks and depths as numbers. Their size, and that of images, is bounded before they are decoded."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from .decoding import MOST_ELONGATED, ImageError, open_file

MOST_PIXELS = 1 << 26  # of one image: 8192 x 8192
_DEPTH_MODES = ("I;16", "I;16B", "I;16L", "I")  # Pillow's, of 16 bits


def check_size(path: str) -> tuple[int, int]:
    """Refuse an image that is too large or too narrow, by its header; returns its width and height.

    Raises:
        ImageError: naming the file.
    """
    try:
        with open_file(path) as file, Image.open(file) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises many types for damaged files
        reason = "it is in no format that Pillow knows" if "identify" in str(error) else str(error)
        raise ImageError(f"the image {path!r} cannot be read ({reason:.120}): replace or remove it.") from error
    if width * height > MOST_PIXELS:
        raise ImageError(f"the image {path!r} has {width * height:,} pixels: at most {MOST_PIXELS:,} are read.")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise ImageError(
            f"the image {path!r} has {width} x {height} pixels: a side may be {MOST_ELONGATED} times the other, not "
            "more."
        )
    return width, height


def read_mask(path: str) -> np.ndarray[Any, Any]:
    """Read the class numbers of a mask, (H, W) of int64; of a palette the indices, not the colours.

    Raises:
        ImageError: naming the file, if it cannot be read or has colours instead of numbers.
    """
    mode, pixels = _read_png(path, "mask")
    if mode not in ("L", "P", "1", *_DEPTH_MODES):
        raise ImageError(
            f"the mask {path!r} has colours (Pillow's mode {mode!r}) instead of class numbers: save it as a PNG of one "
            "channel, or of a palette."
        )
    return pixels.astype(np.int64)


def read_depth(path: str, scale: float) -> np.ndarray[Any, Any]:
    """Read the depths of a 16-bit PNG in metres, (H, W) of float32; 0 where there is none.

    Args:
        path: the file.
        scale: the metres for one unit.

    Raises:
        ImageError: naming the file, if it cannot be read or has not 16 bits.
    """
    mode, pixels = _read_png(path, "depth")
    if mode not in _DEPTH_MODES:
        raise ImageError(
            f"the depth {path!r} must be a PNG of 16 bits and one channel, got Pillow's mode {mode!r}: save metres / "
            "depth_scale as 16-bit numbers."
        )
    return pixels.astype(np.float32) * np.float32(scale)


def _read_png(path: str, what: str) -> tuple[str, np.ndarray[Any, Any]]:
    """Read the pixels of a PNG as they are stored, and Pillow's mode."""
    check_size(path)
    try:
        with open_file(path) as file, Image.open(file, formats=("PNG",)) as image:
            pixels = np.asarray(image)
            return image.mode, pixels
    except (OSError, ValueError, SyntaxError, struct.error, zlib.error, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"the {what} {path!r} cannot be read ({reason:.120}): replace or remove it.") from error
