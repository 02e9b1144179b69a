"""Hold a latency target on a machine whose load changes: `make quickstart`, then `python examples/under_load.py`.

A second process loads every core in some phases and none in others. Each request is a batch of test images. The
controller's stitch and some fixed ones take every request in turn, so all of them meet the same load.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from pathlib import Path

import timm
import torch
from quickstart import load_images

import timm_stitch


def burn(busy: multiprocessing.Event) -> None:
    """Load every core while told to."""
    torch.set_num_threads(os.cpu_count() or 1)
    a = torch.randn(1024, 1024)
    while True:
        if busy.wait(timeout=60):
            a @ a


def main() -> None:
    """Profile, run requests under changing load, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="local-dir:quickstart-output/snnet")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--phase", type=int, default=100, help="requests between two changes of the load")
    parser.add_argument("--threads", type=int, default=1, help="on shared cores several wait for the slowest of them")
    parser.add_argument("--target", type=float, help="ms; default 1.25 times the largest anchor's on the idle machine")
    parser.add_argument("--trace", type=Path, help="write each request's slowdown here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _, _, images, labels = load_images(Path(__file__).parent / "data/fashion_mnist_10k.npz")
    model = timm.create_model(options.model, pretrained=True).eval()
    rows = timm_stitch.profile(model, options.batch_size, repeats=30)
    latency = {row["stitch_id"]: row["latency_ms"] for row in rows}
    target = options.target or 1.25 * max(latency.values())
    controller = timm_stitch.LatencyController(model, target)
    frontier = controller.table.stitch_ids
    fixed = sorted({frontier[round(i * (len(frontier) - 1) / 3)] for i in range(4)}, key=frontier.index)
    within, right = dict.fromkeys(["controller", *fixed], 0), dict.fromkeys(["controller", *fixed], 0)
    trace, levels = [], []

    context = multiprocessing.get_context("spawn")
    busy = context.Event()
    load = context.Process(target=burn, args=(busy,), daemon=True)
    load.start()
    with torch.inference_mode():
        for number in range(options.requests):
            if number % options.phase == 0:
                (busy.set if number // options.phase % 2 else busy.clear)()
                time.sleep(0.5)
            chosen = torch.arange(number * options.batch_size, (number + 1) * options.batch_size) % len(images)
            x, y = images[chosen], labels[chosen]
            for who in ("controller", *fixed):
                stitch_id = controller.stitch_id if who == "controller" else who
                began = time.perf_counter()
                logits = model(x, stitch_id=stitch_id)
                spent = 1e3 * (time.perf_counter() - began)
                within[who] += spent <= target
                right[who] += int((logits.argmax(-1) == y).sum())
                if who == "controller":
                    trace.append(round(spent / latency[stitch_id], 2))
                    levels.append(frontier.index(stitch_id))
                    controller.observe(spent, images=len(x))
    load.kill()
    seen = options.requests * options.batch_size
    print(
        f"target {target:.1f} ms for {options.batch_size} images, {options.requests} requests, half of them under load"
    )
    for who in ("controller", *fixed):
        name = "controller" if who == "controller" else f"stitch {who} ({latency[who]:.1f} ms idle)"
        print(f"  {name:<26} within the target {within[who] / options.requests:6.1%}   top-1 {right[who] / seen:6.1%}")
    print(f"the controller changed stitch {sum(a != b for a, b in itertools.pairwise(levels))} times")
    if options.trace:
        options.trace.write_text(json.dumps(trace))


if __name__ == "__main__":
    main()
