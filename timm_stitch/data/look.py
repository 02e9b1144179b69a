"""An inspection of images before they are used: the content of each split, and its problems."""

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
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from .classes import class_names, ordered
from .config import DataConfig
from .dataset import open_dataset
from .folders import digest_files, find_folder_problems
from .images import ImageError, Images
from .loader import count_images
from .pair_look import inspect_pairs
from .pairs import has_pairs
from .reports import FolderReport, SplitReport, spread

SHOWN = 20  # file names in a report
SECONDS = 20.0  # to inspect a split before training

_logger = logging.getLogger(__name__)


def inspect_before_training(config: DataConfig, validation: bool, bar: tqdm[Any], classes: int | None = None) -> None:
    """Inspect the images of a run before its first step: print a summary of each split, and warn of problems.

    Args:
        config: the configuration of the images.
        validation: whether to inspect the validation split too.
        bar: the bar above which the summaries are written, if it is shown.
        classes: the number of classes of the network, in whose range the labels of masks must be.

    Raises:
        ValueError: if some images cannot be read.
    """
    splits = [inspect_split(config, True, SECONDS, classes)]
    if "read" not in splits[0]:
        if not bar.disable:
            count = f"{config.train_split}: {splits[0]['images']:,} images"
            bar.write(f"{count} as a stream, read as they come: timm-stitch check reads them all.", file=sys.stderr)
        return
    if validation:
        splits.append(inspect_split(config, False, SECONDS, classes))
    for split in splits if not bar.disable else ():
        bar.write(summary(split), file=sys.stderr)
    for warning in find_warnings(splits):
        _logger.warning(warning)
    check_unreadable(splits)


def inspect_split(
    config: DataConfig, training: bool, seconds: float = math.inf, classes: int | None = None
) -> SplitReport:
    """Inspect a split by reading its images.

    Args:
        config: the configuration of the images.
        training: whether to inspect the training split instead of the validation split.
        seconds: the seconds after which to stop; images from all over the split are read first.
        classes: the number of classes that the labels of masks are compared with; default none.

    Returns:
        `split`, `images` (their number) and `classes` (their names, or labels). For images with random access also
        `read` (the number read), `unreadable` (the error of each), `passed_over` (the number of skipped files of a
        folder, by suffix), `folders` (a sentence on each problem of its folders), `files` (a digest of which files
        these are), `sizes` and `modes` (the number of images of each), and `transparent` (the number of images
        with transparent parts). For evaluation images in a stream also `read`, `missing` and `sizes`. For masks
        `labels` has the share in per cent of each label's pixels.

    Raises:
        OSError, ValueError: if there is no such split, or its reader cannot read it.
    """
    if has_pairs(config):
        return inspect_pairs(config, training, seconds, classes)
    data = open_dataset(config, training)
    name = config.train_split if training else config.val_split
    split: SplitReport = {"split": name, "images": count_images(data, 1), "classes": class_names(data)}
    if isinstance(data, IterableDataset):
        return split if training else _inspect_stream(data, split)
    unreadable: list[str] = []
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    until, read, transparent = time.monotonic() + seconds, 0, 0
    for index in spread(len(data)):
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
    return {
        **split,
        "read": read,
        "unreadable": unreadable,
        "sizes": dict(sizes.most_common()),
        "modes": dict(modes.most_common()),
        "transparent": transparent,
        "passed_over": skipped_files(data),
        **_inspect_folders(data),
    }


def summary(split: SplitReport) -> str:
    """Summarise a split in one line."""
    content = f"of {len(split['classes'])} classes" if split["classes"] else "with depth"
    parts = [f"{split['split']}: {split['images']:,} images {content}"]
    if split.get("read", split["images"]) < split["images"]:
        parts.append(f"of which {split['read']:,} were read")
    for what, values in (("sizes", split.get("sizes", {})), ("modes", split.get("modes", {}))):
        counts = list(values.items())
        more = f" and {len(counts) - 4} other" if len(counts) > 4 else ""
        parts.append(f"{what} {', '.join(f'{name} ({count})' for name, count in counts[:4])}{more}" if counts else "")
    return "; ".join(part for part in parts if part)


