"""Rows as tables that fit the terminal, and colours where they are wanted."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

from ..plan.metrics import metric_of
from ..plan.timings import LATENCY_AT, Row

_NARROWEST = 16  # letters of a column of texts, before columns are left out
_GAP = "  "


def print_table(rows: Sequence[Row]) -> None:
    """Print rows as a table for people, with `latency_ms_batch_8` as `ms_8`.

    On a terminal, or with COLUMNS set, texts that are too long for it continue in their own column. If that is not
    enough, the last columns are left out, and a line on stderr says which.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    heads = [column.replace(LATENCY_AT, "ms_") for column in columns]
    numeric = [not any(isinstance(row.get(column), str) for row in rows) for column in columns]
    cells = [[_cell(row.get(column), metric_of(column).digits) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(columns))]
    room = _columns(sys.stdout)
    shown = _fit(widths, numeric, room) if room else len(widths)
    for number, line in enumerate([heads, *cells]):
        parts = [_wrap(cell, width) for cell, width in zip(line[:shown], widths, strict=False)]
        for i in range(max(map(len, parts), default=0)):
            texts = [part[i] if i < len(part) else "" for part in parts]
            aligned = [part.ljust(width) for part, width in zip(texts, widths, strict=False)]
            text = _GAP.join(aligned).rstrip()
            print(text if number else paint(text, "1", sys.stdout))
    if shown < len(heads):
        print(f"left out for lack of room: {', '.join(heads[shown:])}; --json has them.", file=sys.stderr)


def paint(text: str, style: str, stream: TextIO | None) -> str:
    """Put a text in a colour or in bold, if it goes to a terminal and NO_COLOR is not set.

    Args:
        text: the text.
        style: the parameters of the escape sequence, "1" for bold or "31" for red.
        stream: the stream that the text goes to.
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not _is_terminal(stream)
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _columns(stream: TextIO) -> int:
    """Find the width of the terminal; 0 for a file or pipe, unless COLUMNS is set."""
    return shutil.get_terminal_size().columns if _is_terminal(stream) or os.environ.get("COLUMNS") else 0


def _fit(widths: list[int], numeric: Sequence[bool], room: int) -> int:
    """Narrow the widest texts until a table fits, and count the columns that do."""
    while _total(widths) > room:
        wide = [i for i, width in enumerate(widths) if not numeric[i] and width > _NARROWEST]
        if not wide:
            break
        widest = max(wide, key=lambda i: widths[i])
        others = [widths[i] for i in wide if widths[i] < widths[widest]]
        least = max(_NARROWEST, *others) if others else _NARROWEST
        widths[widest] = max(min(least, widths[widest] - 1), widths[widest] - (_total(widths) - room))
    shown = len(widths)
    while shown > 1 and _total(widths[:shown]) > room:
        shown -= 1
    if shown == 1:
        widths[0] = min(widths[0], max(room, 1))
    return shown


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _wrap(cell: str, width: int) -> list[str]:
    """Split a cell into lines, at spaces where there are any."""
    return textwrap.wrap(cell, width, break_on_hyphens=False) if len(cell) > width else [cell]


def _cell(value: object, digits: int = 2) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
