"""Stitches as files that run without this package: ONNX, or programs of `torch.export`.

What is added to the exporters of torch: several stitches share one weights file that holds each tensor once, and
every file is loaded and compared with PyTorch before the folder appears.

ONNX and onnxruntime are optional (`pip install 'timm_stitch[export]'`). Imports torch and the layers below.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.dataset import image_config
from ..files import whole_folder
from ..network.network import SNNet
from ..network.weights import glance
from . import onnx_files, program_files
from .program_files import Run, make_program

FORMATS = ("onnx", "program")
MANIFEST_FILE = "manifest.json"


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
    ids = _ids(model, stitch_ids)
    whole = _prepared(model, image_size)
    job = _Job(whole, {stitch_id: whole.extract(stitch_id) for stitch_id in ids}, format, quantize)
    batches = _batches(job.shape, images if quantize else None)
    with whole_folder(folder) as beside:
        files = _write(job, beside, progress)
        rows = [_row(job, stitch_id, file, batches, tolerance) for stitch_id, file in files.items()]
        manifest = json.dumps(_manifest(job, rows, beside), indent=1)
        (beside / MANIFEST_FILE).write_text(manifest, encoding="utf-8")
    return dict(json.loads(manifest))


@dataclass(frozen=True)
class _Job:
    """What is exported, and as what.

    Args:
        whole: the network, as `_prepared` gives it.
        alone: each stitch by itself, by its id.
        format, quantize: as in `export`.
    """

    whole: SNNet
    alone: Mapping[int, SNNet]
    format: str
    quantize: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return (self.whole.in_chans, *self.whole.image_size)


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
    if format == "onnx":
        onnx_files.check_packages()


def _ids(model: SNNet, stitch_ids: int | Sequence[int] | None) -> list[int]:
    """The stitches that are asked for, each once."""
    given = [model.stitch_id] if stitch_ids is None else [stitch_ids] if isinstance(stitch_ids, int) else stitch_ids
    ids = [model.plan[k].stitch_id for k in dict.fromkeys(given)]
    if not ids:
        raise ValueError("stitch_ids is empty: give one id or more, or leave it out for the stitch that is set.")
    return ids


def _prepared(model: SNNet, image_size: int | tuple[int, int] | None) -> SNNet:
    """A copy in float32 and evaluation mode, on the CPU, for images of that size."""
    whole = copy.deepcopy(model).cpu().float().eval()
    whole.forget()
    whole.remember(({"stitch_id": k, **row} for k, row in model.known_rows().items()), weights=glance(whole))
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or whole.image_size)
    if size != whole.image_size:
        cfg = getattr(whole, "pretrained_cfg", None) or {}
        whole.pretrained_cfg = {**cfg, "input_size": (whole.in_chans, *size)}
        whole.forget()  # it was measured at the other size
    if size != whole.image_size:
        raise ValueError(
            f"image_size={size} does not fit: these anchors take {whole.image_size}. Call model.set_input_size first."
        )
    return whole


def _batches(shape: tuple[int, ...], images: Tensor | None) -> Sequence[Tensor]:
    """What the files are compared with PyTorch on: the images, or noise in batches of 1 and 3."""
    if images is None:
        return torch.split(torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)), [1, 3])
    if images.shape[1:] != shape:
        raise ValueError(f"images of shape {tuple(images.shape[1:])} do not fit files for {shape}: resize them.")
    return torch.split(images.cpu().float(), 32)


def _write(job: _Job, folder: Path, progress: bool) -> dict[int, Path]:
    """Write the file of each stitch, and what they share; returns where each is."""
    files = {k: folder / f"stitch-{k}.{'onnx' if job.format == 'onnx' else 'pt2'}" for k in job.alone}
    steps = tqdm(job.alone.items(), desc="export", unit="stitch", disable=not progress)
    programs = ((files[k], make_program(small, job.shape)) for k, small in steps)
    if job.format == "onnx":
        onnx_files.write(programs, folder / onnx_files.WEIGHTS_FILE, job.quantize)
    else:
        program_files.write(programs, folder / program_files.WEIGHTS_FILE if len(files) > 1 else None)
    return files


def _row(job: _Job, stitch_id: int, file: Path, batches: Sequence[Tensor], tolerance: float) -> dict[str, Any]:
    """What the manifest says of a stitch: its row of the table, its file, and how far that is from PyTorch."""
    run = onnx_files.load(file) if job.format == "onnx" else program_files.load(file)
    difference, agreement = _compare(run, job.alone[stitch_id], batches)
    if not difference <= (float("inf") if job.quantize else tolerance):  # NaN neither
        raise ValueError(
            f"stitch {stitch_id} as {job.format} differs from PyTorch by up to {difference:.1e}, more than "
            f"tolerance={tolerance:.0e}: nothing was written. Give a larger tolerance if that will do."
        )
    row = next(row for row in job.whole.stitch_table() if row["stitch_id"] == stitch_id)
    row |= {"file": file.name, "max_difference": difference}
    return row | ({"agreement": agreement, "compared_images": sum(map(len, batches))} if job.quantize else {})


def _manifest(job: _Job, rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What `manifest.json` holds, of a folder that has all other files."""
    union = {name: tensor for small in job.alone.values() for name, tensor in small.state_dict().items()}
    return {
        "version": 1,
        "format": job.format,
        "precision": job.quantize or "float32",
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", *job.shape]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", job.whole.num_classes]},
        "preprocessing": {k: v for k, v in image_config(job.whole).items() if k != "input_size"},
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "union_bytes": sum(tensor.nbytes for tensor in union.values()),
        "stitches": rows,
    }


def _compare(run: Run, model: nn.Module, batches: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference of any logit, and the share of images with the same top class."""
    with torch.inference_mode():
        theirs = torch.cat([run(batch) for batch in batches])
        ours = torch.cat([model(batch) for batch in batches])
    return float((theirs - ours).abs().max()), float((theirs.argmax(-1) == ours.argmax(-1)).double().mean())
