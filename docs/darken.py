"""Write the dark twin of a plot: `python docs/darken.py docs/curve.png` writes `docs/curve-dark.png`.

Light and dark change places, colors keep their hue. A test compares the file with what this makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

DARKEST = 14  # of 255, about the luma of GitHub's and the site's dark pages


def darken(picture: Image.Image) -> Image.Image:
    """Invert the luma of a picture and keep its chroma."""
    luma, blue, red = picture.convert("YCbCr").split()
    luma = luma.point([round(255 - value * (255 - DARKEST) / 255) for value in range(256)])
    return Image.merge("YCbCr", (luma, blue, red)).convert("RGB").quantize(64, dither=Image.Dither.NONE)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        darken(Image.open(path)).save(path.with_stem(f"{path.stem}-dark"), optimize=True)
