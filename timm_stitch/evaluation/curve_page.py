"""The curve as one HTML file: hover or focus a stitch to see its path through the anchors.

The file holds the rows, a drawing and a short script. It needs no server, no network and no matplotlib.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

from ..files import PathLike, whole_file
from ..plan.frontier import pareto_frontier
from ..plan.results import Row

_COLUMNS = ("stitch_id", "name", "macs", "params", "top1", "latency_ms")
_SEGMENT = re.compile(r"(.+)\[(\d+):(\d+)\]$")


def write_curve_page(rows: Iterable[Row], path: PathLike, *, title: str = "") -> Path:
    """Write accuracy against macs as an interactive page.

    Args:
        rows: the rows of the stitches, with `macs`, `top1` and `name`.
        path: the path of the HTML file.
        title: the title of the page.

    Returns:
        The path of the file.

    Raises:
        ValueError: if a row lacks `macs` or `top1`.
    """
    page = curve_page(rows, title)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def curve_page(rows: Iterable[Row], title: str = "") -> str:
    """Make the page that `write_curve_page` writes, as text."""
    rows = sorted(rows, key=lambda row: float(row.get("macs", 0)))
    frontier = {row["stitch_id"] for row in pareto_frontier(rows)}
    data = [
        {key: row[key] for key in _COLUMNS if row.get(key) is not None}
        | {"frontier": row["stitch_id"] in frontier, "path": path_of(str(row.get("name", "")))}
        for row in rows
    ]
    title = title or "Accuracy against cost"
    values = {"TITLE": escape(title), "ROWS": json.dumps(data).replace("<", "\\u003c")}
    return re.sub("TITLE|ROWS", lambda mark: values[mark[0]], _TEMPLATE)


def path_of(name: str) -> list[tuple[str, int, int]]:
    """Read the segments of a stitch's name: anchor, first block, and the block after the last.

    An anchor alone has no block numbers in its name: its segment ends at -1.

    Examples:
        >>> from timm_stitch.evaluation.curve_page import path_of
        >>> path_of("small[0:8] + large[7:12]")
        [('small', 0, 8), ('large', 7, 12)]
    """
    segments = []
    for part in name.split(" + "):
        match = _SEGMENT.match(part)
        segments.append((match[1], int(match[2]), int(match[3])) if match else (part, 0, -1))
    return segments


_TEMPLATE = (Path(__file__).parent / "curve_page.html").read_text(encoding="utf-8")
