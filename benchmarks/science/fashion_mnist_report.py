"""What do the rows of `fashion_mnist.py` say? Tables of runs and comparisons, and a plot for each variant."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm_stitch.evaluation.plotting import plot_curve
from timm_stitch.plan.frontier import frontier_area

Runs = Mapping[tuple[str, int], dict[str, Any]]
COMPARISONS = [
    ("plain", "kaiming"), ("images 1000", "plain"), ("plain", "slow to fast"), ("plain", "all pairs"),
    ("plain", "kernel 1"), ("kernel 3", "plain"), ("plain", "stitches only"), ("two a step", "plain"),
    ("sandwich", "plain"), ("sandwich", "two a step"), ("all anchors", "sandwich"), ("plain", "random anchors"),
    ("plain, 4 epochs", "plain"), ("sandwich, 4 epochs", "sandwich"),
    ("authors' recipe, 4 epochs", "authors' code, none"), ("plain, 4 epochs", "authors' recipe, 4 epochs"),
    ("sandwich, 4 epochs", "plain, 4 epochs"), ("all anchors, 4 epochs", "sandwich, 4 epochs"),
    ("anchors first, 2 + 2 epochs", "plain, 4 epochs"), ("anchors first, 2 + 2 epochs", "sandwich, 4 epochs"),
    ("anchors first, 2 + 2 epochs", "anchors trained on"),
    ("sandwich, augmented, 4 epochs", "authors' recipe, 4 epochs"),
    ("plain, 4 epochs", "anchors trained on"), ("sandwich, 4 epochs", "anchors trained on"),
    ("plain, 4 epochs", "alone, anchors free"), ("plain, 4 epochs", "alone"), ("sandwich, 4 epochs", "alone"),
]  # fmt: skip
LOW, HIGH = 1_425_120, 20_740_992  # multiply-adds of the smallest and the largest anchor


def area(row: Mapping[str, Any], which: str = "final") -> float:
    """Compute the frontier area of a row between the smallest and the largest anchor."""
    rows = [{"macs": row["macs"][i], "top1": top1} for i, top1 in row[which].items()]
    return frontier_area(rows, LOW, HIGH)


def straight_line(row: Mapping[str, Any]) -> float:
    """Compute the area that mixing anchors image by image gives: under straight lines between them, over log MACs."""
    return under_lines(sorted((math.log(row["macs"][i]), row["final"][i]) for i in row["final"]))


def under_lines(points: Sequence[tuple[float, float]]) -> float:
    """Compute the mean height of straight lines from point to point, which are (x, y) with rising x."""
    parts = [(b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points)]
    return sum(parts) / (points[-1][0] - points[0][0])


def mean_and_range(values: Sequence[float]) -> str:
    """Format the mean and, for several seeds, the range."""
    mean = statistics.fmean(values)
    return f"{mean:.2f}" + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")


def is_short(row: Mapping[str, Any]) -> bool:
    """Whether a row was evaluated on the first half of the test images only."""
    return row["final"] == row.get("first")


def areas(rows: Sequence[Mapping[str, Any]], first: bool) -> list[float]:
    """Compute the area of each row, on all test images or on the first half."""
    return [area(row, "first" if first else "final") for row in rows]


def points(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List a row's stitches as `plot_curve` takes them."""
    names = row.get("names", {})
    return [{"macs": row["macs"][i], "top1": top1, "name": names.get(i, "")} for i, top1 in row["final"].items()]


def report(runs: Runs, stitched: Sequence[str], not_stitched: Sequence[str], out: Path, official: Path | None) -> str:
    """Write tables of all runs and comparisons, and plot each variant into a folder.

    Args:
        runs: the rows by variant and seed.
        stitched: the names of the variants that are SN-Nets, in the order of the table.
        not_stitched: the names of the others.
        out: the folder for the plots.
        official: a file with rows of the authors' code on the same anchors.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    order = ["anchors", *stitched, *not_stitched]
    for name, seed in sorted(runs, key=lambda key: (order.index(key[0]), key[1])):
        groups.setdefault(name, []).append(runs[name, seed])
    anchors = groups.pop("anchors")[0]
    theirs = json.loads(official.read_text())["runs"] if official else []
    for row in theirs:
        groups.setdefault(f"authors' code, {row['variant']}", []).append(row)
    lines = [
        f"Anchors left alone: area {area(anchors):.2f}, on the first half of the test images "
        f"{area(anchors, 'first'):.2f}; straight lines between them {straight_line(anchors):.2f}. Rows marked * are "
        "of the first half.",
        "",
        "| variant | seeds | stitches | images | MMACs an image | at init | area | anchors' change (T, S, B) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in groups.items():
        row, short = rows[0], is_short(rows[0])
        bare = anchors["first" if short else "final"]
        change = [statistics.fmean(r["final"].get(i, math.nan) - bare[i] for r in rows) for i in "012"]
        seen = f"{row['images']:,}" if "images" in row else f"{row.get('epochs', 0) * 60000:,}"
        paid = f"{row['macs_an_image'] / 1e6:.1f}" if "macs_an_image" in row else ""
        begin = mean_and_range([area(r, "init") for r in rows]) if "images" in row and row["init"] else ""
        lines.append(
            f"| {name}{' *' if short else ''} | {len(rows)} | {len(row['final'])} | {seen} | {paid} | {begin} "
            f"| {mean_and_range(areas(rows, False))} | {', '.join(f'{c:+.2f}' if c == c else '–' for c in change)} |"
        )
    lines += ["", "| comparison | difference of areas | seeds differ by | found |", "|---|---|---|---|"]
    for a, b in COMPARISONS:
        if a in groups and b in groups:
            short = is_short(groups[a][0]) or is_short(groups[b][0])
            left, right = areas(groups[a], short), areas(groups[b], short)
            difference = statistics.fmean(left) - statistics.fmean(right)
            noise = max(max(v) - min(v) for v in (left, right))
            found = "none" if abs(difference) <= noise else a if difference > 0 else b
            lines.append(f"| {a} against {b} | {difference:+.2f} | {noise:.2f} | {found} |")
    others = {"anchors before": points(anchors)}
    for row in [row for row in theirs if row["variant"] == "none"][:1]:
        others["authors' code"] = points(row)
    for name in [name for name in stitched if name in groups]:
        file = "".join(c if c.isalnum() else "_" for c in name.replace(",", "").replace("'", ""))
        plot_curve(points(groups[name][0]), out / f"{file}.png", title=name, others=others)
    long = {name: points(groups[name][0]) for name in ("anchors trained on", "plain, 4 epochs") if name in groups}
    if "sandwich, 4 epochs" in groups:
        best = points(groups["sandwich, 4 epochs"][0])
        title = "Fashion-MNIST, 240,000 images seen; stitches of the sandwich rule"
        plot_curve(best, out / "overview.png", title=title, others={**others, **long})
    return "\n".join(lines)
