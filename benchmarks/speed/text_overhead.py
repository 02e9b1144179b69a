"""What does a stitch of a transformers encoder cost at batch 1, against the bare model with as many layers?

    OMP_NUM_THREADS=1 python benchmarks/speed/text_overhead.py

Calls of 12 layers of 384 on one text take turns. Times are the processor's; ratios are medians of neighbours' with
quartiles.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

import timm_stitch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser
from measuring import compare, time_in_turns


def bert(depth: int) -> Any:
    """A BERT of the width of MiniLM, with random weights."""
    config = BertConfig(hidden_size=384, num_hidden_layers=depth, num_attention_heads=12, intermediate_size=1536)
    return BertForSequenceClassification(config).eval()


@torch.inference_mode()
def main() -> None:
    """Measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=16, help="length of the text")
    parser.add_argument("--rounds", type=int, default=100, help="calls of each side")
    args = parser.parse_args()
    anchors = [bert(12), bert(12)]
    ids = torch.randint(5, 30_000, (1, args.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    net = timm_stitch.stitch(anchors, kernel_size=1).eval()
    stitch = [stitch for stitch in net.plan if not stitch.is_anchor][5]
    runs = sum(segment.stop - segment.start for segment in stitch.segments)
    bare = anchors[0] if runs == 12 else bert(runs)
    pairs = {
        "an anchor alone": (lambda: net(**batch, stitch_id=0), lambda: anchors[0](**batch)),
        f"{stitch.name}, {runs} layers": (lambda: net(**batch, stitch_id=stitch.stitch_id), lambda: bare(**batch)),
    }
    for name, (ours, theirs) in pairs.items():
        times = time_in_turns({"ours": ours, "theirs": theirs}, args.rounds, clock=time.process_time)
        ms = {side: statistics.median(values) for side, values in times.items()}
        ratio = compare(times["ours"], times["theirs"])
        print(f"{name}: {ms['ours']:.2f} ms against {ms['theirs']:.2f} ms, ratio {ratio}", flush=True)


if __name__ == "__main__":
    main()
