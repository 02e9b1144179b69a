"""ONNX Runtime on the CPU. Optional (`pip install '.[onnxruntime]'`) and imported only when used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from ....choices import ServedPrecision
from ...formats import onnx_files
from ...formats.job import Location, locate

FORMATS: dict[ServedPrecision, str] = {"fp32": "onnx", "int8": "onnx"}
SHARES_PARTS = False


def check(precision: ServedPrecision) -> None:
    """Import ONNX Runtime and what exports for it; an ImportError names what is missing."""
    onnx_files.check_packages()


def version() -> str:
    """Return the engine and its version."""
    return f"onnxruntime {import_module('onnxruntime').__version__}"


def compile_stitch(
    folder: Path, location: Location, precision: ServedPrecision, threads: int, batch: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Open a converted stitch on its own number of threads, which are not torch's; it takes any batch."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = runtime.InferenceSession(locate(folder, location), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])

    return run
