"""What a stitch of an encoder of transformers costs at batch 1, beside the bare model with as many layers.

    OMP_NUM_THREADS=1 python benchmarks/speed/text_overhead.py

The processor's time of interleaved calls of 12 layers of 384 on one text; ratios are those of neighbours, with their
quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

import timm_stitch


def bert(depth: int) -> Any:
    """A BERT of the width of MiniLM, with random weights."""
    config = BertConfig(hidden_size=384, num_hidden_layers=depth, num_attention_heads=12, intermediate_size=1536)
    return BertForSequenceClassification(config).eval()


@torch.inference_mode()
def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    anchors = [bert(12), bert(12)]
    ids = torch.randint(5, 30_000, (1, args.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    net = timm_stitch.stitch(anchors, kernel_size=1).eval()
    stitch = [stitch for stitch in net.plan if not stitch.is_anchor][5]
    runs = sum(segment.stop - segment.start for segment in stitch.segments)
    bare = anchors[0] if runs == 12 else bert(runs)
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "an anchor alone": (lambda: net(**batch, stitch_id=0), lambda: anchors[0](**batch)),
        f"{stitch.name}, {runs} layers": (lambda: net(**batch, stitch_id=stitch.stitch_id), lambda: bare(**batch)),
    }
    spent: dict[str, list[list[float]]] = {name: [[], []] for name in pairs}
    for turn in range(args.rounds):
        for name, calls in pairs.items():
            for which in (0, 1) if turn % 2 else (1, 0):
                began = time.process_time()
                calls[which]()
                spent[name][which].append(1e3 * (time.process_time() - began))
    for name, (ours, theirs) in spent.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
        print(
            f"{name}: {statistics.median(ours):.2f} ms beside {statistics.median(theirs):.2f} ms, "
            f"{middle:.3f} of it ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
