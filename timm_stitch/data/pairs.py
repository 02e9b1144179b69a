"""Images with a mask of classes or a map of depths each: folders of files that are paired by their stems.

A folder has `images` and `masks` (or `annotations`, `labels`) or `depth`, each with a folder for each split as ADE20K
has (`training`, `validation`), or without; or a folder for each split has them. Masks are PNGs of class numbers,
palettes too; depths are 16-bit PNGs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..families.dense.metrics import eigen_crop
from .classes import SPLITS, split_folder
from .config import DataConfig
from .decoding import ImageError
from .folders import check_links
from .images import read_image
from .label_files import check_size, read_depth, read_mask

MASK_FOLDERS = ("masks", "annotations", "labels")
DEPTH_FOLDERS = ("depth", "depths")
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Pair(NamedTuple):
    """The files of an image and of its labels."""

    image: str
    label: str


class PairFolder(NamedTuple):
    """The files of a split.

    Args:
        kind: "mask" or "depth".
        pairs: the pairs, by name.
        alone: the files of images without labels, and of labels without an image.
        skipped: files that are neither.
    """

    kind: str
    pairs: list[Pair]
    alone: list[str]
    skipped: list[str]


def label_folder(root: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """Find the folder of masks or depths next to `images`, and its kind; None if a folder has none.

    Raises:
        ValueError: if there are several.
    """
    if not (Path(root) / "images").is_dir():
        return None
    kinds = dict.fromkeys(MASK_FOLDERS, "mask") | dict.fromkeys(DEPTH_FOLDERS, "depth")
    folders = [(Path(root) / name, kind) for name, kind in kinds.items() if (Path(root) / name).is_dir()]
    if len(folders) > 1:
        names = ", ".join(repr(folder.name) for folder, _ in folders)
        raise ValueError(f"{str(root)!r} has several folders of labels ({names}): keep one next to 'images'.")
    return folders[0] if folders else None


def pair_files(config: DataConfig, training: bool) -> PairFolder:
    """Pair the files of a split by their names without the suffix, in the folders below it too.

    Args:
        config: the configuration, with `data_dir` and the splits.
        training: whether to take the training split instead of the validation split.

    Raises:
        OSError: if there is no such folder.
        ValueError: if it has no images with labels, no such split, two files of one name, or a link that leads back.
    """
    root = str(config.data_dir)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"there is no folder {root!r}: set data_dir to one of 'images' and 'masks' or 'depth'.")
    split, content = config.train_split if training else config.val_split, "'images' and 'masks' or 'depth'"
    holder, labels = root, label_folder(root)
    if labels is None and _split_folders(root):
        holder = str(split_folder(root, split, content))
        labels, split = label_folder(holder), ""
    if labels is None:
        raise ValueError(
            f"{holder!r} has no folder 'images' with 'masks' (or {', '.join(map(repr, MASK_FOLDERS[1:]))}) or 'depth' "
            "next to it: put images there, and a PNG of the same name for each."
        )
    folder, kind = labels
    images, masks = (
        _named_files(split_folder(str(place), split, content) if split else place, suffixes)
        for place, suffixes in ((Path(holder) / "images", _IMAGES), (folder, (".png",)))
    )
    pairs = [Pair(images[0][name], masks[0][name]) for name in images[0] if name in masks[0]]
    if not pairs:
        raise ValueError(
            f"no image in {os.path.join(holder, 'images')!r} has a PNG of its name in {str(folder)!r}"
            f"{f' (split {split!r})' if split else ''}: name each pair alike, such as images/a.jpg and masks/a.png."
        )
    alone = [path for name, path in images[0].items() if name not in masks[0]]
    alone += [path for name, path in masks[0].items() if name not in images[0]]
    return PairFolder(kind, pairs, alone, images[1] + masks[1])


def _named_files(folder: Path, suffixes: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """List the files below a folder by their name without the suffix, and those of other suffixes."""
    check_links(folder)
    files: dict[str, str] = {}
    skipped = []
    for path in _walk(folder):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in suffixes:
            skipped.append(path)
            continue
        name = os.path.relpath(stem, folder)
        if name in files:
            raise ValueError(f"{files[name]!r} and {path!r} have one name: rename or remove one of them.")
        files[name] = path
    return files, skipped


def _walk(folder: Path) -> Iterator[str]:
    """Iterate over the files below a folder in a fixed order, without hidden ones."""
    for path, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (os.path.join(path, name) for name in sorted(names) if not name.startswith("."))


class PairedImages(Dataset[Any]):
    """Images with masks of class numbers (H, W), or with depths in metres (H, W), 0 where there is none.

    Args:
        folder: the files of a split.
        config: the configuration of the labels.
        classes: the number of classes of the network; None for depth, or to read labels without a check.
        ignored: the network's label of pixels that do not count; default that of the files.
        mode: Pillow's mode of the images.
        training: whether all depths count, not only those that evaluation takes.

    Attributes:
        transform: the function that is applied to an image and its labels.
    """

    def __init__(
        self,
        folder: PairFolder,
        config: DataConfig,
        classes: int | None = None,
        ignored: int | None = None,
        mode: str = "RGB",
        training: bool = True,
    ) -> None:
        self.training = training
        self.folder, self.config, self.classes, self.mode = folder, config, classes, mode
        self.ignored = config.ignore_label if ignored is None else ignored
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.folder.pairs)

    def pair(self, index: int) -> tuple[Image.Image, np.ndarray[Any, Any]]:
        """Read an image and its labels before the transform.

        Returns:
            The image, and the class numbers (H, W) of int64, or the depths in metres (H, W) of float32.

        Raises:
            ImageError: naming the file that cannot be read, or does not fit.
            IndexError: if there is no such image.
        """
        if index >= len(self):
            raise IndexError(f"index must be below {len(self)}, the number of images, got {index}.")
        files = self.folder.pairs[index]
        check_size(files.image)
        image = read_image(files.image, self.mode)
        if self.folder.kind == "depth":
            labels = self._depth_of(read_depth(files.label, self.config.depth_scale), files.label)
        else:
            labels = self._classes_of(read_mask(files.label), files.label)
        if labels.shape != (image.height, image.width):
            raise ImageError(
                f"{files.label!r} has {labels.shape[1]} x {labels.shape[0]} pixels, and its image {files.image!r} "
                f"{image.width} x {image.height} (upright): save the labels in the image's size."
            )
        return image, labels

    @property
    def none(self) -> int:
        """The label of pixels that do not count."""
        return self.ignored if self.folder.kind == "mask" else 0

    def _depth_of(self, depth: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        """Keep the depths that count in evaluation."""
        if self.training or not self.config.eigen_crop:
            return depth
        try:
            return eigen_crop(torch.from_numpy(depth)).numpy()
        except ValueError as error:
            raise ImageError(f"the depth {name!r}: {error}") from None

    def _classes_of(self, mask: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        """Turn a file's class numbers into the network's, with its own label for pixels that do not count."""
        ignored = self.config.ignore_label
        if self.config.reduce_zero_label:
            mask = np.where((mask == 0) | (mask == ignored), ignored, mask - 1)
        if self.classes is not None:
            wrong = mask[(mask != ignored) & (mask >= self.classes)]
            if wrong.size:
                raise ImageError(
                    f"the mask {name!r} has the label {int(wrong[0])}, and labels must be from 0 to "
                    f"{self.classes - 1}, or {ignored} for pixels that do not count: correct the mask, or create the "
                    f"network with num_classes={int(wrong.max()) + 1}."
                )
        return mask if ignored == self.ignored else np.where(mask == ignored, self.ignored, mask)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, labels = self.pair(index)
        return (image, labels) if self.transform is None else self.transform(image, labels)

    def batch_size(self, most: int) -> int:
        """Find the largest batch of evaluation up to `most`: one image, if sizes differ by the labels' headers."""
        return most if most == 1 or len({check_size(pair.label) for pair in self.folder.pairs}) == 1 else 1


def has_pairs(config: DataConfig) -> bool:
    """Whether a configuration names a folder of images with masks or depths."""
    root = str(config.data_dir or "")
    if config.dataset or not root:
        return False
    with suppress(ValueError):
        return label_folder(root) is not None or bool(_split_folders(root))
    return True  # several folders of labels, which `pair_files` refuses in words


def _split_folders(root: str) -> list[str]:
    """List the folders of splits that have images and labels."""
    return [name for name in SPLITS if label_folder(os.path.join(root, name)) is not None]
