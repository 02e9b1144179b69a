"""The classes of images by name: their order, and their numbers in a network."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from timm.utils.misc import natural_key

_logger = logging.getLogger(__name__)

_TRAIN = ("train", "training")
_EVAL = ("val", "valid", "validation", "eval", "evaluation")
SPLITS = (*_TRAIN, *_EVAL, "test")
_FIXED = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")  # with a training and a test split


def ordered(names: Sequence[str]) -> list[str]:
    """Sort class names in timm's natural order (2 before 10); names equal in it, such as A and a, by letter."""
    return sorted(names, key=lambda name: (natural_key(name), name))


def class_names(dataset: object) -> list[str]:
    """Find the names of a dataset's classes, in the order of its labels; empty if it has none."""
    names = getattr(dataset, "classes", None)
    if names:
        return [str(name) for name in names]
    numbers = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or getattr(dataset, "class_to_idx", None)
    if not numbers or sorted(numbers.values()) != list(range(len(numbers))):
        return []
    return [str(name) for name in sorted(numbers, key=numbers.__getitem__)]


def split_folder(root: str, split: str, content: str = "class folders") -> Path:
    """Find the folder of a split, by its name or a synonym of timm's; the root itself if it holds classes, not splits.

    Args:
        root: the folder of the images.
        split: the name of the split.
        content: the content of a root without splits, for the error.

    Raises:
        ValueError: if there is no such split.
    """
    name = split.split("[")[0]
    same = next((group for group in (_TRAIN, _EVAL) if name in group), ())
    folder: Path | None = next((Path(root) / one for one in (name, *same) if (Path(root) / one).exists()), None)
    if folder is not None:
        return folder
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    splits = [one for one in folders if one in SPLITS]
    if splits or name not in SPLITS:
        raise ValueError(
            f"there is no split {split!r} in {root!r}: there {'is' if len(folders) == 1 else 'are'} "
            f"{', '.join(splits or folders[:8]) or 'no folders'}. Set the split to one of them, or data_dir to a "
            f"folder of {content}."
        )
    return Path(root)


def check_split(dataset: str, split: str) -> None:
    """Refuse a split that torchvision's datasets of two splits would take for their test images.

    Raises:
        ValueError: naming the splits.
    """
    if dataset.rpartition("/")[2].lower() in _FIXED and split not in SPLITS:
        raise ValueError(f"{dataset!r} has no split {split!r}: expected one of {', '.join(SPLITS)}.")


def folder_classes(folder: Path) -> list[str]:
    """List the class folders of a folder that hold a file, in the order of their labels."""
    return ordered([e.name for e in os.scandir(folder) if e.is_dir() and next(os.scandir(e.path), None) is not None])


def positions(own: Sequence[str], wanted: Sequence[str], what: str) -> list[int] | None:
    """Find the numbers of the images' classes in a network.

    Args:
        own: the names of the images' classes, in the order of their labels.
        wanted: the names of the network's classes, or of those it was trained on.
        what: the beginning of the error message, which names the images.

    Returns:
        For each class of the images its number in the network; None if no name is common to both.

    Raises:
        ValueError: if the network has some of the names, but not all.
    """
    number = {name: i for i, name in enumerate(wanted)}
    strange = [name for name in own if name not in number]
    missing = [name for name in wanted if name not in set(own)]
    if strange and len(strange) < len(own):
        raise ValueError(
            f"{what} have classes that the network does not know: {_name_some(strange)}; they lack of its own: "
            f"{_name_some(missing) or 'none'}. Name the folders as in training, or train a network for these classes."
        )
    if strange:
        return None
    if missing:
        _logger.warning("%s have no %s: the other classes are matched by name.", what, _name_some(missing))
    return [number[name] for name in own]


def _name_some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(map(repr, names[:6])) + more
