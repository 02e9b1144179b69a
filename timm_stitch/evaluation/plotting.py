"""Plots of a score against multiply-adds of every stitch, with anchors and frontier, for a file or a web page.

Needs matplotlib (`pip install '.[plot]'`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import missing_extra
from ..files import PathLike, whole_file
from ..plan.frontier import pareto_frontier
from ..plan.metrics import main_score, metric_of
from ..plan.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curve(
    rows: Iterable[Row],
    path: PathLike,
    *,
    title: str = "",
    others: Mapping[str, Iterable[Row]] | None = None,
    score: str | None = None,
) -> Path:
    """Draw accuracy, or another score, against macs to a file.

    Args:
        rows: the rows of the stitches, with `macs`, the score and `name` (an anchor's name has no brackets).
        path: the path of the file, whose suffix chooses the format.
        title: the title of the plot.
        others: further rows to draw faintly for comparison, by label.
        score: the key of the score; default the first that a row has of `top1`, `miou`, `delta1` and other metrics.

    Returns:
        The path of the file.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if a row lacks `macs` or the score.

    Examples:
        >>> import tempfile, timm_stitch
        >>> rows = [{"macs": macs, "top1": top1, "name": f"a[{macs}]"} for macs, top1 in [(2, 75.0), (4, 81.0)]]
        >>> timm_stitch.plot_curve(rows, tempfile.mkdtemp() + "/curve.png").name
        'curve.png'
    """
    rows = list(rows)
    figure, _ = _figure(rows, title, others or {}, score or main_score(rows))
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
        ValueError: if a row lacks `macs` or the score.
    """
    rows = list(rows)
    score = main_score(rows)
    figure, scale = _figure(rows, "", {}, score)
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text, not outlines
        figure.savefig(text, format="svg")
    svg = text.getvalue()
    axes, (width, height) = figure.axes[0], figure.get_size_inches() * 72  # in points, the units of the drawing

    def place(row: Row) -> tuple[float, float]:
        x, y = figure.transFigure.inverted().transform(axes.transData.transform((row["macs"] / scale, row[score])))
        return float(x * width), float((1 - y) * height)

    return svg[svg.index("<svg") :], place


def _figure(rows: list[Row], title: str, others: Mapping[str, Iterable[Row]], score: str) -> tuple[Figure, float]:
    """Draw the curve as a matplotlib figure; returns also the number of macs per unit of its axis."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("drawing needs matplotlib", "plot") from error
    frontier, metric = pareto_frontier(rows, score=score), metric_of(score)
    unit, scale = ("GMACs", 1e9) if max(row["macs"] for row in rows) > 1e9 else ("MMACs", 1e6)
    anchors = [row for row in rows if "[" not in row.get("name", "[")]
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, more in others.items():
        more = list(more)
        axes.scatter([r["macs"] / scale for r in more], [r[score] for r in more], s=16, alpha=0.5, label=label)
    axes.scatter([r["macs"] / scale for r in rows], [r[score] for r in rows], s=22, c="#7a8fb8", label="stitches")
    axes.step(
        [r["macs"] / scale for r in frontier],
        [r[score] for r in frontier],
        where="post",
        c="#2b4c9b",
        label="frontier",
    )
    axes.scatter(
        [r["macs"] / scale for r in anchors], [r[score] for r in anchors], s=120, marker="*", c="#d1495b",
        zorder=3, label="anchors",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    axes.set_xlabel(f"cost of one image, {unit} (log scale)")
    axes.set_ylabel(metric.words)
    axes.set_title(title, parse_math=False)  # a name with dollars is no formula
    axes.grid(alpha=0.3, which="both")
    # Rising curves leave room at the bottom, falling ones at the top.
    for text in axes.legend(loc="lower right" if metric.higher_is_better else "upper right").get_texts():
        text.set_parse_math(False)
    return figure, scale
