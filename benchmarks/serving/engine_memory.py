"""How much memory does OpenVINO take beyond torch's, for a server's stitches, in calls of 1 to 16 images?

    python benchmarks/serving/engine_memory.py rows.jsonl --networks snnet_resnet_18_50 snnet_deit_tsb

Each network has random weights and runs up to twelve stitches, evenly spaced in multiply-adds, on one thread. They are
prepared as by `timm-stitch serve --engine openvino`: in the parts that they share, if copies would take more than twice
the weights of all together. First torch answers a call of each size, so that its own memory is there. Then the engine
does, by all stitches. Each row has the anonymous memory above torch's in MB, and its ratio to the weights of all these
stitches, each once. Conversions are kept as those of `serve`, and take minutes the first time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import timm
import torch

from timm_stitch.deployment.serving.backends.compiled import give_memory_back
from timm_stitch.deployment.serving.backends.torch_backend import TorchBackend
from timm_stitch.deployment.serving.config import ServingConfig
from timm_stitch.deployment.serving.handover import find_engine
from timm_stitch.deployment.serving.latencies import spread
from timm_stitch.deployment.serving.network import ServedNetwork
from timm_stitch.deployment.serving.service import leave_the_file

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import memory_mb

SIZES = (1, 2, 4, 8, 16)  # images of a call


def measure(name: str, options: argparse.Namespace) -> None:
    """Prepare the stitches of a network, and print a row for each batch size."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    leave_the_file(model)
    rows = sorted(model.stitch_table(), key=lambda row: row["macs"])
    stitch_ids = spread([row["stitch_id"] for row in rows])
    weights = {key: p.numel() for k in stitch_ids for key, p in model.extract(k).named_parameters()}
    union = 4 * sum(weights.values()) / 1e6
    make = find_engine(model, ServingConfig(1000, engine="openvino"))
    reference = TorchBackend(model)
    for size in SIZES:
        reference.run(torch.zeros(size, model.in_chans, *model.image_size), stitch_ids[-1])
    del weights
    give_memory_back()
    torch_mb, began = memory_mb("RssAnon"), time.monotonic()
    backend = make(reference, ServedNetwork.of(model), stitch_ids)
    backend.prepare(stitch_ids, [1])
    facts = {"network": name, "stitches": len(stitch_ids), "weights_mb": union, "prepared_s": time.monotonic() - began}
    for size in SIZES:
        for stitch_id in stitch_ids:
            backend.run(torch.zeros(size, model.in_chans, *model.image_size), stitch_id)
        above = memory_mb("RssAnon") - torch_mb
        print_row({**facts, "images": size, "above_torch_mb": above, "ratio": above / union}, options.rows)


def main() -> None:
    """Measure each network."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file for the rows")
    parser.add_argument("--networks", nargs="+", default=["snnet_resnet_18_50", "snnet_deit_tsb"],
                        help="registered names")  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        measure(name, options)


if __name__ == "__main__":
    main()
