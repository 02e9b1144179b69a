"""Stitches as one program of ExecuTorch, a method each, with the weights of all of them once.

Lowering, quantisation and runtime are ExecuTorch's, for its XNNPACK backend. Optional
(`pip install 'timm_stitch[executorch]'`) and imported where it is used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from tqdm.auto import tqdm

from .job import Job, Place, Run, is_convolutional, need, with_plain_attention

BATCHES: tuple[str, ...] = ("number", "range")
QUANTIZE: tuple[str, ...] = ("int8",)
TO_SHARE: dict[str, Any] = {"backend": "XnnpackBackend", "options": {"weight_cache_enabled": True}}
_FILE = "stitches.pte"


def check_packages() -> None:
    """Import what ExecuTorch needs."""
    need(("executorch", "torchao"), "format='executorch'", "executorch")


def write(job: Job, folder: Path) -> dict[int, Place]:
    """One file with a method for each stitch."""
    programs = {}
    for stitch_id, model in job.stitches("capture"):
        with_plain_attention(model)
        programs[f"stitch_{stitch_id}"] = _int8(job, model) if job.quantize else job.program(model)
    with (folder / _FILE).open("wb") as file:
        _lowered(programs, job.progress).write_to_file(file)
    return {stitch_id: {"file": _FILE, "method": f"stitch_{stitch_id}"} for stitch_id in job.alone}


def load(folder: Path, place: Place) -> Run:
    """What runs a method with ExecuTorch's runtime."""
    runtime = import_module("executorch.runtime").Runtime.get()
    method = runtime.load_program(folder / place["file"]).load_method(place["method"])

    def run(images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = method.execute([images.contiguous()])[0]
        return found.clone()  # what it gives lies in memory of its own that the next call writes to

    return run


def _lowered(programs: dict[str, ExportedProgram], progress: bool) -> Any:
    """The programs for XNNPACK, as one; that takes half a minute a stitch."""
    exir = import_module("executorch.exir")
    partition = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    bar = tqdm(total=len(programs) + 1, desc="lower", unit="step", disable=not progress)

    class Partitioner(partition.XnnpackPartitioner):  # type: ignore[name-defined]
        """XNNPACK's, which moves the bar."""

        def partition(self, exported_program: ExportedProgram) -> Any:
            bar.update()
            return super().partition(exported_program)

    with bar:
        edge = exir.to_edge_transform_and_lower(programs, partitioner={name: [Partitioner()] for name in programs})
        whole = edge.to_executorch()
        bar.update()
    return whole


def _int8(job: Job, model: nn.Module) -> ExportedProgram:
    """A program with 8-bit weights: of convolutions with ranges seen on the images, else of linear layers alone."""
    xnnpack = import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = import_module("torchao.quantization.pt2e.quantize_pt2e")
    static = is_convolutional(model)
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=not static)
    prepared = pt2e.prepare_pt2e(job.program(model).module(), xnnpack.XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for batch in job.calibration() if static else job.noise()[:1]:
            prepared(batch)
    return job.program(pt2e.convert_pt2e(prepared))
