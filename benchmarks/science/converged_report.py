"""What do the rows of `converged.py` say? A table of variants for each set of training images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fashion_mnist_report import mean_and_range, under_lines

import timm_stitch
from timm_stitch.plan.frontier import frontier_area

UNTOUCHED = "anchors left alone"  # the variant that the others are compared with


def area(top1: Mapping[str, float], macs: Mapping[str, int]) -> float:
    """Compute the frontier area between the smallest and the largest anchor."""
    return frontier_area([{"macs": macs[i], "top1": value} for i, value in top1.items()], macs["0"], macs["1"])


def mixed_area(top1: Mapping[str, float], macs: Mapping[str, int]) -> float:
    """Compute the area that mixing two neighbours image by image gives: under straight lines along the frontier."""
    within = [{"macs": macs[i], "top1": value} for i, value in top1.items() if macs[i] <= macs["1"]]
    rows = timm_stitch.pareto_frontier(within)
    points = sorted((math.log(row["macs"]), row["top1"]) for row in rows)
    ends = math.log(macs["0"]), math.log(macs["1"])
    points = [ends[:1] + points[0][1:], *points[1:]]
    if points[-1][0] < ends[1]:
        points.append((ends[1], points[-1][1]))
    return under_lines(points)


def count_beaten(top1: Mapping[str, float], macs: Mapping[str, int]) -> int:
    """Count the stitches between anchors that a network of no higher cost equals or beats."""
    return sum(
        any(i != j and macs[j] <= macs[i] and top1[j] >= top1[i] for j in top1) for i in top1 if i not in ("0", "1")
    )


def report(rows: Sequence[Mapping[str, Any]], which: str) -> str:
    """Write a table of all variants for each set of training images."""
    lines: list[str] = []
    for task in dict.fromkeys((row["share"], row["turned"]) for row in rows):
        some = [row for row in rows if (row["share"], row["turned"]) == task]
        untouched = next(row[which] for row in some if row["variant"] == UNTOUCHED)
        small, large = untouched["0"], untouched["1"]
        lines += [
            f"{task[0]:.0%} of the training images{', on their side' if task[1] else ''}. Anchors: {small:.2f} and "
            f"{large:.2f} %; straight line between them in log MACs: {(small + large) / 2:.2f}.",
            "",
            "| epochs | variant | seeds | networks | area | with straight lines | anchors' change | stitches beaten |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for epochs, name in dict.fromkeys((row["epochs"], row["variant"]) for row in some):
            runs = [row for row in some if (row["epochs"], row["variant"]) == (epochs, name)]
            areas, lines_too = ([how(row[which], row["macs"]) for row in runs] for how in (area, mixed_area))
            changes = [f"{statistics.fmean(row[which][i] - untouched[i] for row in runs):+.2f}" for i in "01"]
            lost = sorted({count_beaten(row[which], row["macs"]) for row in runs})
            lines.append(
                f"| {epochs if runs[0]['steps'] else 0} | {name} | {len(runs)} | {len(runs[0][which])} "
                f"| {mean_and_range(areas)} | {mean_and_range(lines_too)} | {', '.join(changes)} "
                f"| {', '.join(map(str, lost))} of {len(runs[0][which].keys() - {'0', '1'})} |"
            )
        lines.append("")
    return "\n".join(lines)
