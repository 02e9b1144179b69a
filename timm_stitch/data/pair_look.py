"""An inspection of images with masks or depths before they are used."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np

from .config import DataConfig
from .folders import digest_files
from .images import ImageError
from .pairs import PairedImages, pair_files
from .reports import SplitReport, spread

_SHOWN = 20  # labels in a sentence


def inspect_pairs(config: DataConfig, training: bool, seconds: float, classes: int | None) -> SplitReport:
    """Inspect images with masks or depths: missing pairs, sizes, labels out of range, images without any label."""
    folder = pair_files(config, training)
    data = PairedImages(folder, config, classes)
    unreadable: list[str] = []
    sizes: Counter[str] = Counter()
    pixels: Counter[int] = Counter()
    empty: list[str] = []
    until, read = time.monotonic() + seconds, 0
    for index in spread(len(data)):
        if time.monotonic() > until:
            break
        read += 1
        try:
            image, labels = data.pair(index)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        sizes["x".join(map(str, image.size))] += 1
        if folder.kind == "depth":
            has_any = bool(labels.any())
        else:
            values, counts = np.unique(labels, return_counts=True)
            pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            has_any = bool((values != data.ignored).any())
        if not has_any:
            empty.append(folder.pairs[index].label)
    seen, total = sorted(pixels), sum(pixels.values())
    return {
        "split": config.train_split if training else config.val_split,
        "images": len(data),
        "classes": [str(label) for label in seen if label != data.ignored],
        "read": read,
        "unreadable": unreadable,
        "sizes": dict(sizes.most_common()),
        "modes": {},
        "transparent": 0,
        "passed_over": dict(Counter(Path(file).suffix.lower() or "no ending" for file in folder.skipped).most_common()),
        "labels": {str(label): round(100 * pixels[label] / total, 3) for label in seen},
        "files": digest_files([pair.image for pair in folder.pairs]),
        "folders": _pair_problems(folder.alone, empty, [label for label in seen if label != data.ignored]),
    }


def _pair_problems(alone: list[str], empty: list[str], labels: list[int]) -> list[str]:
    """Describe the problems of pairs, a sentence each."""
    problems = []
    if alone:
        problems.append(
            f"{len(alone)} files have no pair and are left out (e.g. {alone[0]!r}): give an image and its labels one "
            "name."
        )
    if empty:
        problems.append(f"{len(empty)} images have no label that counts (e.g. {empty[0]!r}): nothing is learned there.")
    large = [label for label in labels if label > 254]
    if large:
        problems.append(
            f"labels above 254 ({', '.join(map(str, large[:_SHOWN]))}) are unlike class numbers: if they mark pixels "
            "that do not count, set ignore_label."
        )
    return problems
