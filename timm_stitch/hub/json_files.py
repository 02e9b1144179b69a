"""Read and check the config.json and stitches.json of a saved network, which may be a stranger's.

Nothing in them is run, unpickled or used as a path; numbers are checked before anything is built from them.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ..families.family import CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE, SavedNetwork
from ..families.registry import family_of, family_of_config
from ..families.saved_files import read_json
from ..files import PathLike
from ..network.stitchable import StitchableNetwork
from ..plan.bounds import JsonObject
from ..plan.metrics import metric_of
from ..plan.results import SavedResults, measured
from ..plan.stitch_plan import StitchPlan
from .errors import is_repo_id

# What may be edited in a config.json by hand: what is shown, and names of classes; transformers counts those in
# `id2label`.
_NAMES = (
    "label_names", "label_descriptions", "label2id", "_name_or_path", "transformers_version", "license", "tags",
    "description", "origin_url", "paper_name", "paper_ids",
)  # fmt: skip
_SUMS = ("config", "network", "sum")  # checksums in stitches.json

_logger = logging.getLogger(__name__)


def network_files(folder: Path) -> list[Path]:
    """List the files of a network in a folder."""
    return [folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, STITCHES_FILE)]


def read_saved(folder: Path) -> SavedNetwork:
    """Read and check the JSON files of a saved network.

    Rows that cannot be read are left out with a warning: the network runs without them.

    Raises:
        FileNotFoundError: if there is no `config.json`.
        ValueError: if it does not describe a stitchable network, or asks for more than building one; if there is a
            `stitches.json` that cannot be read.
    """
    config = read_json(folder / CONFIG_FILE)
    family_of_config(config).check_config(config)
    fingerprint: str | None = None
    results: SavedResults | None = None
    sums: Any = None
    edited = False
    try:
        stitches = read_json(folder / STITCHES_FILE)
        edited = _is_edited(config, stitches)
        fingerprint, sums = stitches.get("weights"), stitches.get("tensors")
        results = parse_stitches(stitches)
    except OSError as error:
        if os.path.lexists(folder / STITCHES_FILE):
            raise _unreadable(folder, error) from None
        _logger.debug("there are no rows with the weights: %s", error)
    except ValueError as error:
        if not isinstance(fingerprint, str):
            raise _unreadable(folder, error) from None
        _logger.warning("the network loads without its rows: %s", error)
    return SavedNetwork(folder, config, fingerprint, results, sums if isinstance(sums, dict) else None, edited)


def _unreadable(folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{STITCHES_FILE} is in {str(folder)!r} and cannot be read ({error!s:.240}), so the weights cannot be "
        "compared with its fingerprint: fetch it again, or remove it to load the network without its rows."
    )


def sum_json(content: Mapping[str, Any]) -> str:
    """Compute a checksum of what is in a JSON file, by which damage in it is noticed."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def sum_network(config: Mapping[str, Any]) -> str:
    """Compute a checksum of the part of a `config.json` by which the network is built: all but its names and labels."""
    return sum_json(_without_names(dict(config)))


def _without_names(value: Any) -> Any:
    """Leave out what is only shown; of the names of classes in `id2label` the number counts."""
    if isinstance(value, Mapping):
        kept = {name: item for name, item in value.items() if name not in _NAMES}
        return {k: len(v) if k == "id2label" and isinstance(v, Mapping) else _without_names(v) for k, v in kept.items()}
    return [_without_names(item) for item in value] if isinstance(value, list) else value


def _is_edited(config: Mapping[str, Any], stitches: Mapping[str, Any]) -> bool:
    """Whether a `config.json` builds another network than was saved; warn of other changes in the JSON files.

    Networks of earlier versions have no checksums.
    """
    rest = {key: value for key, value in stitches.items() if key not in _SUMS}
    if "sum" in stitches and stitches["sum"] != sum_json(rest):
        _logger.warning("%s is not as it was saved with these weights: it was edited or damaged.", STITCHES_FILE)
    if "config" not in stitches or stitches["config"] == sum_json(config):
        return False
    if stitches.get("network") != sum_network(config):
        return True
    _logger.warning("%s has other names or labels than it was saved with: it was edited or damaged.", CONFIG_FILE)
    return False


def edited_message(saved: SavedNetwork) -> str:
    """Say that the configuration of a network is not the one that was saved with its weights."""
    return (
        f"{CONFIG_FILE} in {str(saved.folder)!r} is not as it was saved with these weights, so another network may be "
        "built: it was edited or damaged."
    )


