"""Least-squares initialisation: peak memory with few and many images, and time beside the anchors' own passes.

    python benchmarks/speed/least_squares.py --images 100 1000

Each count runs in a process of its own on DeiT-Ti/S/B with random weights at 224 pixels; images are made batch by
batch, so that they take no memory themselves. Prints one JSON line a count, then the ratios.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

import timm_stitch


def batches(count, size):
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, size):
        yield torch.randn(min(size, count - start), 3, 224, 224, generator=generator)


def one(count):
    import timm

    model = timm.create_model("snnet_deit_tsb").eval()
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in batches(count, 16):
            for anchor in model.anchors:
                anchor.forward_features(batch)
    forward = time.perf_counter() - began
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    timm_stitch.least_squares_init(model, batches(count, 16))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {"images": count, "peak_mb": peak, "peak_mb_forward_alone": before}
    print(json.dumps(row | {"seconds": seconds, "seconds_forward_alone": forward, "ratio": seconds / forward}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one)
    rows = []
    for count in options.images:
        out = subprocess.run(
            [sys.executable, __file__, "--one", str(count)], capture_output=True, text=True, check=True
        )
        print(out.stdout.strip(), flush=True)
        rows.append(json.loads(out.stdout))
    first, last = rows[0], rows[-1]
    print(
        f"peak memory {last['images']} against {first['images']} images: {last['peak_mb'] / first['peak_mb']:.3f}; "
        f"time against the anchors' forward passes alone: {last['ratio']:.2f}"
    )


if __name__ == "__main__":
    main()
