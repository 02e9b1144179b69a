"""Exports stitches as files that run without this package: ONNX, `torch.export`, OpenVINO, ExecuTorch or LiteRT.

The exporters are those of the formats. Here several stitches share each common tensor, and every stitch is loaded and
compared with PyTorch before the folder appears.

The packages of a format are optional; an ImportError names those that are missing.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import Format as PatchLayout
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..choices import ExportFormat, Quantization
from ..errors import one_line_errors
from ..families.registry import require
from ..families.timm_models.network import SNNet
from ..files import whole_folder
from ..plan.frontier import pareto_frontier
from ..plan.metrics import main_score, metric_of
from .class_names import class_names
from .formats import executorch_file, litert_file, onnx_files, openvino_files, program_files, web_folder
from .formats.job import Batch, Format, Job, Location, Run

FORMATS: dict[str, Format] = {
    "onnx": onnx_files,
    "program": program_files,
    "openvino": openvino_files,
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
    format: ExportFormat = "onnx",
    batch_size: int | tuple[int, int] | None = None,
    quantize: Quantization | None = None,
    images: Tensor | None = None,
    image_size: int | tuple[int, int] | None = None,
    tolerance: float = 1e-4,
    progress: bool = False,
) -> dict[str, Any]:
    """Export stitches as files that run without this package, with one copy of the weights that they share.

    The folder holds `manifest.json`, which lists each stitch's file and cost, the shapes, and the preparation of
    images; and

    - `"onnx"`: `stitch-ID.onnx` for each stitch, which all refer to one `weights.bin`;
    - `"program"`: `stitch-ID.pt2` of `torch.export` for each stitch. A single one holds its weights; several share one
      `weights.safetensors` to load into them;
    - `"openvino"`: `stitch-ID.xml` of OpenVINO for each stitch, which all refer to one `weights.bin`;
    - `"executorch"`: one `stitches.pte` for ExecuTorch's XNNPACK backend, with a method `stitch_ID` for each stitch;
    - `"litert"`: one `stitches.tflite` for LiteRT (TensorFlow Lite), with a signature `stitch_ID` for each stitch;
    - `"web"`: a page that runs the stitches in the browser, from any static host (`index.html`).

    docs/deployment.md and docs/on_device.md show how to use each. The image size is fixed. The files are in evaluation
    mode and float32, whatever the network is in now.

    Args:
        model: the network; it is not changed.
        folder: a new or empty folder. It appears complete or not at all.
        stitch_ids: the stitches to export; default the one that is set, for `"web"` those of the frontier.
        format: one of the formats above.
        batch_size: the number of images in a call, or (smallest, largest) for programs and ExecuTorch. Default any
            number for ONNX, OpenVINO and programs, 1 for the others.
        quantize: `"int8"` for 8-bit weights of linear layers, whose inputs are quantised at run time; in a network that
            is mostly convolutions also of these, with ranges of activations measured on `images`. `"float16"` for ONNX
            on GPUs. Not for programs and OpenVINO.
        images: prepared images, shape (N, C, H, W), on which quantised stitches are compared with float32.
        image_size: the size of the images that the files take, one number or (height, width); default the network's.
        tolerance: the largest allowed difference of a float32 logit from PyTorch's.
        progress: whether to show a bar.

    Returns:
        The content of `manifest.json`. The row of each stitch has `max_difference`, the largest difference of a logit
        from PyTorch's in float32: on noise in the smallest and a larger batch, or, quantised, on `images`. Then it has
        `agreement` too, the share of these images that keep their top class (of pixels, for segmentation; for depth of
        pixels that keep their depth to a twentieth). `bytes` is the size of all other files,
        `union_bytes` the size of all tensors of these stitches, each counted once.

    Raises:
        ValueError: if an id, format or precision is unknown, the batch, the images or their size do not fit, int8 would
            leave most of a stitch in float32, or an output differs from PyTorch's by more than `tolerance`.
        OSError: if the folder is not empty or cannot be written.
        ImportError: if packages of the format are missing, naming them.

    Examples:
        >>> import tempfile, timm, timm_stitch
        >>> anchors = [timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_heads=heads,
        ...                              embed_dim=32 * heads, num_classes=4) for heads in (1, 2)]
        >>> model = timm_stitch.stitch(anchors)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = timm_stitch.export(model, folder, stitch_ids=[0, 1], format="program")
        >>> [row["file"] for row in manifest["stitches"]]
        ['stitch-0.pt2', 'stitch-1.pt2']
    """
    require(model, "export")
    _check_arguments(format, quantize, images)
    batch, ids = _batch(format, batch_size), _ids(model, stitch_ids, format)
    whole = copy_for_export(model, image_size)
    compared = images.cpu().float() if quantize and images is not None else None
    job = Job(whole, {stitch_id: whole.extract(stitch_id) for stitch_id in ids}, batch, quantize, compared, progress)
    _check_images(job)
    table = {row["stitch_id"]: row for row in whole.stitch_table()}
    refusal = f"this network cannot be exported as {format}: try another format, such as program"
    with whole_folder(folder) as tmp_path, one_line_errors(refusal):
        locations = FORMATS[format].write(job, tmp_path)
        rows = [
            {**table[stitch_id], **location, **_differences(job, stitch_id, format, tmp_path, location, tolerance)}
            for stitch_id, location in locations.items()
        ]
        manifest = json.dumps(_manifest(job, rows, format, tmp_path), indent=1)
        (tmp_path / MANIFEST_FILE).write_text(manifest, encoding="utf-8")
    return dict(json.loads(manifest))


def _check_arguments(format: str, quantize: str | None, images: Tensor | None) -> None:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}.")
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
    """Check the batch sizes of a call against those that a format can have."""
    possible = FORMATS[format].BATCHES
    if batch_size is None:
        return Batch(1) if possible[0] == "any" else Batch(1, 1)
    sizes = (batch_size,) if isinstance(batch_size, int) else batch_size
    batch = Batch(sizes[0], sizes[-1]) if len(sizes) in (1, 2) else None
    if batch is None or not 1 <= sizes[0] <= sizes[-1] or batch.kind not in possible:
        names = {"any": "None for any number", "number": "a number", "range": "(smallest, largest)"}
        raise ValueError(
            f"batch_size={batch_size} does not fit format={format!r}: expected "
            f"{' or '.join(names[kind] for kind in possible)}, from 1."
        )
    return batch


def _ids(model: SNNet, stitch_ids: int | Sequence[int] | None, format: str) -> list[int]:
    """Find the ids of the stitches to export, each once."""
    if stitch_ids is None and format == "web":
        return _frontier(model)
    if stitch_ids is None or isinstance(stitch_ids, int):
        stitch_ids = [model.stitch_id if stitch_ids is None else stitch_ids]
    ids = [model.plan[k].stitch_id for k in dict.fromkeys(stitch_ids)]
    if not ids:
        raise ValueError("stitch_ids must have one id or more, got none: leave it out for the stitch that is set.")
    return ids


def _frontier(model: SNNet) -> list[int]:
    """Find the stitches that no cheaper one matches."""
    model.results.check()
    table = model.stitch_table()
    known = [row for row in table if row.get(main_score(table)) is not None]
    if not known:
        raise ValueError(
            "the accuracy of no stitch is known, so there is no frontier: evaluate the network, or give stitch_ids."
        )
    return [row["stitch_id"] for row in pareto_frontier(known)]


def copy_for_export(model: SNNet, image_size: int | tuple[int, int] | None) -> SNNet:
    """Copy a network in float32 and evaluation mode, on the CPU, for images of some size."""
    whole = copy.deepcopy(model).cpu().float().eval()
    whole.results.adopt(model.results.current_rows())
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or whole.image_size)
    if size != whole.image_size:
        cfg = getattr(whole, "pretrained_cfg", None) or {}
        whole.pretrained_cfg = {**cfg, "input_size": (whole.in_chans, *size)}
        whole.results.clear()  # its results are of the other size
    if size != whole.image_size:
        raise ValueError(
            f"image_size={size} does not fit: these anchors take {whole.image_size}. Call model.set_input_size first."
        )
    _fix_image_sizes(whole)
    return whole


def _fix_image_sizes(model: SNNet) -> None:
    """Fix the image size of vision transformers that take any: their position embeddings are then not resampled.

    torch.export would record the resampling at their own size too, and some converters lack the operation.
    """
    for module in model.modules():
        if not (isinstance(module, VisionTransformer) and getattr(module, "dynamic_img_size", False)):
            continue
        patches = module.patch_embed
        plain = isinstance(patches, PatchEmbed) and not patches.dynamic_img_pad
        if plain and patches.img_size == model.image_size:
            setattr(module, "dynamic_img_size", False)  # noqa: B010 timm marks it as final
            patches.strict_img_size, patches.flatten, patches.output_fmt = True, True, PatchLayout.NCHW


def _check_images(job: Job) -> None:
    if job.images is not None and job.images.shape[1:] != job.shape:
        raise ValueError(
            f"images of shape {tuple(job.images.shape[1:])} do not fit files for {job.shape}: resize them."
        )


def _differences(
    job: Job, stitch_id: int, format: str, folder: Path, location: Location, tolerance: float
) -> dict[str, object]:
    """Compare a stitch of a folder with PyTorch, for its row in the manifest."""
    difference, agreement = _compare(FORMATS[format].load(folder, location), job.extracted[stitch_id], job)
    if not difference <= (float("inf") if job.quantize else tolerance):  # NaN neither
        raise ValueError(
            f"stitch {stitch_id} as {format} differs from PyTorch by up to {difference:.1e}, more than "
            f"tolerance={tolerance:.0e}: nothing was written. Give a larger tolerance to accept it."
        )
    measured = {} if job.images is None else {"agreement": agreement, "compared_images": len(job.images)}
    return {"max_difference": difference, **measured}


def _manifest(job: Job, rows: Sequence[Mapping[str, object]], format: str, folder: Path) -> dict[str, object]:
    """Make the content of `manifest.json` for a folder with all other files."""
    metric = metric_of(main_score(rows))
    union = {name: tensor for small in job.extracted.values() for name, tensor in small.state_dict().items()}
    return {
        "version": 1,
        "format": format,
        "precision": job.quantize or "float32",
        "batch": {"smallest": job.batch.smallest, "largest": job.batch.largest},
        "input": {"name": "images", "dtype": "float32", "shape": [job.batch.axis, *job.shape]},
        "task": job.task,
        "output": {"name": job.output, "dtype": "float32", "shape": [job.batch.axis, *job.output_shape]},
        "preprocessing": job.preprocessing,
        "labels": [] if job.task == "depth" else class_names(job.whole),
        "score": {
            "name": metric.name,
            "words": metric.words.removesuffix(", %") if any(row.get(metric.name) for row in rows) else "accuracy",
            "percent": metric.percent,
            "digits": metric.digits,
        },
        "to_share_weights": FORMATS[format].RUNTIME_OPTIONS,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "union_bytes": sum(tensor.nbytes for tensor in union.values()),
        "stitches": rows,
    }


def _compare(run: Run, model: nn.Module, job: Job) -> tuple[float, float]:
    """Compute the largest difference of any logit, and the share of images or pixels with the same top class."""
    difference, agree, count = 0.0, 0, 0
    with torch.inference_mode():
        for batch in job.noise() if job.images is None else job.batches(job.images):
            theirs, ours = run(batch), model(batch)
            largest = float((theirs - ours).abs().max())
            difference = max(difference, largest) if largest == largest else largest  # NaN stays
            same = (theirs - ours).abs() <= 0.05 * ours if job.task == "depth" else theirs.argmax(1) == ours.argmax(1)
            agree, count = agree + int(same.sum()), count + same.numel()
    return difference, agree / count
