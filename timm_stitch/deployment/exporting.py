"""Stitches as files that run without this package: ONNX, programs of `torch.export`, ExecuTorch or LiteRT.

What is added to the exporters, which are others': several stitches hold each tensor that they share once, and every
stitch is loaded and compared with PyTorch before the folder appears.

What a format needs beside torch is optional, and named where it is missing.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.dataset import image_config
from ..families.timm_models.network import SNNet
from ..files import whole_folder
from ..plan.frontier import pareto_frontier
from .class_names import class_names
from .formats import executorch_file, litert_file, onnx_files, program_files, web_folder
from .formats.job import Batch, Format, Job, Place, Run

FORMATS: dict[str, Format] = {
    "onnx": onnx_files,
    "program": program_files,
    "executorch": executorch_file,
    "litert": litert_file,
    "web": web_folder,
}
MANIFEST_FILE = "manifest.json"


def export(
    model: SNNet,
    folder: str | os.PathLike[str],
    stitch_ids: int | Sequence[int] | None = None,
    *,
    format: str = "onnx",
    batch_size: int | tuple[int, int] | None = None,
    quantize: str | None = None,
    images: Tensor | None = None,
    image_size: int | tuple[int, int] | None = None,
    tolerance: float = 1e-4,
    progress: bool = False,
) -> dict[str, Any]:
    """Write stitches as files that run without this package, with one copy of the weights that they share.

    The folder holds `manifest.json`, which says where each stitch is, what it costs, the shapes, and how images are
    prepared; and beside it

    - `"onnx"`: `stitch-ID.onnx` for each stitch, which all refer to one `weights.bin`;
    - `"program"`: `stitch-ID.pt2` of `torch.export` for each stitch. These know no such reference: one alone holds its
      weights, several are written without, beside one `weights.safetensors` to load into them;
    - `"executorch"`: one `stitches.pte` for ExecuTorch's XNNPACK backend, with a method `stitch_ID` for each stitch;
    - `"litert"`: one `stitches.tflite` for LiteRT (TensorFlow Lite), with a signature `stitch_ID` for each stitch;
    - `"web"`: a page that runs the stitches in the browser, from any static host (`index.html`).

    docs/deployment.md and docs/on_device.md show how each is used. The image size is fixed. All is in evaluation mode
    and float32, whatever the network is in now.

    Args:
        model: the network; it is not changed.
        folder: where; a new or an empty one. It appears complete or not at all.
        stitch_ids: which; default the one that is set, for `"web"` those of the frontier.
        format: as above.
        batch_size: how many images a call takes: a number, or (smallest, largest) for programs and ExecuTorch.
            Default any number for ONNX and programs, 1 for the others.
        quantize: `"int8"` for 8-bit weights: of linear layers, whose inputs are quantised as they come, and of a
            network that is mostly convolutions also of these, with the ranges of activations that `images` give.
            `"float16"` for ONNX on GPUs. Not for programs.
        images: prepared images, shape (N, C, H, W), on which what is quantised is compared with float32.
        image_size: of the images that the files take, one number or (height, width); default the network's.
        tolerance: the most by which a logit in float32 may differ from PyTorch's.
        progress: show a bar.

    Returns:
        What `manifest.json` holds. The row of each stitch has `max_difference`, the largest difference of a logit
        from PyTorch's in float32: on noise at the smallest and a larger number of images, or what is quantised on
        `images`, and then `agreement` too, the share of these images that keep their top class. `bytes` are those of
        all other files, `union_bytes` those of all tensors that these stitches have, each counted once.

    Raises:
        ValueError: if there is no such id, format or quantisation, the batch, the images or their size do not fit,
            int8 would leave most of a stitch in float32, or an output differs from PyTorch's by more than `tolerance`.
        OSError: if the folder holds something or cannot be written.
        ImportError: without what the format needs, naming it.
    """
    _check_arguments(format, quantize, images)
    batch, ids = _batch(format, batch_size), _ids(model, stitch_ids, format)
    whole = _prepared(model, image_size)
    compared = images.cpu().float() if quantize and images is not None else None
    job = Job(whole, {stitch_id: whole.extract(stitch_id) for stitch_id in ids}, batch, quantize, compared, progress)
    _check_images(job)
    table = {row["stitch_id"]: row for row in whole.stitch_table()}
    with whole_folder(folder) as beside:
        places = FORMATS[format].write(job, beside)
        rows = [
            {**table[stitch_id], **place, **_differences(job, stitch_id, format, beside, place, tolerance)}
            for stitch_id, place in places.items()
        ]
        manifest = json.dumps(_manifest(job, rows, format, beside), indent=1)
        (beside / MANIFEST_FILE).write_text(manifest, encoding="utf-8")
    return dict(json.loads(manifest))


def _check_arguments(format: str, quantize: str | None, images: Tensor | None) -> None:
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: expected one of {', '.join(map(repr, FORMATS))}.")
    possible = FORMATS[format].QUANTIZE
    if quantize is not None and quantize not in possible:
        raise ValueError(
            f"quantize={quantize!r} does not fit format={format!r}: expected "
            f"{' or '.join(map(repr, (*possible, None)))} (float32)."
        )
    if quantize and (images is None or len(images) == 0):
        raise ValueError(
            f"quantize={quantize!r} with no images: give images, shape (N, C, H, W), a few hundred, on which to "
            "measure what it changes."
        )
    FORMATS[format].check_packages()


def _batch(format: str, batch_size: int | Sequence[int] | None) -> Batch:
    """How many images a call takes, as that format can have it."""
    possible = FORMATS[format].BATCHES
    if batch_size is None:
        return Batch(1) if possible[0] == "any" else Batch(1, 1)
    sizes = (batch_size,) if isinstance(batch_size, int) else batch_size
    batch = Batch(sizes[0], sizes[-1]) if len(sizes) in (1, 2) else None
    if batch is None or not 1 <= sizes[0] <= sizes[-1] or batch.kind not in possible:
        wanted = {"any": "None for any number", "number": "a number", "range": "(smallest, largest)"}
        raise ValueError(
            f"batch_size={batch_size} does not fit format={format!r}: expected "
            f"{' or '.join(wanted[kind] for kind in possible)}, from 1."
        )
    return batch


def _ids(model: SNNet, stitch_ids: int | Sequence[int] | None, format: str) -> list[int]:
    """The stitches that are asked for, each once."""
    if stitch_ids is None and format == "web":
        return _frontier(model)
    given = [model.stitch_id] if stitch_ids is None else [stitch_ids] if isinstance(stitch_ids, int) else stitch_ids
    ids = [model.plan[k].stitch_id for k in dict.fromkeys(given)]
    if not ids:
        raise ValueError("stitch_ids is empty: give one id or more, or leave it out for the stitch that is set.")
    return ids


def _frontier(model: SNNet) -> list[int]:
    """The stitches that no other beats at its cost."""
    model.results.check()
    known = [row for row in model.stitch_table() if row.get("top1") is not None]
    if not known:
        raise ValueError("the accuracy of no stitch is known, so there is no frontier: evaluate, or give stitch_ids.")
    return [row["stitch_id"] for row in pareto_frontier(known)]


def _prepared(model: SNNet, image_size: int | tuple[int, int] | None) -> SNNet:
    """A copy in float32 and evaluation mode, on the CPU, for images of that size."""
    whole = copy.deepcopy(model).cpu().float().eval()
    whole.results.adopt(model.results.current_rows())
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or whole.image_size)
    if size != whole.image_size:
        cfg = getattr(whole, "pretrained_cfg", None) or {}
        whole.pretrained_cfg = {**cfg, "input_size": (whole.in_chans, *size)}
        whole.results.clear()  # it was measured at the other size
    if size != whole.image_size:
        raise ValueError(
            f"image_size={size} does not fit: these anchors take {whole.image_size}. Call model.set_input_size first."
        )
    return whole


def _check_images(job: Job) -> None:
    if job.images is not None and job.images.shape[1:] != job.shape:
        raise ValueError(
            f"images of shape {tuple(job.images.shape[1:])} do not fit files for {job.shape}: resize them."
        )


def _differences(job: Job, stitch_id: int, format: str, folder: Path, place: Place, tolerance: float) -> dict[str, Any]:
    """How far a stitch of a folder is from PyTorch, as the manifest has it."""
    difference, agreement = _compare(FORMATS[format].load(folder, place), job.alone[stitch_id], job)
    if not difference <= (float("inf") if job.quantize else tolerance):  # NaN neither
        raise ValueError(
            f"stitch {stitch_id} as {format} differs from PyTorch by up to {difference:.1e}, more than "
            f"tolerance={tolerance:.0e}: nothing was written. Give a larger tolerance if that will do."
        )
    measured = {} if job.images is None else {"agreement": agreement, "compared_images": len(job.images)}
    return {"max_difference": difference, **measured}


def _manifest(job: Job, rows: Sequence[dict[str, Any]], format: str, folder: Path) -> dict[str, Any]:
    """What `manifest.json` holds, of a folder that has all other files."""
    union = {name: tensor for small in job.alone.values() for name, tensor in small.state_dict().items()}
    return {
        "version": 1,
        "format": format,
        "precision": job.quantize or "float32",
        "batch": {"smallest": job.batch.smallest, "largest": job.batch.largest},
        "input": {"name": "images", "dtype": "float32", "shape": [job.batch.axis, *job.shape]},
        "output": {"name": "logits", "dtype": "float32", "shape": [job.batch.axis, job.whole.num_classes]},
        "preprocessing": {k: v for k, v in image_config(job.whole).items() if k != "input_size"},
        "labels": class_names(job.whole),
        "to_share_weights": FORMATS[format].TO_SHARE,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "union_bytes": sum(tensor.nbytes for tensor in union.values()),
        "stitches": rows,
    }


def _compare(run: Run, model: nn.Module, job: Job) -> tuple[float, float]:
    """The largest difference of any logit, and the share of images with the same top class."""
    batches = job.noise() if job.images is None else job.batches(job.images)
    with torch.inference_mode():
        both = [(run(batch), model(batch)) for batch in batches]
    theirs, ours = torch.cat([pair[0] for pair in both]), torch.cat([pair[1] for pair in both])
    return float((theirs - ours).abs().max()), float((theirs.argmax(-1) == ours.argmax(-1)).double().mean())
