"""Image files become pixels, upright and with 8 bits: as a function, and as a program for files of strangers.

It needs Pillow and the standard library alone, so that a process that only decodes starts in a twentieth of a second.
`deployment/serving/decoder` runs this file as a program: a bound on an image's size bounds neither the work of its
decoding nor the memory, but a process has limits and can be ended.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import sys
import warnings
from contextlib import nullcontext
from io import BytesIO
from typing import IO, NamedTuple

from PIL import Image, UnidentifiedImageError

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_STRIP = 1 << 20  # pixels that are scaled to 8 bits at once
MOST_SCANS = 100  # of a JPEG: encoders write up to a dozen
MOST_ELONGATED = 200  # longer side by shorter: resizing the shorter to 384 makes the longer 76,800


class ImageError(ValueError):
    """An unreadable image, or one whose label does not fit; the message names it.

    If it is raised in a worker, torch wraps its message into a traceback, from which it is taken out again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class Resize(NamedTuple):
    """A step of a network's preparation that can be taken where an image is decoded, as torchvision's `Resize` does it.

    Args:
        size: the length of the shorter side, or the height and the width.
        filter: Pillow's number of the filter.
    """

    size: tuple[int, ...]
    filter: int


def shrink(image: Image.Image, resize: Resize) -> Image.Image:
    """Resize an image, unless that gives it more pixels. Taken again by torchvision, the step changes nothing.

    Examples:
        >>> shrink(Image.new("RGB", (400, 300)), Resize((100,), Image.Resampling.BICUBIC)).size
        (133, 100)
    """
    shorter, longer = sorted(image.size)
    if len(resize.size) == 1:
        sides = resize.size[0], int(resize.size[0] * longer / shorter)
        size = sides if image.width <= image.height else sides[::-1]
    else:
        size = resize.size[1], resize.size[0]
    if size[0] * size[1] >= image.width * image.height:
        return image
    return image.resize(size, Image.Resampling(resize.filter))


def open_file(path: str) -> IO[bytes]:
    """Open a file to read; what is none, such as a pipe, whose reader would wait for a writer, is not opened.

    Raises:
        OSError: if it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError("it is a folder, a device or a pipe, and no file")


def open_image(
    file: str | IO[bytes], mode: str = "RGB", name: str | None = None, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Read an image, upright and with 8 bits.

    Args:
        file: the path of the image, or an open file.
        mode: Pillow's mode of the result.
        name: the name of the file, for errors.
        formats: the allowed formats, by Pillow's names; default all.

    Raises:
        ImageError: naming the unreadable file.
    """
    name = str(file) if name is None else name
    try:
        with open_file(file) if isinstance(file, str) else nullcontext(file) as opened:
            image = Image.open(opened, formats=formats)
            image.load()
            if image.mode == "P":
                image.info.pop("transparency", None)  # Pillow would warn; the colours are those of the palette
            return _in_8_bits(_upright(image), name).convert(mode)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # its text has an address of memory
            reason = "it is in no format that Pillow knows"
        raise ImageError(
            f"the image {name!r} cannot be read ({reason:.160}): replace or remove it; timm-stitch check lists all "
            "such files."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF data; with unreadable data it stays as stored."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data
        turn = None
    return image if turn is None else image.transpose(turn)


def _in_8_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale an image with more bits to 8; Pillow would clip values above 255.

    Raises:
        ImageError: if the value of white is unknown.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np

    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    white = 65535.0 if image.mode.startswith("I") else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= white):
        raise ImageError(
            f"the image {name!r} has pixels from {low:g} to {high:g} in Pillow's mode {image.mode!r}, where the value "
            "of white is unknown: save it with 8 or 16 bits."
        )
    scaled = np.empty(pixels.shape, np.uint8)
    rows = max(1, _STRIP // max(1, image.width))
    for start in range(0, len(pixels), rows):  # in double precision, eight bytes a pixel
        strip = pixels[start : start + rows].astype(np.float64)
        scaled[start : start + rows] = np.rint(strip * (255 / white))
    return Image.fromarray(scaled)


# ── the program ───────────────────────────────────────────────────────────────────────────────────


def _answer(request: dict[str, object], data: bytes) -> tuple[dict[str, object], bytes]:
    """Decode one file within bounds, or say why not."""
    most_pixels, most_work, formats = int(str(request["pixels"])), int(str(request["work"])), request["formats"]
    assert isinstance(formats, list)
    try:
        with Image.open(BytesIO(data), formats=tuple(formats)) as image:  # its header alone
            kind, (width, height) = image.format, image.size
    except Exception:  # Pillow raises many types for damaged files
        return {"refused": f"this is no readable image: expected one of {', '.join(formats)}."}, b""
    pixels = width * height
    if pixels > most_pixels:
        return {"refused": f"the image has {pixels:,} pixels: at most {most_pixels:,} are accepted."}, b""
    if max(width, height) > MOST_ELONGATED * min(width, height):
        reason = f"the image has {width} x {height} pixels: a side may be {MOST_ELONGATED} times the other, not more."
        return {"refused": reason}, b""
    scans = max(1, data.count(b"\xff\xda")) if kind in ("JPEG", "MPO") else 1
    if scans > MOST_SCANS:
        return {"refused": f"the image has {scans:,} scans: at most {MOST_SCANS} are accepted."}, b""
    if pixels * scans > most_work:
        return {"work": pixels * scans}, b""
    try:
        picture = open_image(BytesIO(data), str(request["mode"]), "sent", tuple(formats))
    except ImageError as error:
        return {"refused": str(error)}, b""
    if resize := request["resize"]:
        assert isinstance(resize, list)
        picture = shrink(picture, Resize(*resize))
    return {"work": pixels * scans, "size": picture.size}, picture.tobytes()


def main(most_bytes: int) -> None:
    """Decode the files that arrive on the socket at standard input, until it is closed.

    Args:
        most_bytes: the memory that decoding may take beyond this process's own.
    """
    try:
        import resource

        with open("/proc/self/statm") as pages:
            limit = int(pages.read().split()[0]) * resource.getpagesize() + most_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError):  # not on all systems
        pass
    warnings.simplefilter("ignore")
    Image.preinit()
    Image.MAX_IMAGE_PIXELS = None  # the bound of the request counts
    with socket.socket(fileno=0) as channel, channel.makefile("rwb") as stream:
        while header := stream.readline():
            request = json.loads(header)
            data = stream.read(request["bytes"])
            try:
                answer, pixels = _answer(request, data)
            except MemoryError:
                answer, pixels = {"refused": "the image takes more memory than is given to one."}, b""
            head = json.dumps(answer).encode()
            stream.write(struct.pack("<I", len(head)) + head)
            stream.write(pixels)
            stream.flush()
            del data, pixels  # before the next file comes


if __name__ == "__main__":
    main(int(sys.argv[1]))
