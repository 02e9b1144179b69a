"""What does a burst do to servers? A picture of requests offered, answered in time, and how accurate the answers are.

    python benchmarks/serving/draw_serving.py burst.json docs/serving.svg

The file is JSON, as `serving.py policies` writes it: `promise_ms`; `top1`, the accuracy of each stitch in percent, by
its id; and `runs` by their labels in the legend, ours first: a row a request, `[due, latency, stitch_id]`, in seconds
from the start of the run, the last two null where no answer came.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser

COLOURS = ("#2b4c9b", "#d1495b", "#7a8fb8", "#6b6b6b")  # ours, and the others
STEP = 0.5  # seconds whose requests are taken together
FEWEST = 3  # requests without which no mean is drawn

Request = Sequence[Any]  # due, latency, stitch_id


def by_time(requests: Sequence[Request], value: Callable[[list[Request]], float | None]) -> tuple[list, list]:
    """Compute a value of the requests that are due in each step, at the middle of it; leave None out."""
    steps: dict[int, list[Request]] = defaultdict(list)
    for request in requests:
        steps[int(request[0] / STEP)].append(request)
    found = [((step + 0.5) * STEP, value(steps[step])) for step in sorted(steps)]
    found = [(at, y) for at, y in found if y is not None]
    return [at for at, _ in found], [y for _, y in found]


def draw(burst: Mapping[str, Any], path: Path) -> None:
    """Draw three panels, one above the other."""
    promise, top1 = burst["promise_ms"] / 1e3, {int(k): v for k, v in burst["top1"].items()}

    def met(requests: list[Request]) -> list[Request]:
        return [request for request in requests if request[2] is not None and request[1] <= promise]

    def attainment(requests: list[Request]) -> float | None:
        return 100 * len(met(requests)) / len(requests) if len(requests) >= FEWEST else None

    def accuracy(requests: list[Request]) -> float | None:
        known = [top1[request[2]] for request in met(requests)]
        return sum(known) / len(known) if len(known) >= FEWEST else None

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "burst"}):
        figure = Figure(figsize=(7, 6), layout="constrained")
        offered, in_time, right = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 3))
        first = next(iter(burst["runs"].values()))
        offered.fill_between(*by_time(first, lambda some: len(some) / STEP), color="#c9d3e6", step="mid")
        for n, (name, requests) in enumerate(burst["runs"].items()):
            share = 100 * len(met(requests)) / len(requests)
            style = {"color": COLOURS[n % len(COLOURS)], "lw": 2 if n == 0 else 1.5, "zorder": 3 - n / 10}
            in_time.plot(*by_time(requests, attainment), label=f"{name}: {share:.1f} % in time", **style)
            right.plot(*by_time(requests, accuracy), label=name, **style)
        offered.set_ylabel("requests a second")
        in_time.set_ylabel(f"answered within\n{burst['promise_ms']:g} ms, %")
        right.set_ylabel("top-1 of the\nanswers in time, %")
        right.set_xlabel("seconds")
        offered.set_ylim(bottom=0)
        in_time.set_ylim(-3, 103)
        figure.legend(*in_time.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        right.set_xlim(0, max(request[0] for request in first))
        for axes in (offered, in_time, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.align_ylabels()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def main() -> None:
    """Draw."""
    parser = make_parser(__doc__)
    parser.add_argument("burst", type=Path, help="JSON file of a burst")
    parser.add_argument("picture", type=Path, help="SVG or PNG file to draw")
    options = parser.parse_args()
    draw(json.loads(options.burst.read_text()), options.picture)


if __name__ == "__main__":
    main()
