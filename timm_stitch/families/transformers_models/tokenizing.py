"""The tokenizer of a network: the one that was given, or the one in its folder or repository."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...errors import library_errors

_FILE = "tokenizer_config.json"  # which every tokenizer has
_ERRORS = (OSError, ValueError, KeyError)
_MISSING = (
    "this network has no tokenizer: give tokenizers=[…] to stitch before it is saved, or one by --tokenizer on the "
    "command line and model.tokenizer = … in Python"
)

_logger = logging.getLogger(__name__)


def network_tokenizer(network: Any) -> PreTrainedTokenizerBase:  # a StitchedModel, whose file is above this one
    """Get the tokenizer of a network, and keep it with the network.

    Raises:
        ValueError: if there is none.
    """
    source, local = _source(network)
    if network.tokenizer is None and not source:
        raise ValueError(f"{_MISSING}.")
    if network.tokenizer is None:
        with library_errors(_MISSING, *_ERRORS):
            network.tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    tokenizer: PreTrainedTokenizerBase = network.tokenizer
    return tokenizer


def read_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a folder, or from a repository on the Hub.

    Raises:
        ValueError: if there is none.
    """
    with library_errors(f"there is no tokenizer in {source!r}: expected a folder with {_FILE}, or USER/NAME", *_ERRORS):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, local_files_only=Path(source).is_dir()
        )
        return tokenizer


def save_tokenizer(network: Any, folder: Path) -> None:
    """Write the tokenizer of a network of texts into a folder, if there is one."""
    source, _ = _source(network)
    if network.main_input_name != "input_ids" or (network.tokenizer is None and not source):
        return
    try:
        network_tokenizer(network).save_pretrained(str(folder))
    except _ERRORS as error:
        _logger.warning("the tokenizer is not saved with the network: %s", error)


def _source(network: Any) -> tuple[str, bool]:
    """Find the folder or repository with the tokenizer, and whether it is a folder; empty if there is none."""
    folder = str(network.name_or_path or "")
    if folder and (Path(folder) / _FILE).is_file():
        return folder, True
    return str(network.trained.get("pulled_from") or ""), False