def parse_stitches(data: JsonObject) -> SavedResults:
    """Check and convert the contents of a `stitches.json`.

    Raises:
        ValueError: if it is not what `save_pretrained` writes.
    """
    rows, weights = data.get("stitches"), data.get("weights")
    if not isinstance(weights, str) or len(weights) > 64 or not isinstance(rows, list):
        raise ValueError("stitches.json lacks its fingerprint or its rows: expected what save_pretrained writes.")
    plan = StitchPlan.from_dict(data.get("plan"))  # type: ignore[arg-type] # it refuses other types
    seen = set()
    for row in rows:
        number = row.get("stitch_id") if isinstance(row, dict) else None
        plain = isinstance(number, int) and number in plan and number not in seen
        seen.add(number if plain else None)
        if not plain or not all(is_plain(key, value) for key, value in row.items()):
            raise ValueError(f"stitches.json has a garbled row ({row!s:.80}): save the network again.")
    if not isinstance(data.get("training", {}), dict):
        raise ValueError("stitches.json garbles how the network was trained: save the network again.")
    return SavedResults(weights, plan, rows, plain_training(data.get("training")))


def is_plain(key: str, value: object) -> bool:
    """Whether a row may hold a value: the rule for saving and reading."""
    if (key == "batch_size" or key.startswith("latency_ms")) and value is not None:
        return isinstance(value, (int, float)) and 0 < value < 1e18
    if isinstance(value, str):
        return len(value) <= 1024
    if metric_of(key).percent and value is not None:
        return isinstance(value, (int, float)) and 0 <= value <= 100
    return value is None or (isinstance(value, (bool, int, float)) and abs(value) < 1e18)


def load_results(network: StitchableNetwork, saved: SavedNetwork) -> None:
    """Add the saved rows to a loaded network, or to a stitch of it.

    A network with other classes, channels or image size than the saved one gets no rows. Rows of another plan are left
    out with a warning.
    """
    results = saved.results
    if results is None or not family_of(network).keeps_rows(network, saved):
        return
    plan, whole = network.plan, results.plan
    stitches = whole.stitches if len(plan) == len(whole) else tuple(s for s in whole.stitches if s.stitch_id in plan)
    if (plan.anchors, plan.layers, plan.stitches) != (whole.anchors, whole.layers, stitches):
        _logger.warning(
            "the network loads without its rows: stitches.json has another plan than the network next to it: save the "
            "network again."
        )
        return
    rows = [{"stitch_id": row["stitch_id"], **measured(row)} for row in results.rows]
    measured_rows = [row for row in rows if len(row) > 1 and row["stitch_id"] in plan]
    if stitches == whole.stitches:
        network.results.clear()
        network.results.add(measured_rows, results.weights_id)
    else:
        network.results.adopt(measured_rows)  # the fingerprint is that of the whole
    network.trained = dict(results.training)


def plain_training(training: object) -> dict[str, Any]:
    """Filter the history of weights: keep plain values and names of repositories."""
    history = training if isinstance(training, Mapping) else {}
    plain: dict[str, Any] = {}
    models, runs = history.get("base_models"), history.get("runs")
    if isinstance(models, (list, tuple)):
        plain["base_models"] = [name for name in models[:64] if is_repo_id(name)]
    if isinstance(runs, (list, tuple)):
        plain["runs"] = [
            {k: v for k, v in run.items() if is_plain(k, v) and len(k) <= 64}
            for run in runs[:100]
            if isinstance(run, Mapping)
        ]
    if is_repo_id(history.get("pulled_from")):
        plain["pulled_from"] = history["pulled_from"]
    return plain


def load_results_of_cfg(network: StitchableNetwork, cfg: Any, cache_dir: PathLike | None = None) -> None:
    """Add the saved rows to a network that timm itself loaded from a folder or the Hub.

    Rows that cannot be read are left out with a warning: the network runs without them.

    Args:
        network: the network.
        cfg: timm's `PretrainedCfg`, which names the folder or repository.
        cache_dir: the cache of huggingface_hub.
    """
    try:
        if cfg.source == "local-dir":
            folder = Path(cfg.file)
        else:
            repo_id, _, revision = cfg.hf_hub_id.partition("@")
            cache = None if cache_dir is None else Path(cache_dir)
            folder = Path(hf_hub_download(repo_id, STITCHES_FILE, revision=revision or None, cache_dir=cache)).parent
        saved = read_saved(folder)
        load_results(network, saved)
        if saved.is_edited:
            _logger.warning("%s", edited_message(saved))
    except OSError as error:
        _logger.debug("there are no rows with the weights: %s", error)
    except ValueError as error:
        _logger.warning("the network loads without its rows: %s", error)
