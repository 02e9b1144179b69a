"""Exports stitches as ONNX files that share their weights.

The exporter is torch's, int8 and float16 are onnxruntime's, and onnx_ir writes the weights file. All three are
optional (`pip install '.[export]'`) and imported only when used.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .job import Job, Location, Run, is_convolutional, locate, require_packages
from .onnx_int8 import WHOLE, quantize_int8

if TYPE_CHECKING:
    import onnx_ir as ir

BATCHES: tuple[str, ...] = ("any", "number")
QUANTIZE: tuple[str, ...] = ("int8", "float16")
RUNTIME_OPTIONS: Mapping[str, object] = {"session_config": {"session.disable_prepacking": "1"}}
WEIGHTS_FILE = "weights.bin"
_INLINE = 256  # bytes below which a tensor stays in its graph: a reference to it would be no shorter


def check_packages() -> None:
    """Import the packages that ONNX needs."""
    require_packages(("onnx", "onnx_ir", "onnxscript", "onnxruntime"), "ONNX", "export")


def write(job: Job, folder: Path) -> dict[int, Location]:
    """Write one file per stitch, and the weights of all in one more, with equal tensors once.

    Tensors are equal by content: the exporter folds operations on a weight alone (a transposition, a BatchNorm after a
    convolution) and so stores another tensor under another name, but the same one for every stitch.
    """
    import onnx_ir as ir

    kept: dict[tuple[object, ...], ir.TensorProtocol] = {}
    graphs = {}
    for stitch_id, model in job.stitches("export"):
        graph = graphs[f"stitch-{stitch_id}.onnx"] = _quantized(_onnx(job, model), job, model, stitch_id)
        for value in graph.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= _INLINE:
                key = tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
                value.const_value = kept.setdefault(key, tensor)
    tensors = list(kept.values())
    written = ir.external_data.convert_tensors_to_external(tensors, folder, WEIGHTS_FILE)
    locations = {id(tensor): location for tensor, location in zip(tensors, written, strict=True)}
    for name, graph in graphs.items():
        for value in graph.graph.initializers.values():
            value.const_value = locations.get(id(value.const_value), value.const_value)
        ir.save(graph, folder / name)
    return {stitch_id: {"file": name} for stitch_id, name in zip(job.extracted, graphs, strict=True)}


def load(folder: Path, location: Location) -> Run:
    """Load a file to run on the CPU."""
    runtime = import_module("onnxruntime")
    session = runtime.InferenceSession(locate(folder, location), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


class _PlainAttention(TorchFunctionMode):
    """Computes attention from products and a softmax, which every converter can take apart."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        others = kwargs.get("is_causal") or kwargs.get("enable_gqa")
        if func is nn.functional.scaled_dot_product_attention and not others:
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: object, **kwargs: Any
) -> Tensor:
    scale = kwargs.get("scale") or query.shape[-1] ** -0.5
    scores = (query * scale) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    out: Tensor = scores.softmax(-1) @ value
    return out


def _onnx(job: Job, model: nn.Module) -> ir.Model:
    try:
        return _exported(job, model)
    except torch.onnx.OnnxExporterError:
        with _PlainAttention():  # torch cannot take apart attention with a bias of positions, as in BEiT
            return _exported(job, model)


def _exported(job: Job, model: nn.Module) -> ir.Model:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    shapes: Any = None if job.batch.kind == "number" else ({0: torch.export.Dim("batch")},)
    exported: Any = torch.onnx.export(
        job.program(model), dynamo=True, dynamic_shapes=shapes, input_names=["images"], output_names=[job.output],
        optimize=True, verbose=False,
    )  # fmt: skip
    graph: ir.Model = exported.model
    ClearMetadataAndDocStringPass()(graph)
    return graph


def _quantized(graph: ir.Model, job: Job, model: nn.Module, stitch_id: int) -> ir.Model:
    """Convert a graph to the job's precision."""
    import onnx_ir as ir

    if job.quantize is None:
        return graph
    with tempfile.TemporaryDirectory() as scratch:
        whole, small = Path(scratch) / "whole.onnx", Path(scratch) / "small.onnx"
        ir.save(graph, whole)
        if job.quantize == "float16":
            _float16(whole, small)
        else:
            quantize_int8(whole, small, job, is_convolutional(model))
            before, after = whole.stat().st_size, small.stat().st_size
            if after > before / 2 and job.quantize != WHOLE:
                raise ValueError(
                    f"int8 would shrink stitch {stitch_id} from {before:,} bytes to {after:,} only: it quantises "
                    "linear layers and convolutions, and most of this stitch is neither. Export it in float32."
                )
        return ir.load(small)


def _float16(whole: Path, small: Path) -> None:
    """Convert weights and sums to 16 bits; images and logits keep 32."""
    onnx, convert = import_module("onnx"), import_module("onnxruntime.transformers.float16")
    onnx.save(convert.convert_float_to_float16(onnx.load(whole), keep_io_types=True), small)
