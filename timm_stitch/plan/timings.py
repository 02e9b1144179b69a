"""How long calls take: which figures of a row say so, of how many images, and where they were measured.

A row holds plain values only, so that each batch size that was measured has a key of its own, `latency_ms_batch_8`;
`latency_ms` is the time of a call with `batch_size` images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MOST_IMAGES = 4096  # of one call that is measured
LATENCY_AT = "latency_ms_batch_"  # with a number of images behind it

# What belongs to `latency_ms`, and changes with it.
_ONE_CALL = ("latency_ms", "latency_spread_ms", "latency_error", "images_per_s", "memory_mb", "batch_size")
_WHERE = ("profiled_on", "precision")
_KEY = re.compile(LATENCY_AT + r"([1-9]\d{0,8})")


def latency_key(images: int) -> str:
    """What a row calls the milliseconds of a call with so many images."""
    return f"{LATENCY_AT}{images}"


def call_times(row: Mapping[str, Any]) -> dict[int, Any]:
    """What a row says of how long one call takes.

    Returns:
        `{images: milliseconds}`, the smallest call first; `latency_ms` of a row without `batch_size` is of one image.
    """
    found: dict[int, Any] = {}
    if row.get("latency_ms") is not None:
        found[int(row.get("batch_size") or 1)] = row["latency_ms"]
    sizes = ((_KEY.fullmatch(key), value) for key, value in row.items() if value is not None)
    return dict(sorted((found | {int(match[1]): value for match, value in sizes if match}).items()))


def is_batch_size(images: Any) -> bool:
    """Whether a call with so many images can be measured."""
    return isinstance(images, int) and not isinstance(images, bool) and 1 <= images <= MOST_IMAGES


def at_batch_size(row: Mapping[str, Any], images: int) -> dict[str, Any]:
    """The row with the time of a call with so many images as its `latency_ms`.

    Raises:
        ValueError: if no call can have so many images, or none was measured.
    """
    if not is_batch_size(images):
        raise ValueError(f"batch_size={images!r} is out of range: expected a whole number from 1 to {MOST_IMAGES:,}.")
    known = call_times(row)
    if images not in known:
        at = f"only at {', '.join(map(str, known))}" if known else "at no other either"
        raise ValueError(
            f"stitch {row.get('stitch_id', '?')} was not measured at batch_size={images}, {at}: "
            f"timm_stitch.profile(model, batch_sizes={sorted([*known, images])}) measures it."
        )
    return {**row, "latency_ms": known[images], "batch_size": images}


def together(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[int, Mapping[str, Any]]:
    """Rows by stitch, later figures over earlier ones.

    Figures of time and memory are kept only if they are of the device and precision that were measured last, and
    `latency_ms` brings along what belongs to it; times of other batch sizes stay.

    Args:
        rows: (stitch_id, row), the newest last.
    """
    rows = list(rows)
    places = [place for _, row in rows if (place := _where(row))]
    found: dict[int, Mapping[str, Any]] = {}
    for number, row in rows:
        if _where(row) not in (None, *places[-1:]):
            row = {k: v for k, v in row.items() if k not in (*_ONE_CALL, *_WHERE) and not _KEY.fullmatch(k)}
        old = found.get(number, {})
        if "latency_ms" in row:
            old = {k: v for k, v in old.items() if k not in _ONE_CALL}
        found[number] = {**old, **row}
    return found


def _where(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The device and precision that a row's times are of; None if it has none."""
    return tuple(row.get(key) for key in _WHERE) if call_times(row) else None
