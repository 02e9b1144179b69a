"""A look at images before they are used: what each split holds, and what in it would lead a run astray."""

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

from .classes import class_names, ordered
from .config import DataConfig
from .dataset import open_dataset
from .images import ImageError, Images
from .loader import count_images

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
        if not bar.disable:
            count = f"{config.train_split}: {splits[0]['images']:,} images"
            bar.write(f"{count} as a stream, seen as they come: timm-stitch check reads them all.", file=sys.stderr)
        return
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
        `split`, `images` and `classes` (names); of evaluation images that come as a stream also `read` (how many
        came), `missing` (how many of those promised did not) and `sizes`, their labels standing for classes without
        names; of images that can be asked for one by one `read` (how many were),
        `unreadable` (the error of each), `passed_over` (of a folder: how many files of each ending are taken for no
        image), `sizes` and `modes` (how many images have each), and `transparent` (how many have such parts).

    Raises:
        OSError, ValueError: if there is no such split, or its reader cannot read it.
    """
    data = open_dataset(config, training)
    found: dict[str, Any] = {"split": config.train_split if training else config.val_split}
    found |= {"images": count_images(data, 1), "classes": class_names(data)}
    if isinstance(data, IterableDataset):
        return found if training else found | _look_at_stream(data, found)
    unreadable: list[str] = []
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    until, read, transparent = time.monotonic() + seconds, 0, 0
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
        mode, see_through = _as_stored(data, index, image)
        modes[mode] += 1
        transparent += see_through
    found |= {
        "read": read,
        "unreadable": unreadable,
        "sizes": dict(sizes.most_common()),
        "modes": dict(modes.most_common()),
        "transparent": transparent,
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
    bad = sum(len(found.get("unreadable", ())) + found.get("missing", 0) for found in splits)
    if bad:
        raise ValueError(f"{bad} images cannot be read: replace or remove them.")


def _look_at_stream(data: Iterable[Any], found: dict[str, Any]) -> dict[str, Any]:
    """Read images that come in an order of their own to their end, and say what came."""
    sizes: Counter[str] = Counter()
    labels = set()
    for image, label in data:
        sizes["x".join(map(str, image.size))] += 1
        labels.add(str(label))
    return {
        "classes": found["classes"] or ordered(list(labels)),
        "read": sizes.total(),
        "missing": max(found["images"] - sizes.total(), 0),
        "sizes": dict(sizes.most_common()),
    }


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
        if found.get("missing"):
            told.append(
                f"{name}: of the {found['images']:,} images that its reader promises {found['read']:,} came: the "
                "others cannot be read, and training would do without them."
            )
        if transparent := found.get("transparent"):
            told.append(
                f"{name}: images with transparent parts: {transparent}. The network sees the colours that are stored "
                "beneath, as with timm; to have others, put the images on a background."
            )
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


def _as_stored(data: Any, index: int, image: Image.Image) -> tuple[str, bool]:
    """Pillow's mode of an image as it is in its file, and whether parts of it are transparent."""
    if not isinstance(data, Images):
        return image.mode, _see_through(image)
    with data.reader[index][0] as file, Image.open(file) as stored:
        return stored.mode, _see_through(stored)


def _see_through(image: Image.Image) -> bool:
    marked = image.getbands()[-1] in ("A", "a") or "transparency" in image.info
    return marked and any(image.convert("RGBA").getchannel("A").histogram()[:255])
