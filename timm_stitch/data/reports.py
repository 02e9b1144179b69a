"""What a look at images reports of a split, and the order in which it reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict


class SplitContent(TypedDict):
    """The content of every split."""

    split: str
    images: int
    classes: list[str]


class FolderReport(TypedDict, total=False):
    """The problems of a split's folders."""

    files: str
    folders: list[str]


class SplitReport(SplitContent, FolderReport, total=False):
    """The content and the problems of a split, as `inspect_split` returns them."""

    read: int
    missing: int
    unreadable: list[str]
    passed_over: dict[str, int]
    sizes: dict[str, int]
    modes: dict[str, int]
    transparent: int
    labels: dict[str, float]


def spread(count: int) -> Iterable[int]:
    """Iterate over all numbers below `count`, those far apart first."""
    step = 1 << max(count - 1, 0).bit_length()
    if count:
        yield 0
    while step > 1:
        step //= 2
        yield from range(step, count, 2 * step)
