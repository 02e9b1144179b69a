"""Images and labels without silent losses, around timm's readers.

An image with an EXIF orientation is turned upright, and 16-bit grey becomes 8-bit grey (`decoding`). An unreadable
image, or one without a valid label, is an error that names the file; timm's own dataset replaces it by the next image.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import IO, Any

from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import Dataset

from .decoding import ImageError, open_file, open_image

__all__ = ["ImageError", "Images", "Labels", "open_image", "read_image"]


def read_image(file: str | IO[bytes], mode: str = "RGB", name: str | None = None) -> Image.Image:
    """Read an image as `open_image`, without Pillow's warnings of EXIF data, of which one file may have thousands."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
        return open_image(file, mode, name)


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
            file, label = self._open(index)
        except OSError as error:
            raise ImageError(f"the image {self.name(index)!r} cannot be read ({error.strerror or error}).") from error
        except LookupError as error:
            raise ImageError(
                f"the image {self.name(index)!r} has no {error}: name the columns of image and label in dataset_args "
                "(input_key, target_key)."
            ) from error
        with file:
            return read_image(file, self.mode, self.name(index)), label

    def _open(self, index: int) -> tuple[IO[bytes], object]:
        """Open the file of an image, and get its label."""
        if isinstance(self.reader, ReaderImageFolder):
            path, label = self.reader.samples[index][:2]
            return open_file(str(path)), label
        file, label = self.reader[index][:2]
        return file, label

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
