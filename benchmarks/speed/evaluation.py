"""Evaluate all stitches of a network in one pass that shares fronts, against one stitch at a time.

    python benchmarks/speed/evaluation.py                                     # snnet_deit_tsb, 71 stitches
    python benchmarks/speed/evaluation.py --model snnetv2_deit3_sl --images 4 # 134 stitches; minutes

Random weights and images: what counts is that both give the same rows, and the ratio of the times beside the ratio
of the multiply-adds.
"""

from __future__ import annotations

import argparse
import time

import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

import timm_stitch
from timm_stitch.plan.prefix_sharing import shared_macs


def main() -> None:
    """Measure, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="snnet_deit_tsb")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(options.model).eval()
    x, labels = torch.randn(options.images, 3, *model.image_size), torch.randint(0, 1000, (options.images,))
    loader = DataLoader(TensorDataset(x, labels), batch_size=options.images)
    timm_stitch.evaluate(model, loader, list(model.stitch_ids)[:1])  # to warm up
    spent = {"together": 0.0, "one by one": 0.0}
    for _ in range(options.rounds):
        began = time.perf_counter()
        together = timm_stitch.evaluate(model, loader)
        spent["together"] += time.perf_counter() - began
        for k in model.stitch_ids:
            with torch.inference_mode():
                began = time.perf_counter()
                logits = model(x, stitch_id=k)
                right = int((logits.argmax(-1) == labels).sum())
                loss = float(torch.nn.functional.cross_entropy(logits, labels))
                spent["one by one"] += time.perf_counter() - began
            row = next(row for row in together if row["stitch_id"] == k)
            if round(row["top1"] * options.images / 100) != right or abs(row["loss"] - loss) > 1e-6:
                raise SystemExit(f"stitch {k} differs: {row['top1']}, {row['loss']} against {right}, {loss}")
    costs = model.costs()
    allowed = shared_macs(model.plan, costs) / sum(costs.cost(s).macs for s in model.plan)
    print(
        f"{options.model}, {model.num_stitches} stitches on {options.images} images: equal rows; together "
        f"{spent['together']:.1f} s, one by one {spent['one by one']:.1f} s: "
        f"{spent['together'] / spent['one by one']:.3f}; the multiply-adds allow {allowed:.3f}"
    )


if __name__ == "__main__":
    main()
