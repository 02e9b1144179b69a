"""The quickstart's SN-Net against networks of seven costs trained alone from scratch at equal total cost.

    make quickstart && python benchmarks/science/from_scratch.py

Total cost: the multiply-adds of training the three anchors and the SN-Net. The networks have the architectures of seven
of its stitches, even in log MACs, and train on the same images for equal epochs each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import fashion_mnist as full  # which finds the quickstart
import timm
import torch
from quickstart import load_images
from torch.utils.data import DataLoader, TensorDataset

import timm_stitch
from timm_stitch.plan.frontier import frontier_area
from timm_stitch.plan.results import read_rows

ANCHOR_EPOCHS, EPOCHS = 14, 24  # of the quickstart


def main() -> None:
    """Train, evaluate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("quickstart-output"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x, y, test_x, test_y = load_images(Path(__file__).parents[2] / "examples/data/fashion_mnist_10k.npz")
    data, test = TensorDataset(x, y), DataLoader(TensorDataset(test_x, test_y), batch_size=250)
    rows = read_rows(options.quickstart / "results.jsonl")
    network_of = f"local-dir:{options.quickstart / 'snnet'}"
    macs = {row["stitch_id"]: row["macs"] for row in rows}
    low, high = macs[0], macs[2]
    chosen = full.even_in_cost(macs)
    total = ANCHOR_EPOCHS * sum(macs[i] for i in range(3)) + EPOCHS * statistics.fmean(macs.values())
    epochs = total / sum(macs[i] for i in chosen)
    params = sum(p.numel() for p in timm.create_model(network_of).parameters())
    print(f"SN-Net: {len(rows)} networks, area {frontier_area(rows, low, high):.2f}, {4 * params / 1e6:.1f} MB")
    for seed in options.seeds:
        began, alone, params = time.monotonic(), [], 0
        for i in chosen:
            torch.manual_seed(seed)
            network = timm.create_model(network_of).extract(i, copy=True)
            full.train_alone(network, data, epochs, lr=options.lr, seed=seed, batch=50)
            alone += timm_stitch.evaluate(network, test)
            params += sum(p.numel() for p in network.parameters())
            print(json.dumps({key: alone[-1][key] for key in ("stitch_id", "name", "macs", "top1")}), flush=True)
        area = frontier_area(alone, low, high)
        print(f"seed {seed}: {len(chosen)} networks alone, {epochs:.1f} epochs each, area {area:.2f}, "
              f"{4 * params / 1e6:.1f} MB, {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
