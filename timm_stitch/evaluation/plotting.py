"""Plots of accuracy against multiply-adds of every stitch, with anchors and frontier, for a file or a web page.

Needs matplotlib (`pip install timm_stitch[plot]`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import PathLike, whole_file
from ..plan.frontier import pareto_frontier
from ..plan.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curve(
    rows: Iterable[Row],
    path: PathLike,
    *,
    title: str = "",
    others: Mapping[str, Iterable[Row]] | None = None,
) -> Path:
    """Draw accuracy against macs to a file.

    Args:
        rows: the rows of the stitches, with `macs`, `top1` and `name` (an anchor's name has no brackets).
        path: the path of the file, whose suffix chooses the format.
        title: the title of the plot.
        others: further rows to draw faintly for comparison, by label.

    Returns:
        The path of the file.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if a row lacks `macs` or `top1`.

    Examples:
        >>> import tempfile, timm_stitch
        >>> rows = [{"macs": macs, "top1": top1, "name": f"a[{macs}]"} for macs, top1 in [(2, 75.0), (4, 81.0)]]
        >>> timm_stitch.plot_curve(rows, tempfile.mkdtemp() + "/curve.png").name
        'curve.png'
    """
    figure, _ = _figure(list(rows), title, others or {})
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return Path(path)


def curve_svg(rows: Iterable[Row]) -> tuple[str, Callable[[Row], tuple[float, float]]]:
    """Draw the curve for a web page that draws on top of it.

    Args:
        rows: the rows of the curve, in the form that `plot_curve` takes.

    Returns:
        The `<svg>` element, and a function that returns a row's position (x, y) in its units.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if a row lacks `macs` or `top1`.
    """
    figure, scale = _figure(list(rows), "", {})
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text, not outlines
        figure.savefig(text, format="svg")
    svg = text.getvalue()
    axes, (width, height) = figure.axes[0], figure.get_size_inches() * 72  # in points, the units of the drawing

    def place(row: Row) -> tuple[float, float]:
        x, y = figure.transFigure.inverted().transform(axes.transData.transform((row["macs"] / scale, row["top1"])))
        return float(x * width), float((1 - y) * height)

    return svg[svg.index("<svg") :], place


def _figure(rows: list[Row], title: str, others: Mapping[str, Iterable[Row]]) -> tuple[Figure, float]:
    """Draw the curve as a matplotlib figure; returns also the number of macs per unit of its axis."""
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
    axes.set_title(title, parse_math=False)  # a name with dollars is no formula
    axes.grid(alpha=0.3, which="both")
    for text in axes.legend(loc="lower right").get_texts():  # rising curves leave room there
        text.set_parse_math(False)
    return figure, scale
