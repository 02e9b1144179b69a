"""The curve: accuracy against multiply-adds of every stitch, with anchors and frontier; to a file or a web page.

Needs matplotlib (`pip install timm_stitch[plot]`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..plan.frontier import pareto_frontier


def plot_curve(
    rows: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    others: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
) -> Path:
    """Draw accuracy against macs to a file.

    Args:
        rows: one a stitch, with `macs`, `top1` and `name` (an anchor's name has no brackets).
        path: where; the ending chooses the format.
        title: above the plot.
        others: more rows to draw faintly for comparison, by label.

    Raises:
        ImportError: without matplotlib.
        ValueError: if a row lacks `macs` or `top1`.
    """
    figure, path = _figure(list(rows), title, others or {})[0], Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        figure.savefig(beside, dpi=150)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def curve_svg(rows: Iterable[Mapping[str, Any]]) -> tuple[str, Callable[[Mapping[str, Any]], tuple[float, float]]]:
    """The curve for a web page, on which something may be drawn.

    Args:
        rows: as for `plot_curve`.

    Returns:
        The `<svg>` element, and what gives a row's place (x, y) in its units.

    Raises:
        ImportError: without matplotlib.
        ValueError: if a row lacks `macs` or `top1`.
    """
    figure, scale = _figure(list(rows), "", {})
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters, not their outlines
        figure.savefig(text, format="svg")
    svg = text.getvalue()
    axes, (width, height) = figure.axes[0], figure.get_size_inches() * 72  # its units are points

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        x, y = figure.transFigure.inverted().transform(axes.transData.transform((row["macs"] / scale, row["top1"])))
        return float(x * width), float((1 - y) * height)

    return svg[svg.index("<svg") :], place


def _figure(rows: list[Mapping[str, Any]], title: str, others: Mapping[str, Iterable[Mapping[str, Any]]]) -> Any:
    """The curve as a matplotlib figure, and how many macs the unit of its axis has."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'timm_stitch[plot]'.") from error
    frontier = pareto_frontier(rows)
    unit, scale = ("GMACs", 1e9) if max(row["macs"] for row in rows) > 1e9 else ("MMACs", 1e6)
    anchors = [row for row in rows if "[" not in row.get("name", "[")]
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, more in others.items():
        more = list(more)
        axes.scatter([r["macs"] / scale for r in more], [r["top1"] for r in more], s=16, alpha=0.5, label=label)
    axes.scatter([r["macs"] / scale for r in rows], [r["top1"] for r in rows], s=22, c="#7a8fb8", label="stitches")
    axes.step(
        [r["macs"] / scale for r in frontier],
        [r["top1"] for r in frontier],
        where="post",
        c="#2b4c9b",
        label="frontier",
    )
    axes.scatter(
        [r["macs"] / scale for r in anchors], [r["top1"] for r in anchors], s=120, marker="*", c="#d1495b",
        zorder=3, label="anchors",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    axes.set_xlabel(f"cost of one image, {unit} (log scale)")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")  # where curves that rise leave room
    return figure, scale
