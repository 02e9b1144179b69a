"""config.json and stitches.json of a saved network, read with distrust: they may be a stranger's.

Nothing in them is run, unpickled or used as a path; numbers are bounded before anything is built from them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download

from ..families.timm_models.arguments import MOST_CLASSES, MOST_PIXELS, check_arguments, check_cfg
from ..families.timm_models.network import SNNet
from ..families.transformers_models.task_names import is_of_transformers, names_of
from ..network.stitchable import StitchableNetwork
from ..plan.results import measured
from ..plan.stitch_plan import StitchPlan
from .errors import is_repo_id

CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE = "config.json", "stitches.json", "model.safetensors"

_MOST_BYTES = 16 << 20

_logger = logging.getLogger(__name__)


def network_files(folder: Path) -> list[Path]:
    """The files in a folder that belong together."""
    return [folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, STITCHES_FILE)]


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
    if is_of_transformers(config):
        names_of(config)
        return config  # what else may stand in it is checked where it is read: `text.configuration`
    name, args = config.get("architecture"), config.get("model_args", {})
    cfg: Any = config.get("pretrained_cfg")
    ours = isinstance(name, str) and timm.is_model(name)
    if not ours or not timm.model_entrypoint(str(name)).__module__.startswith("timm_stitch."):
        raise ValueError(
            f"config.json names the architecture {name!r:.80}, which is not a stitchable network here: expected "
            f"one of {', '.join(timm.list_models('snnet*'))}; other models load by timm.create_model."
        )
    check_arguments(args, str(name))
    check_cfg(cfg)
    size = cfg.get("input_size", [3, 224, 224])
    numbers = [config.get("num_classes", 1), *(size if isinstance(size, list) else ["?"])]
    most = [MOST_CLASSES, *[MOST_PIXELS] * 3]
    if len(numbers) != 4 or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= m for n, m in zip(numbers, most, strict=True)
    ):
        raise ValueError(
            f"config.json has num_classes={config.get('num_classes')!r:.40} and input_size={size!r:.60}: expected a "
            f"number of classes (at most {MOST_CLASSES:,}) and [channels, height, width] (at most {MOST_PIXELS:,})."
        )
    return config


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
        seen.add(number if plain else None)
        if not plain or not all(is_plain(key, value) for key, value in row.items()):
            raise ValueError(f"stitches.json has a row that is not one ({row!s:.80}): save the network again.")
    if not isinstance(data.get("training", {}), dict):
        raise ValueError("stitches.json garbles how the network was trained: save the network again.")
    return data


def is_plain(key: str, value: Any) -> bool:
    """Whether a row may say that: the one rule of what is saved and what is read."""
    if (key == "batch_size" or key.startswith("latency_ms")) and value is not None:
        return isinstance(value, (int, float)) and 0 < value < 1e18
    if isinstance(value, str):
        return len(value) <= 1024
    if key in ("top1", "top5") and value is not None:
        return isinstance(value, (int, float)) and 0 <= value <= 100
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) < 1e18)


def remember(model: StitchableNetwork, data: Mapping[str, Any]) -> None:
    """Let a network know its rows; each keeps the fingerprint of the weights that it belongs to."""
    rows = [{"stitch_id": row["stitch_id"], **measured(row)} for row in data["stitches"]]
    model.forget()
    model.remember([row for row in rows if len(row) > 1 and row["stitch_id"] in model.plan], data["weights"])
    model.trained = plain_training(data.get("training"))


def plain_training(training: Any) -> dict[str, Any]:
    """What is known of how weights came about, without whatever is not a plain value or a repository's name."""
    given = training if isinstance(training, Mapping) else {}
    found: dict[str, Any] = {}
    models, runs = given.get("base_models"), given.get("runs")
    if isinstance(models, (list, tuple)):
        found["base_models"] = [name for name in models[:64] if is_repo_id(name)]
    if isinstance(runs, (list, tuple)):
        found["runs"] = [
            {k: v for k, v in run.items() if is_plain(k, v) and len(k) <= 64}
            for run in runs[:100]
            if isinstance(run, Mapping)
        ]
    if is_repo_id(given.get("pulled_from")):
        found["pulled_from"] = given["pulled_from"]
    return found


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
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        _logger.warning("the network loads without its rows: %s", error)