def check_unreadable(splits: Iterable[SplitReport]) -> None:
    """Refuse unreadable images.

    Raises:
        ValueError: with their number.
    """
    bad = sum(len(split.get("unreadable", ())) + split.get("missing", 0) for split in splits)
    if bad:
        paired = any("labels" in split for split in splits)
        what = "images or their labels cannot be used: correct" if paired else "images cannot be read: replace"
        raise ValueError(f"{bad} {what} or remove them.")


def _inspect_stream(data: Iterable[Any], split: SplitReport) -> SplitReport:
    """Inspect images that come in an order of their own, by reading them all."""
    sizes: Counter[str] = Counter()
    labels = set()
    for image, label in data:
        sizes["x".join(map(str, image.size))] += 1
        labels.add(str(label))
    return {
        **split,
        "classes": split["classes"] or ordered(list(labels)),
        "read": sizes.total(),
        "missing": max(split["images"] - sizes.total(), 0),
        "sizes": dict(sizes.most_common()),
    }


def skipped_files(data: Any) -> dict[str, int]:
    """Count the files in a folder of images that the reader skips, by suffix."""
    root = Path(str(getattr(getattr(data, "reader", None), "root", "") or ""))
    samples = getattr(getattr(data, "reader", None), "samples", None)
    if not samples or not root.is_dir():
        return {}
    used = {str(sample[0]) for sample in samples}
    files = (file for file in root.rglob("*") if file.is_file() and not file.name.startswith("."))
    return dict(Counter(file.suffix.lower() or "no ending" for file in files if str(file) not in used).most_common())


def _inspect_folders(data: Any) -> FolderReport:
    """Inspect the class folders of images, if they are in such."""
    reader = getattr(data, "reader", None)
    if not isinstance(reader, ReaderImageFolder):
        return {}
    files = [str(sample[0]) for sample in reader.samples]
    return {"files": digest_files(files), "folders": find_folder_problems(Path(reader.root), files)}


def find_warnings(splits: list[SplitReport]) -> list[str]:
    """Find the problems of splits, one line each."""
    warnings = []
    for split in splits:
        name = split["split"]
        warnings += split.get("unreadable", [])[:SHOWN]
        more = len(split.get("unreadable", [])) - SHOWN
        if more > 0:
            warnings.append(f"{name}: {more} more images cannot be read.")
        if split.get("missing"):
            warnings.append(
                f"{name}: the reader lists {split['images']:,} images, and {split['read']:,} came: the others cannot "
                "be read, and training would skip them."
            )
        if transparent := split.get("transparent"):
            warnings.append(
                f"{name}: images with transparent parts: {transparent}. The network sees the colours stored beneath, "
                "as with timm; for others, put the images on a background."
            )
        for ending, count in split.get("passed_over", {}).items():
            warnings.append(
                f"{name}: {count} files ({ending}) are skipped: to read them, name their suffixes in dataset_args "
                "(input_key: '.png;.jpg;.webp')."
            )
        warnings += [f"{name}: {problem}" for problem in split.get("folders", [])]
    first = splits[0]
    for split in splits[1:]:
        if "files" in split and split["files"] == first.get("files"):
            warnings.append(
                f"{split['split']} has the same files as {first['split']}, so its figures say nothing of other images: "
                "give the folder that holds both splits, or images of their own."
            )
        for one, other in ((first, split), (split, first)):
            lacking = [name for name in one["classes"] if name not in set(other["classes"])]
            if lacking:
                warnings.append(
                    f"{other['split']} lacks classes that {one['split']} has: {', '.join(lacking[:SHOWN])}."
                )
    return warnings


def _as_stored(data: Any, index: int, image: Image.Image) -> tuple[str, bool]:
    """Find Pillow's mode of an image in its file, and whether parts of it are transparent."""
    if not isinstance(data, Images):
        return image.mode, _has_transparency(image)
    with data.reader[index][0] as file, Image.open(file) as stored:
        return stored.mode, _has_transparency(stored)


def _has_transparency(image: Image.Image) -> bool:
    marked = image.getbands()[-1] in ("A", "a") or "transparency" in image.info
    return marked and any(image.convert("RGBA").getchannel("A").histogram()[:255])
