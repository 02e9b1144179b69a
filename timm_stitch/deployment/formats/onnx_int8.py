"""Quantises ONNX graphs to 8 bits by onnxruntime's tools, which are imported only when used."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .job import Job

WHOLE = "int8_whole"  # weights and activations of all operations, for engines that run on this machine


def int8_weight_bits() -> int:
    """Return the bits of weights that this processor's products of 8 bits add up without overflow."""
    supported = getattr(torch.cpu, "_is_vnni_supported", bool)
    return 8 if supported() else 7


def quantize_int8(whole: Path, small: Path, job: Job, convolutional: bool) -> None:
    """Quantise weights to 8 bits by channel: convolutions with ranges measured on the images, or linear layers.

    `reduce_range` uses seven bits, so that no sum overflows on x86 processors without VNNI instructions: the
    outputs measured here are then those to expect elsewhere. `WHOLE` uses what this processor takes, and measures
    all ranges on the images.
    """
    tools = import_module("onnxruntime.quantization")
    typed = whole.with_name("typed.onnx")
    import_module("onnxruntime.quantization.shape_inference").quant_pre_process(
        whole, typed, skip_optimization=True, skip_symbolic_shape=True
    )
    common = {"per_channel": True, "reduce_range": True, "weight_type": tools.QuantType.QInt8}
    if not convolutional and job.quantize != WHOLE:
        tools.quantize_dynamic(typed, small, op_types_to_quantize=["MatMul"], **common)
        return

    class Images(tools.CalibrationDataReader):  # type: ignore[name-defined]
        """An iterator over batches of images."""

        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(job.calibration())

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    if job.quantize == WHOLE:
        common |= {"reduce_range": int8_weight_bits() < 8, "activation_type": tools.QuantType.QUInt8}
        chosen = None if convolutional else ["MatMul"]  # all, or without a transformer's first and last layer
        tools.quantize_static(typed, small, Images(), op_types_to_quantize=chosen, **common)
        return
    # With what cuts values off after a convolution, whose range would otherwise be that of the values before.
    chosen, fixed = ["Conv", "Gemm", "MatMul", "Relu", "Clip"], {"TensorQuantOverrides": _scales(typed)}
    tools.quantize_static(typed, small, Images(), op_types_to_quantize=chosen, extra_options=fixed, **common)


def _scales(typed: Path) -> dict[str, list[dict[str, object]]]:
    """Fix the steps of convolutions' weights that have channels with tiny weights but a large bias.

    A bias has 32 bits in steps of the weights' step times the input's. If that is too little, onnxruntime enlarges the
    weights' steps by the inputs that it sees; stitches would then no longer have the same weights.
    """
    onnx = import_module("onnx")
    graph = onnx.load(typed).graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    overrides: dict[str, list[dict[str, object]]] = {}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and {*node.input[1:]} <= {*values}:
            weight, bias = (values[name] for name in node.input[1:])
            steps, least = abs(weight).reshape(len(weight), -1).max(1) / 64, abs(bias) * 1e-6  # seven bits
            if (steps < least).any():
                overrides[node.input[1]] = [
                    {"axis": 0, "scale": np.float32(max(pair)), "zero_point": np.int8(0)}
                    for pair in zip(steps, least, strict=True)
                ]
    return overrides
