"""One stitch in a safetensors file with all that is needed to load it: `extract` writes it, `from_hub` reads it.

The file's metadata has, under `timm_stitch`, a JSON object of the whole network's `config.json`, the stitch's id, a
checksum of each tensor, and one of the object. Other programs read the tensors as those of any safetensors file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..families.family import SavedNetwork
from ..families.registry import family_of, family_of_config
from ..files import PathLike, whole_file
from ..network.stitchable import StitchableNetwork
from ..network.weights import kept_state, save_file, sum_tensors
from .errors import unreadable
from .json_files import sum_json

KEY = "timm_stitch"
_MOST_BYTES = 16 << 20

_logger = logging.getLogger(__name__)


def describe_whole(network: StitchableNetwork) -> Mapping[str, Any] | None:
    """Describe the network of which a stitch is saved; None, with a warning, if none could be built from it."""
    try:
        return family_of(network).config_of(network)
    except ValueError as error:
        _logger.warning("the file will hold weights alone, which from_hub does not load: %s", error)
        return None


def save_stitch(small: StitchableNetwork, path: PathLike, config: Mapping[str, Any] | None = None) -> Path:
    """Save an extracted stitch to a file, which appears whole or not at all; `from_hub(path)` loads it.

    Args:
        small: the extracted stitch.
        path: the file to write.
        config: the `config.json` of the whole network; default that of the saved network from which
            the stitch was loaded.

    Returns:
        The file.
    """
    path = Path(path)
    config = small.__dict__.get("_saved_config") if config is None else config
    tensors = {name: tensor.detach().contiguous() for name, tensor in kept_state(small).items()}
    header = {"version": 1, "stitch_id": small.stitch_id, "config": config, "tensors": sum_tensors(tensors)}
    text = json.dumps({**header, "sum": sum_json(json.loads(json.dumps(header)))})
    metadata = {"format": "pt"} | ({} if config is None else {KEY: text})
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata)
    return path


def read_stitch_file(path: Path) -> tuple[SavedNetwork, int]:
    """Read what the metadata of a file says of its stitch, and check it.

    Raises:
        ValueError: if the file is not one of `save_stitch`, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except SafetensorError as error:
        raise unreadable(path, error) from error
    if text is None:
        raise ValueError(
            f"{str(path)!r} has no description of its stitch: give a file of timm-stitch extract or pull --stitch-id."
        )
    try:
        header = json.loads(text) if len(text) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        header = None
    header = header if isinstance(header, dict) else {}
    config, stitch_id, sums = header.get("config"), header.get("stitch_id"), header.get("tensors")
    undamaged = header.pop("sum", None) == sum_json(header)
    if not undamaged or not isinstance(config, dict) or not isinstance(stitch_id, int) or not isinstance(sums, dict):
        raise ValueError(f"the description of the stitch in {str(path)!r} is garbled: extract the stitch again.")
    family_of_config(config).check_config(config)
    return SavedNetwork(path.parent, config, None, None, sums), stitch_id
