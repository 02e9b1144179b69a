"""Exports stitches as files of OpenVINO's intermediate representation, which share their weights.

The converter is OpenVINO's. A graph refers to its weights by positions in a file, and here all graphs refer to one file
with equal tensors once. Optional (`pip install '.[openvino]'`) and imported only when used.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from .job import Job, Location, Run, locate, require_packages

BATCHES: tuple[str, ...] = ("any", "number")
QUANTIZE: tuple[str, ...] = ()
RUNTIME_OPTIONS: Mapping[str, object] = {"weights": "weights.bin"}
WEIGHTS_FILE = "weights.bin"
_PLACE = re.compile(r'\boffset="(\d+)" size="(\d+)"')  # of a constant
_ALIGNED = 64  # bytes at which tensors begin


def check_packages() -> None:
    """Import OpenVINO, without its telemetry, which would send what is converted to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # its import then fails, as OpenVINO allows
    require_packages(("openvino",), "OpenVINO", "openvino")


def write(job: Job, folder: Path) -> dict[int, Location]:
    """Write one graph per stitch, and the weights of all in one more file, with equal tensors once."""
    locations = {stitch_id: {"file": f"stitch-{stitch_id}.xml"} for stitch_id in job.extracted}
    graphs = ((locations[k]["file"], model, job.shape) for k, model in job.stitches("convert"))
    write_graphs(job, graphs, folder)
    return locations


def write_graphs(job: Job, graphs: Iterable[tuple[str, nn.Module, Sequence[int]]], folder: Path) -> None:
    """Write modules as graphs that share one file of weights.

    Args:
        job: the batch sizes.
        graphs: the name of each file, its module, and the shape of the module's input without the batch.
        folder: the folder.
    """
    check_packages()
    places: dict[bytes, int] = {}
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        for name, module, shape in graphs:
            _share_weights(_converted(job, module, shape), folder / name, weights, places)


def load(folder: Path, location: Location) -> Run:
    """Compile a graph to run on the CPU, in float32 whatever the processor is faster in."""
    run = compile_graph(folder, location, {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: run(images).clone()


def compile_graph(folder: Path, location: Location, options: Mapping[str, object], batch: int | None = None) -> Run:
    """Compile a graph, or an ONNX file, to run on the CPU; two threads must not run it at the same time.

    Args:
        folder: the folder of the graph.
        location: its place there.
        options: properties of OpenVINO's CPU plugin.
        batch: the number of images in every call; default what the graph takes.

    Returns:
        A function of images, whose output is valid until the next call.
    """
    check_packages()
    core: Any = import_module("openvino").Core()
    path = locate(folder, location)
    weights = [] if path.suffix == ".onnx" else [str(folder / WEIGHTS_FILE)]  # an ONNX file names its weights
    graph = core.read_model(str(path), *weights)
    if batch is not None:
        graph.reshape([batch, *list(graph.inputs[0].partial_shape)[1:]])
    request = core.compile_model(graph, "CPU", dict(options)).create_infer_request()

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(request.infer([images.contiguous().numpy()], share_inputs=True, share_outputs=True)[0])

    return run


def _converted(job: Job, module: nn.Module, shape: Sequence[int]) -> Any:
    graph = import_module("openvino").convert_model(job.program(module, shape))
    graph.reshape([-1 if job.batch.kind == "any" else job.batch.smallest, *shape])
    graph.inputs[0].get_tensor().set_names({"images"})
    graph.outputs[0].get_tensor().set_names({"logits"})
    return graph


def _share_weights(graph: Any, path: Path, weights: BinaryIO, places: dict[bytes, int]) -> None:
    """Write a graph whose constants lie in a file that is open, where those of other graphs are already.

    Args:
        graph: the graph.
        path: the file to write it to.
        weights: the file of the weights, to which new ones are appended.
        places: the place of each tensor, by the digest of its bytes.
    """
    with tempfile.TemporaryDirectory() as scratch:
        own, own_weights = Path(scratch) / "graph.xml", Path(scratch) / "graph.bin"
        import_module("openvino").serialize(graph, str(own), str(own_weights))
        data = own_weights.read_bytes()

        def moved(place: re.Match[str]) -> str:
            start, size = int(place[1]), int(place[2])
            tensor = data[start : start + size]
            key = hashlib.sha256(tensor).digest()
            if key not in places:
                weights.write(bytes(-weights.tell() % _ALIGNED))
                places[key] = weights.tell()
                weights.write(tensor)
            return f'offset="{places[key]}" size="{size}"'

        path.write_text(_PLACE.sub(moved, own.read_text(encoding="utf-8")), encoding="utf-8")
