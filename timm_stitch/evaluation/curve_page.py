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
from ..plan.metrics import main_score, metric_of
from ..plan.results import Row

_COLUMNS = ("stitch_id", "name", "macs", "params", "latency_ms")
_SEGMENT = re.compile(r"(.+)\[(\d+):(\d+)\]$")


def write_curve_page(rows: Iterable[Row], path: PathLike, *, title: str = "", score: str | None = None) -> Path:
    """Write accuracy, or another score, against macs as an interactive page.

    Args:
        rows: the rows of the stitches, with `macs`, the score and `name`.
        path: the path of the HTML file.
        title: the title of the page.
        score: the key of the score; default the first that a row has of `top1`, `miou`, `delta1` and other metrics.

    Returns:
        The path of the file.

    Raises:
        ValueError: if a row lacks `macs` or the score.
    """
    page = curve_page(rows, title, score)
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def curve_page(rows: Iterable[Row], title: str = "", score: str | None = None) -> str:
    """Make the page that `write_curve_page` writes, as text."""
    rows = sorted(rows, key=lambda row: float(row.get("macs", 0)))
    score = score or main_score(rows)
    metric = metric_of(score)
    frontier = {row["stitch_id"] for row in pareto_frontier(rows, score=score)}
    data = [
        {key: row[key] for key in _COLUMNS if row.get(key) is not None}
        | {"score": row[score], "frontier": row["stitch_id"] in frontier, "path": path_of(str(row.get("name", "")))}
        for row in rows
    ]
    title = title or "Accuracy against cost"
    words = metric.words[:1].upper() + metric.words[1:]
    values = {
        "TITLE": escape(title),
        "SCORE": escape(words.removesuffix(", %")),
        "METRIC": _script({"words": metric.words, "unit": " %" if metric.percent else "", "digits": metric.digits}),
        "ROWS": _script(data),
    }
    return re.sub("TITLE|SCORE|METRIC|ROWS", lambda mark: values[mark[0]], _TEMPLATE)


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


def _script(value: object) -> str:
    """Write a value into the page's script."""
    return json.dumps(value).replace("<", "\\u003c")


_TEMPLATE = (Path(__file__).parent / "curve_page.html").read_text(encoding="utf-8")
