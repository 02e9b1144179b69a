"""Stitches as files that run without this package: ONNX, or programs of `torch.export`.

The exporters are torch's, the int8 quantisation is onnxruntime's, and onnx_ir writes the weights file. What is
added: several stitches share one weights file that holds each tensor once, and every file is loaded and compared
with PyTorch before the folder appears.

ONNX and onnxruntime are optional (`pip install 'timm_stitch[export]'`). Imports timm and the layers below.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import ExportedProgram
from tqdm.auto import tqdm

from ..data.dataset import image_config
from ..network.network import SNNet
from ..network.weights import glance

if TYPE_CHECKING:
    import onnx_ir as ir

FORMATS = ("onnx", "program")
MANIFEST_FILE, ONNX_WEIGHTS, PROGRAM_WEIGHTS = "manifest.json", "weights.bin", "weights.safetensors"
_PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
_INLINE = 256  # bytes below which a tensor stays in its graph: a reference to it would be no shorter
_BATCH = {0: torch.export.Dim("batch", max=2**20)}  # torch 2.6 wants a bound

Run = Callable[[Tensor], Tensor]
Programs = Iterable[tuple[Path, ExportedProgram]]


def export(
    model: SNNet,
    folder: str | os.PathLike[str],
    stitch_ids: int | Sequence[int] | None = None,
    *,
    format: str = "onnx",
    quantize: str | None = None,
    images: Tensor | None = None,
    image_size: int | tuple[int, int] | None = None,
    tolerance: float = 1e-4,
    progress: bool = False,
) -> dict[str, Any]:
    """Write stitches as files that run without this package, with one copy of the weights that they share.

    The folder holds `stitch-ID.onnx` (or `.pt2`) for each stitch, the weights file, and `manifest.json`: which
    file is which stitch, what it costs, the shapes, and how images are prepared. The batch is dynamic, the image
    size is not. All is in evaluation mode and float32, whatever the network is in now.

    ONNX files refer to one `weights.bin`. The programs of `torch.export` know no such reference: one alone holds
    its weights, several are written without, beside one `weights.safetensors` to load into them
    (docs/deployment.md shows how, in four lines).

    Args:
        model: the network; it is not changed.
        folder: where; a new or an empty one. It appears complete or not at all.
        stitch_ids: which; default the one that is set.
        format: `"onnx"`, or `"program"` for `torch.export`.
        quantize: `"int8"` for 8-bit weights of linear layers, whose inputs are quantised as they come (dynamic
            quantisation by onnxruntime, so for ONNX alone). Convolutions stay in float32.
        images: prepared images, shape (N, C, H, W), on which int8 is compared with float32.
        image_size: of the images that the files take, one number or (height, width); default the network's.
        tolerance: the most by which a logit in float32 may differ from PyTorch's.
        progress: show a bar.

    Returns:
        What `manifest.json` holds. The row of each stitch has `max_difference`, the largest difference of a logit
        from PyTorch's in float32: on noise in batches of 1 and 3, or with int8 on `images`, and then `agreement`
        too, the share of these images that keep their top class. `bytes` are those of all other files,
        `union_bytes` those of all tensors that these stitches have, each counted once.

    Raises:
        ValueError: if there is no such id, format or quantisation, the images or their size do not fit, int8 would
            leave most of a stitch in float32, or an output differs from PyTorch's by more than `tolerance`.
        OSError: if the folder holds something or cannot be written.
        ImportError: for ONNX without onnx, onnxscript and onnxruntime.
    """
    _check_arguments(format, quantize, images)
    given = [model.stitch_id] if stitch_ids is None else [stitch_ids] if isinstance(stitch_ids, int) else stitch_ids
    ids = [model.plan[k].stitch_id for k in dict.fromkeys(given)]
    if not ids:
        raise ValueError("stitch_ids is empty: give one id or more, or leave it out for the stitch that is set.")
    whole = _prepared(model, image_size)
    parts = {k: whole.extract(k) for k in ids}
    shape = (whole.in_chans, *whole.image_size)
    noise = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).split([1, 3])
    batches = noise if quantize is None or images is None else images.cpu().float().split(32)
    if batches[0].shape[1:] != shape:
        raise ValueError(f"images of shape {tuple(batches[0].shape[1:])} do not fit files for {shape}: resize them.")
    files = {k: f"stitch-{k}.{'onnx' if format == 'onnx' else 'pt2'}" for k in ids}
    rows = {row["stitch_id"]: row for row in whole.stitch_table() if row["stitch_id"] in parts}
    with _appearing(Path(folder)) as beside:
        steps = tqdm(parts.items(), desc="export", unit="stitch", disable=not progress)
        programs = ((beside / files[k], _program(part, shape)) for k, part in steps)
        if format == "onnx":
            _write_onnx(programs, beside / ONNX_WEIGHTS, quantize)
        else:
            _write_programs(programs, beside / PROGRAM_WEIGHTS if len(parts) > 1 else None)
        for k, part in parts.items():
            run = (_open_onnx if format == "onnx" else _open_program)(beside / files[k])
            difference, agreement = _compare(run, part, batches)
            rows[k].update(file=files[k], max_difference=difference)
            if quantize:
                rows[k].update(agreement=agreement, compared_images=sum(map(len, batches)))
            if not difference <= (float("inf") if quantize else tolerance):  # NaN neither
                raise ValueError(
                    f"stitch {k} as {format} differs from PyTorch by up to {difference:.1e}, more than "
                    f"tolerance={tolerance:.0e}: nothing was written. Give a larger tolerance if that will do."
                )
        union = {name: tensor for part in parts.values() for name, tensor in part.state_dict().items()}
        manifest = {
            "version": 1,
            "format": format,
            "precision": quantize or "float32",
            "input": {"name": "images", "dtype": "float32", "shape": ["batch", *shape]},
            "output": {"name": "logits", "dtype": "float32", "shape": ["batch", whole.num_classes]},
            "preprocessing": {k: v for k, v in image_config(whole).items() if k != "input_size"},
            "bytes": sum(file.stat().st_size for file in beside.iterdir()),
            "union_bytes": sum(tensor.nbytes for tensor in union.values()),
            "stitches": [rows[k] for k in ids],
        }
        (beside / MANIFEST_FILE).write_text(text := json.dumps(manifest, indent=1), encoding="utf-8")
    return json.loads(text)


def _check_arguments(format: str, quantize: str | None, images: Tensor | None) -> None:
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: expected 'onnx' or 'program'.")
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} is unknown: expected 'int8', or None for float32.")
    if quantize and (format != "onnx" or images is None or len(images) == 0):
        raise ValueError(
            f"quantize={quantize!r} with format={format!r} and {0 if images is None else len(images)} images: expected "
            "format='onnx', and images, shape (N, C, H, W), a few hundred, on which to measure what it changes."
        )
    try:
        for package in _PACKAGES if format == "onnx" else ():
            import_module(package)
    except ImportError as error:
        raise ImportError(f"ONNX needs {', '.join(_PACKAGES)}: pip install 'timm_stitch[export]'.") from error


def _prepared(model: SNNet, image_size: int | tuple[int, int] | None) -> SNNet:
    """A copy in float32 and evaluation mode, on the CPU, for images of that size."""
    whole = copy.deepcopy(model).cpu().float().eval()
    whole.forget()
    whole.remember(({"stitch_id": k, **row} for k, row in model.known_rows().items()), weights=glance(whole))
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or whole.image_size)
    if size != whole.image_size:
        cfg = getattr(whole, "pretrained_cfg", None) or {}
        whole.pretrained_cfg = {**cfg, "input_size": (whole.in_chans, *size)}  # type: ignore[assignment]
        whole.forget()  # it was measured at the other size
    if size != whole.image_size:
        raise ValueError(
            f"image_size={size} does not fit: these anchors take {whole.image_size}. Call model.set_input_size first."
        )
    return whole


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when all went well, and else leaves no trace."""
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{str(folder)!r} holds something: an export has a folder of its own, give a new one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    beside.mkdir()
    try:
        yield beside
        if folder.exists():
            folder.rmdir()  # refuses, if something has come into it meanwhile
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _compare(run: Run, part: nn.Module, batches: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of any logit, and the share of images with the same top class."""
    with torch.inference_mode():
        theirs = torch.cat([run(batch) for batch in batches])
        ours = torch.cat([part(batch) for batch in batches])
    return float((theirs - ours).abs().max()), float((theirs.argmax(-1) == ours.argmax(-1)).double().mean())


def _program(part: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    program = torch.export.export(part, (torch.zeros(2, *shape),), dynamic_shapes=(_BATCH,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths on this machine
    return program


# ── torch.export ──────────────────────────────────────────────────────────────────────────────────


def _write_programs(programs: Programs, shared: Path | None) -> None:
    """One file a stitch; where there is to be a shared file, all weights in that."""
    weights: dict[str, Tensor] = {}
    for path, program in programs:
        if shared:
            for name, tensor in program.state_dict.items():
                weights[name] = tensor.detach().contiguous()
                empty = tensor.detach().to("meta")
                program.state_dict[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        torch.export.save(program, path)
    if shared:
        save_file(weights, shared)


def _open_program(path: Path) -> Run:
    program = torch.export.load(path)
    module, shared = program.module(), path.with_name(PROGRAM_WEIGHTS)
    if shared.exists():
        weights = load_file(shared)
        module.load_state_dict({name: weights[name] for name in program.state_dict}, assign=True)
    return module


# ── ONNX ──────────────────────────────────────────────────────────────────────────────────────────


def _write_onnx(programs: Programs, shared: Path, quantize: str | None) -> None:
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


def _open_onnx(path: Path) -> Run:
    session = import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _onnx(program: ExportedProgram) -> ir.Model:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    found = torch.onnx.export(
        program, dynamo=True, dynamic_shapes=(_BATCH,), input_names=["images"], output_names=["logits"],
        optimize=True, verbose=False,
    )  # fmt: skip
    ClearMetadataAndDocStringPass()(found.model)  # type: ignore[union-attr]
    return found.model  # type: ignore[union-attr]


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
