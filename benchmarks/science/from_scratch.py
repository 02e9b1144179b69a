"""Is an SN-Net better than networks of seven costs trained alone from scratch, at equal total cost?

    make quickstart && python benchmarks/science/from_scratch.py

The SN-Net is the quickstart's. Total cost: the multiply-adds of training the three anchors and the SN-Net. The
networks have the architectures of seven of its stitches, even in log MACs, and train on the same images for equal
epochs each.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import timm
import torch
from small_deits import even_in_cost, train_alone
from torch.utils.data import DataLoader, TensorDataset

import timm_stitch
from timm_stitch.plan.frontier import frontier_area
from timm_stitch.plan.results import read_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from fashion_mnist_images import read_quickstart_images


def main() -> None:
    """Train, evaluate, compare."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--quickstart", type=Path, default=Path("quickstart-output"), help="the quickstart's output folder"
    )
    parser.add_argument("--anchor-epochs", type=int, default=14, help="epochs of the quickstart's anchors")
    parser.add_argument("--epochs", type=int, default=24, help="epochs of the quickstart's SN-Net")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="seeds of the networks alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of the networks alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = read_quickstart_images()
    data, test = TensorDataset(*images["train"]), DataLoader(TensorDataset(*images["test"]), batch_size=250)
    rows = read_rows(options.quickstart / "results.jsonl")
    network_of = f"local-dir:{options.quickstart / 'snnet'}"
    macs = {row["stitch_id"]: row["macs"] for row in rows}
    low, high = macs[0], macs[2]
    chosen = even_in_cost(macs)
    total = options.anchor_epochs * sum(macs[i] for i in range(3)) + options.epochs * statistics.fmean(macs.values())
    epochs = total / sum(macs[i] for i in chosen)
    params = sum(p.numel() for p in timm.create_model(network_of).parameters())
    print(f"SN-Net: {len(rows)} networks, area {frontier_area(rows, low, high):.2f}, {4 * params / 1e6:.1f} MB")
    for seed in options.seeds:
        began, alone, params = time.monotonic(), [], 0
        for i in chosen:
            torch.manual_seed(seed)
            network = timm.create_model(network_of).extract(i, copy=True)
            train_alone(network, data, epochs, lr=options.lr, seed=seed, batch=50)
            alone += timm_stitch.evaluate(network, test)
            params += sum(p.numel() for p in network.parameters())
            print_row({key: alone[-1][key] for key in ("stitch_id", "name", "macs", "top1")})
        area = frontier_area(alone, low, high)
        print(f"seed {seed}: {len(chosen)} networks alone, {epochs:.1f} epochs each, area {area:.2f}, "
              f"{4 * params / 1e6:.1f} MB, {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
