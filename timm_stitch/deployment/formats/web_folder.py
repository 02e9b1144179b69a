"""Stitches as a page that runs them in the browser, from any static host, without a server of its own.

The folder holds the stitches as ONNX files that share their weights, onnxruntime-web (Microsoft's, MIT; from npm, of a
version and digest that are pinned here) and the page. Nothing in it is fetched from elsewhere. What ONNX needs is
optional (`pip install 'timm_stitch[export]'`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any

from ...data.dataset import image_config
from ...families.timm_models.network import SNNet
from ...files import whole_file
from ..class_names import pillow_mode
from . import onnx_files
from .job import Job, Place

BATCHES: tuple[str, ...] = ("number",)
QUANTIZE: tuple[str, ...] = ("int8",)
TO_SHARE: dict[str, Any] = {}
RUNTIME = "onnxruntime-web-1.30.0.tgz"
_ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/{RUNTIME}"
_DIGEST = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's sha512
_FROM_RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_OWN = ("index.html", "app.js", "images.js")
_MOST_BYTES, _PATIENCE = 64 << 20, 60.0  # of the package; seconds
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")

check_packages, load = onnx_files.check_packages, onnx_files.load  # the files are ONNX


def write(job: Job, folder: Path) -> dict[int, Place]:
    """The ONNX files, what runs them, and the page.

    Raises:
        ValueError: if the page cannot prepare images as the network asks, or the batch is not one image.
        OSError: if onnxruntime-web is neither in the cache nor can be fetched.
    """
    _check(job)
    package = _package()
    places = onnx_files.write(job, folder)
    with tarfile.open(package) as archive:
        for name in _FROM_RUNTIME:
            member: Any = archive.extractfile(f"package/dist/{name}")
            (folder / name).write_bytes(member.read())
    for name in _OWN:
        page = resources.files(__package__).joinpath("web_page", name)
        (folder / name).write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    return places


def _check(job: Job) -> None:
    model: SNNet = job.whole
    pillow_mode(model, "the page shows")
    config = image_config(model)
    height, width = model.image_size
    asked = {name: config[name] for name in ("interpolation", "crop_mode", "crop_pct")}
    if (
        height != width
        or job.batch.smallest != 1
        or asked["interpolation"] not in _INTERPOLATIONS
        or asked["crop_mode"] not in ("center", "squash")
        or asked["crop_pct"] > 1
    ):
        raise ValueError(
            f"the page cannot prepare images as this network asks ({height} x {width}, {asked}, batch_size="
            f"{job.batch.smallest}): it takes one square image, {', '.join(_INTERPOLATIONS)}, crop_mode center or "
            "squash, crop_pct of at most 1. Set model.pretrained_cfg accordingly."
        )


def _package() -> Path:
    """The pinned onnxruntime-web, from the cache, or fetched into it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "timm_stitch" / RUNTIME
    kept = cache.exists()
    found = cache.read_bytes() if kept else _fetched(cache)
    if base64.b64encode(hashlib.sha512(found).digest()).decode() != _DIGEST:
        what, do = (cache, "remove it") if kept else (_ADDRESS, f"put that at {cache}")
        raise OSError(f"{what} is not onnxruntime-web 1.30.0 as npm has it: {do}, and try again.")
    if not kept:
        with whole_file(cache) as beside:
            beside.write_bytes(found)
    return cache


def _fetched(cache: Path) -> bytes:
    try:
        with urllib.request.urlopen(_ADDRESS, timeout=_PATIENCE) as answer:
            found: bytes = answer.read(_MOST_BYTES)
            return found
    except (OSError, ValueError) as error:
        raise OSError(
            f"{_ADDRESS} cannot be fetched ({error}): fetch it elsewhere (npm pack onnxruntime-web@1.30.0) and put it "
            f"at {cache}."
        ) from error
