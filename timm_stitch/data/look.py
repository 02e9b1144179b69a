"""A look at images before they are used: what each split holds, and what in it would lead a run astray.

Imports the files beside it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import IterableDataset

from .classes import class_names
from .config import DataConfig
from .dataset import open_dataset
from .images import ImageError, Images

SHOWN = 20  # names of files in a report


def look_at_split(config: DataConfig, training: bool) -> dict[str, Any]:
    """Read every image of a split, and say what there is.

    Args:
        config: names the data.
        training: the training split, else the validation split.

    Returns:
        `split`, `images`, `classes` (names), and of images that can be asked for one by one `unreadable` (the error of
        each), `passed_over` (of a folder: how many files of each ending are taken for no image), `sizes` and `modes`
        (how many images have each).

    Raises:
        OSError, ValueError: if there is no such split, or its reader cannot read it.
    """
    data = open_dataset(config, training)
    found: dict[str, Any] = {"split": config.train_split if training else config.val_split}
    found |= {"images": len(data), "classes": class_names(data)}
    if isinstance(data, IterableDataset):
        return found
    unreadable: list[str] = []
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    for index in range(len(data)):
        try:
            image = data.image(index)[0] if isinstance(data, Images) else data[index][0]
        except ImageError as error:
            unreadable.append(str(error))
            continue
        sizes["x".join(map(str, image.size))] += 1
        modes[_stored_mode(data, index, image)] += 1
    found |= {"unreadable": unreadable, "sizes": dict(sizes.most_common()), "modes": dict(modes.most_common())}
    return found | {"passed_over": passed_over(data)}


def passed_over(data: Any) -> dict[str, int]:
    """How many files of each ending lie in a folder of images without being taken for one."""
    root = Path(str(getattr(getattr(data, "reader", None), "root", "") or ""))
    samples = getattr(getattr(data, "reader", None), "samples", None)
    if not samples or not root.is_dir():
        return {}
    taken = {str(sample[0]) for sample in samples}
    left = (file for file in root.rglob("*") if file.is_file() and not file.name.startswith("."))
    return dict(Counter(file.suffix.lower() or "no ending" for file in left if str(file) not in taken).most_common())


def warnings_of(splits: list[dict[str, Any]]) -> list[str]:
    """What of the splits one should know, a line each."""
    told = []
    for found in splits:
        name = found["split"]
        told += found.get("unreadable", [])[:SHOWN]
        more = len(found.get("unreadable", [])) - SHOWN
        if more > 0:
            told.append(f"{name}: {more} more images cannot be read.")
        for ending, count in found.get("passed_over", {}).items():
            told.append(
                f"{name}: {count} files ({ending}) are passed over: to take them, name the endings in dataset_args "
                "(input_key: '.png;.jpg;.webp')."
            )
    first = splits[0]
    for found in splits[1:]:
        for one, other in ((first, found), (found, first)):
            lacking = [name for name in one["classes"] if name not in set(other["classes"])]
            if lacking:
                told.append(f"{other['split']} lacks classes that {one['split']} has: {', '.join(lacking[:SHOWN])}.")
    return told


def _stored_mode(data: Any, index: int, image: Any) -> str:
    """Pillow's mode of an image as it is in its file."""
    if not isinstance(data, Images):
        return str(image.mode)
    with data.reader[index][0] as file, Image.open(file) as stored:
        return str(stored.mode)
