"""Programs of `torch.export` as ONNX files that share their weights.

The exporter is torch's, the int8 quantisation onnxruntime's, and onnx_ir writes the weights file. All three are
optional (`pip install 'timm_stitch[export]'`) and imported where they are used.
"""

from __future__ import annotations

import hashlib
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from .program_files import BATCH, Programs, Run

if TYPE_CHECKING:
    import onnx_ir as ir

WEIGHTS_FILE = "weights.bin"
_PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
_INLINE = 256  # bytes below which a tensor stays in its graph: a reference to it would be no shorter


def check_packages() -> None:
    """Import what ONNX needs.

    Raises:
        ImportError: naming all of it.
    """
    try:
        for package in _PACKAGES:
            import_module(package)
    except ImportError as error:
        raise ImportError(f"ONNX needs {', '.join(_PACKAGES)}: pip install 'timm_stitch[export]'.") from error


def write(programs: Programs, shared: Path, quantize: str | None) -> None:
    """One file a stitch, and the weights of all in the shared one, where equal tensors are written once.

    Equal in content: the exporter folds what is done to a weight alone (a transposition, a BatchNorm after a
    convolution) and so names and stores another tensor, but the same one for every stitch.
    """
    import onnx_ir as ir

    kept: dict[tuple[Any, ...], ir.TensorProtocol] = {}
    graphs = {}
    for path, program in programs:
        graph = graphs[path] = _int8(_onnx(program), path.stem) if quantize else _onnx(program)
        for value in graph.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= _INLINE:
                key = tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
                value.const_value = kept.setdefault(key, tensor)
    tensors = list(kept.values())
    written = ir.external_data.convert_tensors_to_external(tensors, shared.parent, shared.name)
    places = {id(tensor): place for tensor, place in zip(tensors, written, strict=True)}
    for path, graph in graphs.items():
        for value in graph.graph.initializers.values():
            value.const_value = places.get(id(value.const_value), value.const_value)
        ir.save(graph, path)


def load(path: Path) -> Run:
    """What runs a file on the CPU."""
    session = import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _onnx(program: ExportedProgram) -> ir.Model:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    found: Any = torch.onnx.export(
        program, dynamo=True, dynamic_shapes=(BATCH,), input_names=["images"], output_names=["logits"],
        optimize=True, verbose=False,
    )  # fmt: skip
    model: ir.Model = found.model
    ClearMetadataAndDocStringPass()(model)
    return model


def _int8(model: ir.Model, name: str) -> ir.Model:
    """Quantise linear layers: weights by channel, activations as they come.

    `reduce_range` uses seven bits, so that no sum overflows on x86 processors without VNNI instructions: the
    outputs measured here are then those to expect elsewhere.
    """
    import onnx_ir as ir
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch:
        whole, typed, small = (Path(scratch) / f"{stage}.onnx" for stage in ("whole", "typed", "small"))
        ir.save(model, whole)
        quant_pre_process(whole, typed, skip_optimization=True, skip_symbolic_shape=True)
        quantize_dynamic(
            typed, small, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        before, after = whole.stat().st_size, small.stat().st_size
        if after > before / 2:
            raise ValueError(
                f"int8 would make {after:,} bytes of {name}'s {before:,}: it quantises linear layers, and "
                "most of this stitch is something else. Export it in float32."
            )
        return ir.load(small)
