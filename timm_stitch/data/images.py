"""Image files, opened without silent losses, around timm's readers.

An image with an EXIF orientation is turned upright, and 16-bit grey becomes 8-bit grey. An unreadable image, or one
without a valid label, is an error that names the file; timm's own dataset replaces it by the next image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

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


class ImageError(ValueError):
    """An unreadable image, or one whose label does not fit; the message names it.

    If it is raised in a worker, torch wraps its message into a traceback, from which it is taken out again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


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
        image = Image.open(file, formats=formats)
        image.load()
        if image.mode == "P":
            image.info.pop("transparency", None)  # Pillow would warn; the colours are those of the palette
        return _in_8_bits(_upright(image), name).convert(mode)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
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
    pixels = np.asarray(image).astype(np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    white = 65535.0 if image.mode.startswith("I") else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= white):
        raise ImageError(
            f"the image {name!r} has pixels from {low:g} to {high:g} in Pillow's mode {image.mode!r}, where the value "
            "of white is unknown: save it with 8 or 16 bits."
        )
    return Image.fromarray(np.rint(pixels * (255 / white)).astype(np.uint8))


class Images(Dataset[Any]):
    """The images and labels of a reader of timm's with random access.

    Args:
        reader: timm's reader of a folder, a tar file or a `datasets` dataset.
        mode: Pillow's mode of the images.

    Attributes:
        transform: the function that is applied to an image.
        target_transform: the function that is applied to a label.
    """

    def __init__(self, reader: Any, mode: str) -> None:
        self.reader, self.mode = reader, mode
        self.transform: Any = None
        self.target_transform: Any = None

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """Name an image by its file, or its number."""
        try:
            return str(self.reader.filename(index, absolute=True) or f"number {index}")
        except Exception:  # not every source of images has files
            return f"number {index}"

    def image(self, index: int) -> tuple[Image.Image, object]:
        """Read an image before its transform, and its label in the reader's numbering.

        Raises:
            ImageError: if it cannot be read.
            IndexError: if there is no such image.
        """
        if index >= len(self):
            raise IndexError(f"index must be below {len(self)}, the number of images, got {index}.")
        try:
            file, label = self.reader[index][:2]
        except OSError as error:
            raise ImageError(f"the image {self.name(index)!r} cannot be read ({error.strerror or error}).") from error
        except LookupError as error:
            raise ImageError(
                f"the image {self.name(index)!r} has no {error}: name the columns of image and label in dataset_args "
                "(input_key, target_key)."
            ) from error
        with file:
            return open_image(file, self.mode, self.name(index)), label

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, label = self.image(index)
        if self.target_transform is not None:
            try:
                label = self.target_transform(label)
            except ImageError as error:
                raise ImageError(f"the image {self.name(index)!r}: {error}") from None
        return image if self.transform is None else self.transform(image), label


class Labels:
    """Translates a label of the images into the network's numbering.

    Args:
        classes: the number of classes of the network.
        positions: the network's class number for each of the images' classes; default the same numbers.
    """

    def __init__(self, classes: int, positions: Sequence[int] | None = None) -> None:
        self.classes, self.positions = classes, positions

    def __call__(self, label: Any) -> int:
        """Translate a label into the number of a class of the network.

        Raises:
            ImageError: if there is no such class.
        """
        try:
            number = int(label)
        except (TypeError, ValueError):
            raise ImageError(f"its label must be the number of a class, got {label!r}.") from None
        count = self.classes if self.positions is None else len(self.positions)
        if not 0 <= number < count:
            raise ImageError(
                f"its label must be from 0 to {count - 1}, got {number}: correct the labels, or create the network "
                f"with num_classes={max(number + 1, count)}."
            )
        return number if self.positions is None else self.positions[number]
