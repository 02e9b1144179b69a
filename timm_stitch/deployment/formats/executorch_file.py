"""Exports stitches as one program of ExecuTorch, a method each, with the weights of all of them once.

Lowering, quantisation and runtime are ExecuTorch's, for its XNNPACK backend. Optional
(`pip install '.[executorch]'`) and imported only when used.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ...progress import progress_bar
from .job import Job, Location, Run, disable_fused_attention, is_convolutional, locate, require_packages

BATCHES: tuple[str, ...] = ("number", "range")
QUANTIZE: tuple[str, ...] = ("int8",)
RUNTIME_OPTIONS: Mapping[str, object] = {"backend": "XnnpackBackend", "options": {"weight_cache_enabled": True}}
_FILE = "stitches.pte"


def check_packages() -> None:
    """Import the packages that ExecuTorch needs."""
    require_packages(("executorch", "torchao"), "format='executorch'", "executorch")


def write(job: Job, folder: Path) -> dict[int, Location]:
    """Write one file with a method for each stitch."""
    programs = {}
    for stitch_id, model in job.stitches("capture"):
        disable_fused_attention(model)
        programs[f"stitch_{stitch_id}"] = _int8(job, model) if job.quantize else job.program(model)
    with (folder / _FILE).open("wb") as file:
        _lowered(programs, job.progress).write_to_file(file)
    return {stitch_id: {"file": _FILE, "method": f"stitch_{stitch_id}"} for stitch_id in job.extracted}


def load(folder: Path, location: Location) -> Run:
    """Load a method with ExecuTorch's runtime."""
    runtime = import_module("executorch.runtime").Runtime.get()
    method = runtime.load_program(locate(folder, location)).load_method(location["method"])

    def run(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = method.execute([images.contiguous()])[0]
        return logits.clone()  # the next call writes to the same memory

    return run


def _lowered(programs: dict[str, ExportedProgram], progress: bool) -> Any:
    """Lower the programs to XNNPACK, as one; that takes half a minute a stitch."""
    exir = import_module("executorch.exir")
    partition = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    bar = progress_bar(total=len(programs) + 1, desc="lower", unit="step", progress=progress)

    class Partitioner(partition.XnnpackPartitioner):  # type: ignore[name-defined]
        """XNNPACK's partitioner, which moves the bar."""

        def partition(self, exported_program: ExportedProgram) -> Any:
            bar.update()
            return super().partition(exported_program)

    with bar:
        edge = exir.to_edge_transform_and_lower(programs, partitioner={name: [Partitioner()] for name in programs})
        whole = edge.to_executorch()
        bar.update()
    return whole


def _int8(job: Job, model: nn.Module) -> ExportedProgram:
    """Quantise to 8-bit weights: convolutions with ranges measured on the images, or linear layers alone."""
    xnnpack = import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = import_module("torchao.quantization.pt2e.quantize_pt2e")
    static = is_convolutional(model)
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=not static)
    prepared = pt2e.prepare_pt2e(job.program(model).module(), xnnpack.XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for batch in job.calibration() if static else job.noise()[:1]:
            prepared(batch)
    return job.program(pt2e.convert_pt2e(prepared))
