"""The files of a saved network, which may be a stranger's: read within bounds, and only inside their folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ..files import PathLike
from ..plan.bounds import JsonObject

_MOST_BYTES, _MOST_LEVELS = 16 << 20, 100


def check_inside(path: PathLike) -> Path:
    """Refuse a file that is not an ordinary one of its own folder.

    A link may lead to another file of the folder; from a snapshot of huggingface_hub, to the repository's `blobs`.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it is a link out of the folder, or no ordinary file.
    """
    path = Path(path)
    folder, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    blobs = folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else folder
    if not (target.is_relative_to(folder) or target.is_relative_to(blobs)):
        raise OSError(
            f"{path.name} in {str(path.parent)!r} is a link to a file outside of the folder, so it was not read: put "
            "the file itself there."
        )
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"there is no {path.name} in {str(path.parent)!r}: expected what timm_stitch.save_pretrained writes."
        ) from None
    if not stat.S_ISREG(mode):
        raise OSError(f"{path.name} in {str(path.parent)!r} is no ordinary file, so it was not read.")
    return path


def read_json(path: PathLike) -> JsonObject:
    """Read a JSON object of plain, finite values.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be read, or is a link out of its folder.
        ValueError: if it is too large, too deep, not JSON, or not an object.
    """
    path = check_inside(path)
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"{path.name} has {path.stat().st_size:,} bytes, more than any network needs: it was not read."
        )

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    try:
        data = json.loads(path.read_bytes(), parse_constant=refuse)
        if _is_deeper(data, _MOST_LEVELS):
            raise ValueError(f"its values lie more than {_MOST_LEVELS} levels deep")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is not readable JSON ({error!s:.120}): fetch or save the network again."
        ) from None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds a {type(data).__name__}, expected an object: save the network again.")
    return data


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than so many levels."""
    if not isinstance(value, (dict, list)):
        return False
    return levels == 0 or any(_is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))
