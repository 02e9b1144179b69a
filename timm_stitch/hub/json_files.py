"""config.json and stitches.json of a saved network, read with distrust: they may be a stranger's.

Nothing in them is run, unpickled or used as a path; numbers are bounded before anything is built from them.
Imports timm, huggingface_hub and the layers below.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from timm.models import PretrainedCfg

from ..network.network import SNNet
from ..plan.results import measured
from ..plan.stitch_plan import StitchPlan

CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE = "config.json", "stitches.json", "model.safetensors"

# Arguments of create_model that read files or change how things are built: no saved network needs them.
_READ_FILES = frozenset(
    {"checkpoint_path", "pretrained", "cache_dir", "scriptable", "exportable", "no_jit", "pretrained_cfg",
     "pretrained_cfg_overlay", "pretrained_model_args"}
)  # fmt: skip
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
_MOST_BYTES, _MOST_ANCHORS, _MOST_BLOCKS, _MOST = 16 << 20, 16, 512, 1 << 20

_logger = logging.getLogger(__name__)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object of plain, finite values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is too large, not JSON, or not an object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path.name} in {str(path.parent)!r}: expected what timm_stitch.save_pretrained writes."
        )
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"{path.name} has {path.stat().st_size:,} bytes, more than any network needs: it was not read."
        )

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    try:
        data = json.loads(path.read_bytes(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is not readable JSON ({error!s:.120}): fetch or save the network again."
        ) from None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds a {type(data).__name__}, expected an object: save the network again.")
    return data


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `config.json` of a saved SN-Net.

    Returns:
        What is in the file, checked: `architecture`, `model_args`, `pretrained_cfg`, `num_classes` and more.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not that of an SN-Net, or asks for more than building a network.
    """
    config = read_json(path)
    name, args, cfg = config.get("architecture"), config.get("model_args", {}), config.get("pretrained_cfg")
    ours = isinstance(name, str) and timm.is_model(name)
    if not ours or not timm.model_entrypoint(str(name)).__module__.startswith("timm_stitch."):
        raise ValueError(
            f"config.json names the architecture {name!r:.80}, which is not a stitchable network here: expected "
            f"one of {', '.join(timm.list_models('snnet*'))}; other models load by timm.create_model."
        )
    check_arguments(args)
    known = set(PretrainedCfg.__dataclass_fields__)
    if not isinstance(cfg, dict) or set(cfg) - known:
        strange = sorted(set(cfg) - known)[:4] if isinstance(cfg, dict) else type(cfg).__name__
        raise ValueError(f"the pretrained_cfg in config.json is not one of timm's ({strange}): save the network again.")
    sources = [field for field in _SOURCES if cfg.get(field)]
    if sources:
        raise ValueError(
            f"the pretrained_cfg in config.json names files of its own ({', '.join(sources)}): remove them."
        )
    size = cfg.get("input_size", [3, 224, 224])
    numbers = [config.get("num_classes", 1), *(size if isinstance(size, list) else ["?"])]
    if (
        not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MOST for n in numbers)
        or len(numbers) != 4
    ):
        raise ValueError(
            f"config.json has num_classes={config.get('num_classes')!r:.40} and input_size={size!r:.60}: expected a "
            f"number of classes and [channels, height, width], whole numbers of at most {_MOST:,}."
        )
    return config


