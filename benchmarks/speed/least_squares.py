"""How much time and memory does least-squares initialisation take, with few and with many images?

    python benchmarks/speed/least_squares.py --images 100 1000

Each count runs in a process of its own on DeiT-Ti/S/B with random weights at 224 pixels; images are made batch by
batch, so that they take no memory themselves. The anchors' forward passes run in turn with the initialisation, batch by
batch, and both are measured in processor time, so that other programs hardly disturb the ratio. Prints one JSON line a
count, then the ratios.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import timm
import torch

import timm_stitch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import memory_mb, time_result
from processes import run_script


def batches(count, size, pixels):
    """Make random images, batch by batch."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, size):
        yield torch.randn(min(size, count - start), 3, *pixels, generator=generator)


@torch.inference_mode()
def run_anchors(model, batch):
    """Run images through every anchor."""
    for anchor in model.anchors:
        anchor.forward_features(batch)


def measure(name, count):
    """Measure one count of images in this process."""
    model = timm.create_model(name).eval()
    forward, peaks = [], []

    def batches_after_anchors():
        for batch in batches(count, 16, model.image_size):
            _, seconds = time_result(partial(run_anchors, model, batch), time.process_time)
            forward.append(seconds)
            peaks.append(memory_mb())
            yield batch

    initialize = partial(timm_stitch.least_squares_init, model, batches_after_anchors())
    _, both = time_result(initialize, time.process_time)
    alone = sum(forward)
    row = {"images": count, "peak_mb": memory_mb(), "peak_mb_forward_alone": peaks[0], "seconds": both - alone}
    print_row(row | {"seconds_forward_alone": alone, "ratio": (both - alone) / alone})


def main():
    """Measure every count."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="snnet_deit_tsb", help="name of a registered network")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000], help="counts of images")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return measure(options.model, options.one)
    rows = []
    for count in options.images:
        rows.append(run_script(__file__, "--model", options.model, "--one", count))
        print_row(rows[-1])
    first, last = rows[0], rows[-1]
    print(
        f"peak memory {last['images']} against {first['images']} images: {last['peak_mb'] / first['peak_mb']:.3f}; "
        f"time against the anchors' forward passes alone: {last['ratio']:.2f}"
    )


if __name__ == "__main__":
    main()
