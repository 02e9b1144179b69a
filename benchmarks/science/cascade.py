"""Are cascades more accurate than single stitches, at equal mean multiply-adds, on Fashion-MNIST?

    make quickstart && python benchmarks/science/cascade.py

Stitches, pairs and thresholds are chosen on half of the test images and measured on the other half, and the other way
round; both halves are counted together.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor

import timm_stitch
from timm_stitch.plan.prefix_sharing import common_steps

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, write_rows
from fashion_mnist_images import read_quickstart_images


def count_macs(cascade: timm_stitch.Cascade, went: Tensor) -> float:
    """Count the multiply-adds of all images together."""
    model = cascade.model
    costs, first, second = model.costs(), model.plan[cascade.cheap], model.plan[cascade.dear]
    more = sum(costs.step(step) for step in second.steps[common_steps(first, second) :])
    return costs.cost(first).macs * len(went) + more * int(went.sum())


@torch.inference_mode()
def main() -> None:
    """Choose, measure, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="local-dir:quickstart-output/snnet", help="name of the network for timm")
    parser.add_argument("--budgets", type=int, default=8, help="number of budgets, even in log MACs")
    parser.add_argument("--output", type=Path, help="JSON-lines file for the rows")
    options = parser.parse_args()
    images, labels = read_quickstart_images()["test"]
    model = timm.create_model(options.model, pretrained=True).eval()
    halves = [(images[i::2], labels[i::2]) for i in (0, 1)]
    single = [timm_stitch.evaluate(model, [half]) for half in halves]
    costs = [row["macs"] for row in single[0]]
    low, high = min(costs), model.costs().cost(model.plan[model.plan.anchor_id(len(model.plan.anchors) - 1)]).macs
    rows = []
    for i in range(options.budgets):
        budget = low * (high / low) ** (i / (options.budgets - 1)) * (1 + 1e-9)
        row = {"budget": budget, "stitch": 0.0, "cascade": 0.0, "macs": 0.0, "pairs": []}
        for choose, measure in ((0, 1), (1, 0)):
            best = timm_stitch.select(model, single[choose], macs=budget)
            x, y = halves[measure]
            row["stitch"] += float((model(x, stitch_id=best).argmax(-1) == y).sum())
            cascade = timm_stitch.find_cascade(model, [halves[choose]], budget)
            logits, went = cascade.run(x)
            row["cascade"] += float((logits.argmax(-1) == y).sum())
            row["macs"] += count_macs(cascade, went)
            row["pairs"].append([cascade.cheap, cascade.dear, round(float(went.float().mean()), 2)])
        row["stitch"], row["cascade"] = (100 * row[k] / len(images) for k in ("stitch", "cascade"))
        row["macs"] /= len(images)
        rows.append(row)
        print(
            f"budget {budget / 1e6:6.2f} MMACs: best stitch {row['stitch']:.2f} %; cascade {row['cascade']:.2f} % at "
            f"{row['macs'] / 1e6:.2f} on average; {row['pairs']}",
            flush=True,
        )
    gain = sum(row["cascade"] - row["stitch"] for row in rows) / len(rows)
    print(f"mean over budgets even in log MACs: cascades {gain:+.2f} points (standard error of one accuracy: "
          f"{100 * math.sqrt(0.75 * 0.25 / len(images)):.2f})")  # fmt: skip
    if options.output:
        write_rows(options.output, rows)


if __name__ == "__main__":
    main()
