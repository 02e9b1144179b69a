"""A look at images before they are used: what each split holds, and what in it would lead a run astray.

Imports the files beside it.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import IterableDataset

from .classes import class_names
from .config import DataConfig
from .dataset import open_dataset
from .images import ImageError, Images

SHOWN = 20  # names of files in a report
SECONDS = 20.0  # for a look at a split before training

_logger = logging.getLogger(__name__)


def look_before(config: Any, bar: Any) -> None:
    """Look at the images of a run before its first step: tell what there is, warn of what is odd.

    Args:
        config: a `TrainConfig`.
        bar: tqdm's, above which a line for each split is written if it is shown.

    Raises:
        ValueError: if some cannot be read.
    """
    splits = [look_at_split(config, training=True, seconds=SECONDS)]
    if "read" not in splits[0]:
        return  # a stream, which is seen as it comes
    if config.evaluate_every:
        splits.append(look_at_split(config, training=False, seconds=SECONDS))
    for found in splits if not bar.disable else ():
        bar.write(line_of(found), file=sys.stderr)
    for told in warnings_of(splits):
        _logger.warning(told)
    check_unreadable(splits)


def look_at_split(config: DataConfig, training: bool, seconds: float = math.inf) -> dict[str, Any]:
    """Read the images of a split, and say what there is.

    Args:
        config: names the data.
        training: the training split, else the validation split.
        seconds: after which to stop; images from all over the split are read first.

    Returns:
        `split`, `images`, `classes` (names), and of images that can be asked for one by one `read` (how many were),
        `unreadable` (the error of each), `passed_over` (of a folder: how many files of each ending are taken for no
        image), `sizes` and `modes` (how many images have each).

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
    until, read = time.monotonic() + seconds, 0
    for index in _spread(len(data)):
        if time.monotonic() > until:
            break
        read += 1
        try:
            image = data.image(index)[0] if isinstance(data, Images) else data[index][0]
        except ImageError as error:
            unreadable.append(str(error))
            continue
        sizes["x".join(map(str, image.size))] += 1
        modes[_stored_mode(data, index, image)] += 1
    found |= {
        "read": read,
        "unreadable": unreadable,
        "sizes": dict(sizes.most_common()),
        "modes": dict(modes.most_common()),
    }
    return found | {"passed_over": passed_over(data)}


def line_of(found: dict[str, Any]) -> str:
    """A split in one line."""
    parts = [f"{found['split']}: {found['images']:,} images of {len(found['classes'])} classes"]
    if found.get("read", found["images"]) < found["images"]:
        parts.append(f"of which {found['read']:,} were read")
    for what in ("sizes", "modes"):
        counts = list(found.get(what, {}).items())
        more = f" and {len(counts) - 4} other" if len(counts) > 4 else ""
        parts.append(f"{what} {', '.join(f'{name} ({count})' for name, count in counts[:4])}{more}" if counts else "")
    return "; ".join(part for part in parts if part)


def check_unreadable(splits: Iterable[dict[str, Any]]) -> None:
    """Refuse images that cannot be read.

    Raises:
        ValueError: saying how many.
    """
    bad = sum(len(found.get("unreadable", ())) for found in splits)
    if bad:
        raise ValueError(f"{bad} images cannot be read: replace or remove them.")


def _spread(count: int) -> Iterable[int]:
    """All numbers below `count`, those far apart first."""
    step = 1 << max(count - 1, 0).bit_length()
    if count:
        yield 0
    while step > 1:
        step //= 2
        yield from range(step, count, 2 * step)


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
