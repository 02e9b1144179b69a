"""Latencies in rows: the key of each batch size, and the device and precision of the measurement.

A row holds plain values only, so each measured batch size has a key of its own, `latency_ms_batch_8`; `latency_ms` is
the time of a call with `batch_size` images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]  # the figures of one stitch, by name

MOST_IMAGES = 4096  # in one measured call
LATENCY_AT = "latency_ms_batch_"  # the beginning of a key; the number of images follows

# The figures that belong to `latency_ms`, and change with it.
_ONE_CALL = (
    "latency_ms",
    "latency_spread_ms",
    "latency_error",
    "images_per_s",
    "texts_per_s",
    "memory_mb",
    "batch_size",
)
_SETUP = ("profiled_on", "precision")
_KEY = re.compile(LATENCY_AT + r"([1-9]\d{0,8})")


def latency_key(images: int) -> str:
    """Make the key for the milliseconds of a call with this number of images."""
    return f"{LATENCY_AT}{images}"


def call_times(row: Row) -> dict[int, float]:
    """Collect the measured latencies of a row.

    Returns:
        `{images: milliseconds}`, the smallest call first. A row without `batch_size` has `latency_ms` for one image.
    """
    times: dict[int, float] = {}
    if row.get("latency_ms") is not None:
        times[int(row.get("batch_size") or 1)] = row["latency_ms"]
    for key, value in row.items():
        match = _KEY.fullmatch(key)
        if match and value is not None:
            times[int(match[1])] = value
    return dict(sorted(times.items()))


def is_batch_size(images: object) -> bool:
    """Whether a call with this number of images can be measured."""
    return isinstance(images, int) and not isinstance(images, bool) and 1 <= images <= MOST_IMAGES


def at_batch_size(row: Row, images: int) -> Row:
    """Make the time of a call with this number of images the `latency_ms` of a row.

    Raises:
        ValueError: if the number is out of range, or was not measured.
    """
    if not is_batch_size(images):
        raise ValueError(f"batch_size must be a whole number from 1 to {MOST_IMAGES:,}, got {images!r}.")
    known = call_times(row)
    if images not in known:
        at = f"only at {', '.join(map(str, known))}" if known else "at no other either"
        raise ValueError(
            f"stitch {row.get('stitch_id', '?')} was not measured at batch_size={images}, {at}: "
            f"timm_stitch.profile(model, batch_sizes={sorted([*known, images])}) measures it."
        )
    return {**row, "latency_ms": known[images], "batch_size": images}


def merge_rows(rows: Iterable[tuple[int, Row]]) -> dict[int, Row]:
    """Merge rows by stitch, later figures over earlier ones.

    Times and memory stay only if they come from the device and precision that were measured last. A new `latency_ms`
    replaces all figures that belong to it; times of other batch sizes stay.

    Args:
        rows: (stitch_id, row), the newest last.
    """
    rows = list(rows)
    setups = [setup for _, row in rows if (setup := _measured_on(row))]
    merged: dict[int, Row] = {}
    for stitch_id, row in rows:
        if _measured_on(row) not in (None, *setups[-1:]):
            row = without_times(row)
        old = merged.get(stitch_id, {})
        if "latency_ms" in row:
            old = {k: v for k, v in old.items() if k not in _ONE_CALL}
        merged[stitch_id] = {**old, **row}
    return merged


def without_times(row: Row) -> dict[str, Any]:
    """Leave out the times and the memory of a row, and where they were measured."""
    return {k: v for k, v in row.items() if k not in (*_ONE_CALL, *_SETUP) and not _KEY.fullmatch(k)}


def _measured_on(row: Row) -> tuple[object, ...] | None:
    """Get the device and precision of a row's times; None if it has no times."""
    return tuple(row.get(key) for key in _SETUP) if call_times(row) else None
