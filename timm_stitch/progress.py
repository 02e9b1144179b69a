"""Progress of long work: a bar on a terminal and in a notebook, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_bar

SECONDS = 20.0  # between two lines


class _Lines(plain_bar):
    """A bar for files and pipes: it prints whole lines, the first after some seconds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._printed_at = time.monotonic()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the line, unless one was printed a moment ago."""
        now = time.monotonic()
        if msg is None and now - self._printed_at >= SECONDS:
            self._printed_at = now
            print(self.format_meter(**{**self.format_dict, "ncols": 0}), file=sys.stderr, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """Leave what was printed."""


def progress_bar(items: Iterable[Any] | None = None, *, progress: bool = True, **options: Any) -> Any:
    """Make a bar of tqdm's.

    Args:
        items: the items to iterate over, if the bar is not moved by `update`.
        progress: whether to show anything.
        **options: further arguments of tqdm, such as `total`, `desc` and `unit`.
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    kind = tqdm if on_terminal or in_notebook else _Lines
    return kind(items, disable=not progress, **({} if kind is tqdm else {"leave": False}), **options)
