"""Loading: bytes for one stitch against the whole DeiT network, and time and memory of loading the whole.

    python benchmarks/speed/loading.py --stitch 24

Weights are random, in a file of the network's own size. Each way of loading runs in a process of its own; memory is
the peak above what the process held after its imports. Prints one JSON line a way.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

import timm_stitch
from timm_stitch.hub.safetensors_ranges import merged, parse_header


def memory(field):
    """MB from the kernel: VmRSS now, VmHWM at most. (getrusage would give the parent's peak where that was higher.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def load(way, path):
    if way == "create_model":
        overlay = {"file": str(path)}
        return timm.create_model("snnet_deit", pretrained=True, pretrained_cfg_overlay=overlay, stitched_norm=True)
    if way == "from_hub(extract=24)":
        return timm_stitch.from_hub(path.parent, extract=24)
    model = timm.create_model("snnet_deit", stitched_norm=True)
    model.load_state_dict(torch.load(path.with_suffix(".pth"), weights_only=True))
    return model


def one(way, path):
    timm.create_model("snnet_deit", device="meta")  # imports and caches that any way needs
    before, began = memory("VmRSS"), time.perf_counter()
    model = load(way, path)
    seconds = time.perf_counter() - began
    touched = sum(float(p.detach().flatten()[::1024].sum()) for p in model.parameters())  # pages of a mapped file
    row = {"way": way, "file": path.suffix, "seconds": round(seconds, 2), "peak_mb": round(memory("VmHWM") - before)}
    print(json.dumps(row | {"finite": touched == touched}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stitch", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one[0], Path(options.one[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        model = timm.create_model("snnet_deit")
        timm_stitch.save_pretrained(model, folder)
        torch.save(model.state_dict(), path.with_suffix(".pth"))
        save_file(model.state_dict(), path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = parse_header(file.read(length), 8 + length, path.stat().st_size)
        used = {name: entries[name] for name in model.extract(options.stitch).state_dict()}
        needed = sum(entry.stop - entry.start for entry in used.values())
        ranges = merged(used, 8 + length)
        fetched = 8 + length + sum(stop - start for start, stop in ranges)
        row = {"stitch": options.stitch, "needed": needed, "fetched": fetched, "whole": path.stat().st_size}
        print(json.dumps(row | {"over": round(fetched / needed - 1, 4), "requests": len(ranges) + 2}), flush=True)
        del model
        for way, file in (("torch.load", ".safetensors"), ("create_model", ".pth"), ("create_model", ".safetensors"),
                          ("from_hub(extract=24)", ".safetensors")):  # fmt: skip
            for _ in range(options.repeat):
                command = [sys.executable, __file__, "--one", way, str(path.with_suffix(file))]
                print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
