"""Exports stitches as a page that runs them in the browser, from any static host.

The folder holds the stitches as ONNX files that share their weights, onnxruntime-web (Microsoft's, MIT; from npm, of a
version and digest that are pinned here) and the page. The page fetches nothing from elsewhere. The packages of ONNX
are optional (`pip install '.[export]'`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import urllib.request
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ...families.timm_models.network import SNNet
from ...files import whole_file
from ..class_names import pillow_mode
from . import onnx_files
from .job import Job, Location

BATCHES: tuple[str, ...] = ("number",)
QUANTIZE: tuple[str, ...] = ("int8",)
RUNTIME_OPTIONS: Mapping[str, object] = {}
RUNTIME = "onnxruntime-web-1.30.0.tgz"
_ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/{RUNTIME}"
_DIGEST = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's sha512
_FROM_RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_OWN = ("index.html", "app.js", "images.js", "maps.js")
_MOST_BYTES, _PATIENCE = 64 << 20, 60.0  # of the package; seconds
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")

check_packages, load = onnx_files.check_packages, onnx_files.load  # the files are ONNX


def write(job: Job, folder: Path) -> dict[int, Location]:
    """Write the ONNX files, their runtime, and the page.

    Raises:
        ValueError: if the page cannot prepare images as the network needs, or the batch is not one image.
        OSError: if onnxruntime-web is neither in the cache nor can be fetched.
    """
    _check(job)
    package = _package()
    locations = onnx_files.write(job, folder)
    with tarfile.open(package) as archive:
        for name in _FROM_RUNTIME:
            member: Any = archive.extractfile(f"package/dist/{name}")
            (folder / name).write_bytes(member.read())
    for name in _OWN:
        page = resources.files(__package__).joinpath("web_page", name)
        (folder / name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    return locations


def _check(job: Job) -> None:
    model: SNNet = job.whole
    pillow_mode(model, "the page shows")
    config = job.preprocessing
    height, width = model.image_size
    needed = {name: config[name] for name in ("interpolation", "crop_mode", "crop_pct")}
    if (
        height != width
        or job.batch.smallest != 1
        or needed["interpolation"] not in _INTERPOLATIONS
        or needed["crop_mode"] not in ("center", "squash")
        or needed["crop_pct"] > 1
    ):
        raise ValueError(
            f"the page cannot prepare images as this network needs ({height} x {width}, {needed}, batch_size="
            f"{job.batch.smallest}): it takes one square image, {', '.join(_INTERPOLATIONS)}, crop_mode center or "
            "squash, crop_pct of at most 1. Set model.pretrained_cfg accordingly."
        )


def _package() -> Path:
    """Find the pinned onnxruntime-web in the cache, or fetch it there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "timm_stitch" / RUNTIME
    cached = cache.exists()
    package = cache.read_bytes() if cached else _fetch(cache)
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != _DIGEST:
        source, remedy = (cache, "remove it") if cached else (_ADDRESS, f"put npm's at {cache}")
        raise OSError(f"{source} is not npm's onnxruntime-web 1.30.0: {remedy}, and try again.")
    if not cached:
        with whole_file(cache) as tmp_path:
            tmp_path.write_bytes(package)
    return cache


def _fetch(cache: Path) -> bytes:
    try:
        with urllib.request.urlopen(_ADDRESS, timeout=_PATIENCE) as answer:
            return bytes(answer.read(_MOST_BYTES))
    except (OSError, ValueError) as error:
        raise OSError(
            f"{_ADDRESS} cannot be fetched ({error}): fetch it elsewhere (npm pack onnxruntime-web@1.30.0) and put it "
            f"at {cache}."
        ) from error
