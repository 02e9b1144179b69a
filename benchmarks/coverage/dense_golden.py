"""Do the authors' segmentation networks compute what the authors' code computes, for every stitch with golden figures?

The figures lie beside the repository (tests/golden_dense.py says where). Prints the largest difference of each kind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import golden_dense
import timm
import torch

import timm_stitch  # noqa: F401


def check(name: str, ids: list[int] | None, half: int | None) -> dict[str, float]:
    """Load one network from a file in the authors' layout, and compare its stitches; returns the largest differences.

    Args:
        name: the name of the golden file.
        ids: the stitches; None for all with figures.
        half: 0 or 1 for the first or second half of these.
    """
    golden = golden_dense.Golden(name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "authors.pth"
        torch.save({"state_dict": golden.weights()}, file)
        overlay = {"file": str(file)}
        network = timm.create_model(golden_dense.NAMES[name], pretrained=True, pretrained_cfg_overlay=overlay).eval()
    chosen = [k for k in golden.ids if k in network.plan] if ids is None else ids  # stitch 13 is another 0
    middle = (len(chosen) + 1) // 2
    chosen = chosen if half is None else chosen[:middle] if half == 0 else chosen[middle:]
    worst: dict[str, float] = {}
    for stitch_id in chosen:
        began = time.perf_counter()
        own = golden_dense.differences(network, golden, stitch_id)
        worst = {kind: max(worst.get(kind, 0.0), own.get(kind, 0.0)) for kind in {**worst, **own}}
        figures = "  ".join(f"{kind} {difference:.1e}" for kind, difference in own.items())
        print(f"{name}  stitch {stitch_id:3}  {figures}  ({time.perf_counter() - began:.1f} s)", flush=True)
    print(f"{name}: {len(chosen)} stitches, largest", "  ".join(f"{k} {v:.1e}" for k, v in worst.items()), flush=True)
    return worst


def main() -> None:
    """Compare the networks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(golden_dense.NAMES)
    parser.add_argument("networks", nargs="*", default=names, help=f"golden files, default all: {', '.join(names)}")
    parser.add_argument("--ids", type=int, nargs="+", help="stitches to compare, default all that have figures")
    parser.add_argument("--half", type=int, choices=(0, 1), help="compare only the first or second half of these")
    options = parser.parse_args()
    worst = [max(check(name, options.ids, options.half).values()) for name in options.networks]
    sys.exit(0 if max(worst) < golden_dense.TOLERANCE else f"a difference of {max(worst):.1e}")


if __name__ == "__main__":
    main()
