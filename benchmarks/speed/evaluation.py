"""How much faster is evaluating all stitches in one pass that shares fronts than one stitch at a time?

    python benchmarks/speed/evaluation.py                                     # snnet_deit_tsb, 71 stitches
    python benchmarks/speed/evaluation.py --model snnetv2_deit3_sl --images 4 # 134 stitches; minutes
    python benchmarks/speed/evaluation.py --dense --images 4                  # with a linear head, on masks

Weights and images are random: both ways must give the same rows, and the ratio of their times is shown with the ratio
of their multiply-adds. A dense network's head and projections run once for each stitch either way.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

import timm_stitch
from timm_stitch.plan.prefix_sharing import shared_macs

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser
from measuring import compare, time_in_turns


def main() -> None:
    """Measure both ways in turns."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="snnet_deit_tsb", help="name of a registered network")
    parser.add_argument("--images", type=int, default=8, help="number of images")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each way")
    parser.add_argument("--dense", action="store_true", help="evaluate a segmentation of 20 classes")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(options.model).eval()
    size, classes = model.image_size, 20 if options.dense else 1000
    if options.dense:
        model = timm_stitch.dense(model, head="linear", num_classes=classes)
    x = torch.randn(options.images, 3, *size)
    labels = torch.randint(0, classes, (options.images, *size) if options.dense else (options.images,))
    score = "aacc" if options.dense else "top1"
    loader = DataLoader(TensorDataset(x, labels), batch_size=options.images)
    timm_stitch.evaluate(model, loader, list(model.stitch_ids)[:1])  # to warm up
    rows: dict[str, dict[int, tuple[int, float]]] = {}

    def evaluate_together() -> None:
        rows["together"] = {
            row["stitch_id"]: (round(row[score] * labels.numel() / 100), row["loss"])
            for row in timm_stitch.evaluate(model, loader)
        }

    @torch.inference_mode()
    def evaluate_one(k: int) -> tuple[int, float]:
        logits = model(x, stitch_id=k)
        loss = float(torch.nn.functional.cross_entropy(logits, labels))
        return int((logits.argmax(1) == labels).sum()), loss

    def evaluate_one_by_one() -> None:
        rows["one by one"] = {k: evaluate_one(k) for k in model.stitch_ids}

    calls: dict[str, Any] = {"together": evaluate_together, "one by one": evaluate_one_by_one}
    times = time_in_turns(calls, options.rounds, warm_up=0)
    for k, (correct, loss) in rows["one by one"].items():
        if rows["together"][k][0] != correct or abs(rows["together"][k][1] - loss) > 1e-6:
            raise SystemExit(f"stitch {k} differs: {rows['together'][k]} together, {(correct, loss)} alone")
    seconds = {way: statistics.median(values) / 1e3 for way, values in times.items()}
    costs = model.costs()
    total = sum(costs.cost(s).macs for s in model.plan)
    each = sum(costs.used_projections(s).macs + costs.on_top.macs for s in model.plan) if options.dense else 0
    allowed = (shared_macs(model.plan, costs) + each) / total
    print(
        f"{options.model}, {model.num_stitches} stitches on {options.images} images: equal rows; together "
        f"{seconds['together']:.1f} s, one by one {seconds['one by one']:.1f} s: "
        f"{compare(times['together'], times['one by one'])}; the multiply-adds allow {allowed:.3f}"
    )


if __name__ == "__main__":
    main()
