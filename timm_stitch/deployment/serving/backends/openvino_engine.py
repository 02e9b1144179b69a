"""OpenVINO on the CPU. Optional (`pip install '.[openvino]'`) and imported only when used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

from ....choices import ServedPrecision
from ...formats import onnx_files, openvino_files
from ...formats.job import Location

FORMATS: dict[ServedPrecision, str] = {"fp32": "openvino", "bf16": "openvino", "int8": "onnx"}
SHARES_PARTS = True
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # of int8: the precision of what is not quantised


def check(precision: ServedPrecision) -> None:
    """Import OpenVINO, and refuse a precision that this processor does not compute in.

    Raises:
        ImportError: if OpenVINO is missing, or for int8 what quantises.
        ValueError: if the processor lacks the precision; OpenVINO would compute in float32 without a word.
    """
    openvino_files.check_packages()
    if precision == "int8":
        onnx_files.check_packages()
    if precision == "bf16":
        abilities = import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in abilities:
            raise ValueError("OpenVINO does not compute in bf16 on this processor: use fp32.")


def version() -> str:
    """Return the engine and its version."""
    return f"openvino {import_module('openvino').__version__.split('-')[0]}"


def compile_stitch(
    folder: Path, location: Location, precision: ServedPrecision, threads: int, batch: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Compile a converted stitch; two threads must not run it at the same time.

    The precision is set in any case: left alone, OpenVINO computes in bf16 where the processor can.
    """
    options = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    return openvino_files.compile_graph(folder, location, options, batch)
