"""Stitches converted for an engine, kept on disk: the slow step, which runs in a process of its own.

A conversion is a folder as `export` writes it, in the user's cache (`XDG_CACHE_HOME`, or `~/.cache`, then
`timm_stitch/engines`). Its name follows from the weights, the stitches and the versions of the packages that made it.
It lists the digest of each file: one that is damaged is made again. The conversions that were used last are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import Tensor

from ....families.timm_models.network import SNNet
from ....files import whole_file, whole_folder
from ....hub.saving import save_pretrained
from ....network.weights import cached_fingerprint
from ....plan.results import Row
from ...formats.job import Location
from ...formats.onnx_int8 import int8_weight_bits

CONVERSION_FILE = "conversion.json"
_KEPT = 8  # conversions in the cache
_PROCESS = "timm_stitch.deployment.serving.backends.conversion_process"


class ConversionError(RuntimeError):
    """A network that could not be converted, with the reason."""


def cache_folder() -> Path:
    """Find the folder of all conversions."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "timm_stitch", "engines")


def conversion_folder(
    model: SNNet, stitch_ids: Sequence[int], format: str, layout: str, images: Tensor | None = None
) -> Path:
    """Name the folder of a conversion.

    Args:
        model: the network.
        stitch_ids: the stitches.
        format: the format of the files.
        layout: `"whole"` stitches or shared `"parts"`.
        images: the images that calibrate int8; None for float32.
    """
    packages = ["timm_stitch", "torch", "timm", *(("onnxscript", "onnx_ir") if format == "onnx" else (format,))]
    made_by = [format, layout]
    if images is not None:
        packages.append("onnxruntime")
        made_by += [f"{int8_weight_bits()} bits", hashlib.sha256(images.numpy().tobytes()).hexdigest()]
    made_by += [f"{name} {version(name)}" for name in packages]
    plan = [[k, model.plan[k].name] for k in stitch_ids]
    text = json.dumps([made_by, plan, model.image_size, model.in_chans, str(model)])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_folder() / f"{cached_fingerprint(model)}-{format}-{key}"


def open_conversion(
    model: SNNet,
    stitch_ids: Sequence[int],
    folder: Path,
    format: str,
    layout: str,
    images: Tensor | None = None,
    watch: Callable[[subprocess.Popen[str]], None] = lambda process: None,
) -> dict[int, Location]:
    """Find converted stitches in a folder, or convert them into it.

    Args:
        model: the network, on the CPU.
        stitch_ids: the stitches.
        folder: the folder, by `conversion_folder`.
        format: the format of the files.
        layout: `"whole"` stitches or shared `"parts"`.
        images: the images that calibrate int8; None for float32.
        watch: a function that is called with the process that converts, which may be ended.

    Returns:
        The place of each stitch in the folder.

    Raises:
        ConversionError: if the network cannot be converted.
        OSError: if the cache cannot be written.
    """
    locations = _read(folder)
    if locations is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(folder.parent, _KEPT - 1)
        try:
            with whole_folder(folder) as tmp_path:
                _convert(model, stitch_ids, tmp_path, format, layout, images, watch)
        except OSError:
            if _read(folder) is None:  # else another process has written it meanwhile
                raise
        locations = _read(folder)
        if locations is None:
            raise ConversionError(f"{str(folder)!r} is not as it was written: see to the disk.")
    with suppress(OSError):
        os.utime(folder)  # used now
    return locations


def write_conversion(folder: Path, locations: dict[int, Location]) -> None:
    """List the files of a conversion, when all are there."""
    files = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    text = json.dumps({"stitches": {str(k): location for k, location in locations.items()}, "files": files})
    (folder / CONVERSION_FILE).write_text(text, encoding="utf-8")


def read_latencies(folder: Path, name: str) -> list[Row]:
    """Read the latencies that were measured under a backend's name; none if there are none."""
    try:
        kept = json.loads(_latencies_file(folder, name).read_text(encoding="utf-8"))
        rows: list[Row] = [
            {**row, "stitch_id": int(row["stitch_id"])} for row in kept["rows"] if row["profiled_on"] == name
        ]
        return rows if kept["digest"] == _text_digest(kept["rows"]) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_latencies(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """Keep latencies with a conversion, for the next start."""
    with suppress(OSError), whole_file(_latencies_file(folder, name)) as tmp_path:
        tmp_path.write_text(json.dumps({"rows": rows, "digest": _text_digest(rows)}), encoding="utf-8")


def _latencies_file(folder: Path, name: str) -> Path:
    return folder / f"latencies-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def _text_digest(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _read(folder: Path) -> dict[int, Location] | None:
    """Read where the stitches of a conversion are; None if a file is missing or damaged."""
    try:
        kept = json.loads((folder / CONVERSION_FILE).read_text(encoding="utf-8"))
        locations = {int(k): location for k, location in kept["stitches"].items()}
        whole = all(_digest(folder / name) == digest for name, digest in kept["files"].items())
        return locations if whole and all(place["file"] in kept["files"] for place in locations.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        digest = hashlib.blake2b(digest_size=16)
        while chunk := data.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()


def _convert(
    model: SNNet,
    stitch_ids: Sequence[int],
    folder: Path,
    format: str,
    layout: str,
    images: Tensor | None,
    watch: Callable[[subprocess.Popen[str]], None],
) -> None:
    """Convert in another process, so that requests are answered meanwhile and its memory is free afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        network = Path(scratch, "network")
        try:
            save_pretrained(model, network, check=False)
        except ValueError as error:
            raise ConversionError(f"the network was not converted: {error!s:.300}") from error
        calibration = "" if images is None else str(Path(scratch, "images.npy"))
        if images is not None:
            np.save(calibration, images.numpy())
        places = [str(network), str(folder), format, layout, calibration]
        command = [sys.executable, "-W", "ignore", "-m", _PROCESS, *places]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        process = subprocess.Popen(
            [*command, *map(str, stitch_ids)], env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        watch(process)
        try:
            errors = process.communicate()[1].strip().splitlines()
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            reason = errors[-1] if errors else f"its process ended with status {process.returncode}"
            raise ConversionError(f"the network was not converted: {reason:.300}")


def _sweep(folder: Path, kept: int) -> None:
    """Remove the conversions that were used least recently."""
    with suppress(OSError):
        entries = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime, reverse=True)[kept:]:
            shutil.rmtree(entry.path, ignore_errors=True)