def check_arguments(args: Any) -> None:
    """Refuse saved `model_args` that do more than say how to build a network, or would build without end.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(args, Mapping):
        raise ValueError(f"model_args in config.json is a {type(args).__name__}: expected an object of arguments.")
    anchors = args.get("anchors", ())
    if not isinstance(anchors, (list, tuple)) or len(anchors) > _MOST_ANCHORS:
        raise ValueError(f"model_args in config.json must list at most {_MOST_ANCHORS} anchors.")
    for where, own in (
        ("model_args", args),
        *((f"anchor {i}", a) for i, a in enumerate(anchors) if isinstance(a, Mapping)),
    ):
        reading = sorted(_READ_FILES & set(own) - ({"pretrained_cfg_overlay"} if own is not args else set()))
        if reading:
            raise ValueError(
                f"{where} in config.json asks timm to read other files ({', '.join(reading)}): a saved network needs "
                "none, so this was refused. Remove it if you trust its author."
            )
        _check_value(where, own)


def _check_value(where: str, value: Any, level: int = 0) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, (int, float)):
        most = _MOST_BLOCKS if where.rpartition(".")[2].startswith("depth") else _MOST
        if not math.isfinite(value) or abs(value) > most:
            raise ValueError(f"{where} in config.json is {value!r:.40}: expected at most {most:,}.")
    elif isinstance(value, str):
        if len(value) > 256:
            raise ValueError(f"{where} in config.json is a text of {len(value):,} letters: expected a name.")
    elif level > 8 or not isinstance(value, (Mapping, list, tuple)):
        raise ValueError(f"{where} in config.json is a {type(value).__name__} too deep or strange for an argument.")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_value(f"{where}.{key:.64}", inner, level + 1)
    else:
        for inner in value:
            _check_value(where, inner, level + 1)


def read_stitches(path: str | os.PathLike[str], plan: StitchPlan | None = None) -> dict[str, Any]:
    """Read a `stitches.json`.

    Args:
        path: the file.
        plan: the network's own; the file must have the same.

    Returns:
        What is in it: `weights` (the fingerprint), `plan`, `stitches` (a row each), and `training` if known.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not what `save_pretrained` writes, or has another plan.
    """
    data = read_json(path)
    rows, mark = data.get("stitches"), data.get("weights")
    if not isinstance(mark, str) or len(mark) > 64 or not isinstance(rows, list):
        raise ValueError("stitches.json lacks its fingerprint or its rows: expected what save_pretrained writes.")
    saved: Any = data.get("plan")
    own = StitchPlan.from_dict(saved)
    if plan is not None and own != plan:
        raise ValueError("stitches.json has another plan than the network beside it: save the network again.")
    seen = set()
    for row in rows:
        number = row.get("stitch_id") if isinstance(row, dict) else None
        plain = isinstance(number, int) and number in own and number not in seen
        seen.add(number)
        if not plain or not all(_is_plain(key, value) for key, value in row.items()):
            raise ValueError(f"stitches.json has a row that is not one ({row!s:.80}): save the network again.")
    if not isinstance(data.get("training", {}), dict):
        raise ValueError("stitches.json garbles how the network was trained: save the network again.")
    return data


def _is_plain(key: str, value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= 1024
    if key in ("top1", "top5") and value is not None:
        return isinstance(value, (int, float)) and 0 <= value <= 100
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) < 1e18)


def remember(model: SNNet, data: Mapping[str, Any]) -> None:
    """Let a network know its rows; each keeps the fingerprint of the weights that it belongs to."""
    rows = [{"stitch_id": row["stitch_id"], **measured(row)} for row in data["stitches"]]
    model.forget()
    model.remember([row for row in rows if len(row) > 1 and row["stitch_id"] in model.plan], data["weights"])
    model.trained = dict(data.get("training") or {})


def recall(model: Any, cfg: Any, cache_dir: str | os.PathLike[str] | None = None) -> None:
    """Let a network that timm loaded from a folder or the Hub know the rows that lie beside its weights.

    A network with other classes, channels or image size than the saved one has none. Rows that cannot be
    read are left out with a warning: they are not needed to run the network.
    """
    if not isinstance(model, SNNet) or cfg.source not in ("local-dir", "hf-hub"):
        return
    asked = (model.num_classes, model.in_chans, *model.image_size)
    if asked != (cfg.num_classes, *cfg.input_size):
        return
    try:
        if cfg.source == "local-dir":
            path = Path(cfg.file) / STITCHES_FILE
        else:
            repo_id, _, revision = cfg.hf_hub_id.partition("@")
            cache = None if cache_dir is None else Path(cache_dir)
            path = Path(hf_hub_download(repo_id, STITCHES_FILE, revision=revision or None, cache_dir=cache))
        remember(model, read_stitches(path, model.plan))
    except OSError as error:
        _logger.debug("no rows beside the weights: %s", error)
    except ValueError as error:
        _logger.warning("the network loads without its rows: %s", error)
