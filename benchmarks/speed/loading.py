"""How many bytes does one stitch of a network need, and how long and how much memory does loading the whole take?

    python benchmarks/speed/loading.py --stitch 24

Weights are random, in a file of the network's own size. Each way of loading runs in a process of its own; memory is
the peak above what the process held after its imports. Prints one JSON line a way.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

import timm_stitch
from timm_stitch.hub.safetensors_ranges import merge_ranges, parse_header

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import memory_mb, time_result
from processes import run_script


def load(way, path):
    """Load the network, or a stitch of it, in one way."""
    if way == "create_model":
        overlay = {"file": str(path)}
        return timm.create_model("snnet_deit", pretrained=True, pretrained_cfg_overlay=overlay, stitched_norm=True)
    if way == "from_hub(extract=24)":
        return timm_stitch.from_hub(path.parent, extract=24)
    model = timm.create_model("snnet_deit", stitched_norm=True)
    model.load_state_dict(torch.load(path.with_suffix(".pth"), weights_only=True))
    return model


def measure(way, path):
    """Measure one way of loading in this process."""
    timm.create_model("snnet_deit", device="meta")  # imports and caches that any way needs
    before = memory_mb("VmRSS")
    model, seconds = time_result(lambda: load(way, path))
    touched = sum(float(p.detach().flatten()[::1024].sum()) for p in model.parameters())  # pages of a mapped file
    row = {"way": way, "file": path.suffix, "seconds": round(seconds, 2), "peak_mb": round(memory_mb() - before)}
    print_row(row | {"finite": touched == touched})


def main():
    """Count bytes, then measure every way of loading."""
    parser = make_parser(__doc__)
    parser.add_argument("--stitch", type=int, default=24, help="id of the stitch whose bytes are counted")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return measure(options.one[0], Path(options.one[1]))
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
        ranges = merge_ranges(used, 8 + length)
        fetched = 8 + length + sum(stop - start for start, stop in ranges)
        row = {"stitch": options.stitch, "needed": needed, "fetched": fetched, "whole": path.stat().st_size}
        print_row(row | {"over": round(fetched / needed - 1, 4), "requests": len(ranges) + 2})
        del model
        ways = (("torch.load", ".safetensors"), ("create_model", ".pth"), ("create_model", ".safetensors"),
                ("from_hub(extract=24)", ".safetensors"))  # fmt: skip
        for _ in range(options.repeat):
            for way, file in ways:
                print_row(run_script(__file__, "--one", way, path.with_suffix(file)))


if __name__ == "__main__":
    main()
