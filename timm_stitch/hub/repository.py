"""Fetch whole files of a repository on the Hub, or only the bytes that one stitch needs.

Fetching uses huggingface_hub's cache, endpoint and token. Errors never show a token.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub import errors as hub
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers
from torch import Tensor

from ..families.family import CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE, SavedNetwork
from ..families.registry import family_of_config
from ..network.weights import check_keys
from .errors import translate_hub_errors
from .json_files import read_saved
from .safetensors_ranges import NoRangesError, RemoteFile, read_local

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at a revision, and how to reach it.

    Args:
        repo_id: `"user/name"`.
        revision: a branch, tag or commit.
        token, cache_dir: the arguments of huggingface_hub.
    """

    repo_id: str
    revision: str | None
    token: str | bool | None
    cache_dir: Path | None

    def file(self, name: str) -> Path:
        """Fetch one of its files to the cache."""
        path = hf_hub_download(
            self.repo_id, name, revision=self.revision, token=self.token, cache_dir=self.cache_dir
        )  # fmt: skip
        return Path(path)


def fetch_network(remote: Repository, whole: bool) -> tuple[Repository, SavedNetwork]:
    """Fetch configuration and rows of a network, and its weights where the whole network is needed.

    Returns:
        The repository at the fetched commit, and the contents of its JSON files.

    Raises:
        ValueError: if the files are not those of a network.
        OSError: if they cannot be fetched.
    """
    with translate_hub_errors(f"load {remote.repo_id}", token=remote.token):
        config = remote.file(CONFIG_FILE)
        remote = replace(remote, revision=_commit(config) or remote.revision)
        try:
            remote.file(STITCHES_FILE)
        except hub.LocalEntryNotFoundError:
            _logger.warning("%s: %s could not be fetched, so the rows are not known.", remote.repo_id, STITCHES_FILE)
        except hub.EntryNotFoundError:
            _logger.debug("%s has no %s", remote.repo_id, STITCHES_FILE)
        saved = read_saved(config.parent)
        if whole:
            remote.file(WEIGHTS_FILE)
            for name in family_of_config(saved.config).extra_files:
                with suppress(hub.EntryNotFoundError):
                    remote.file(name)
    return remote, saved


def fetch_tensors(remote: Repository, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fetch tensors by name: from a file in the cache, by ranges, or else with the whole file.

    Raises:
        ValueError: if the file has other tensors.
        OSError: if it cannot be fetched.
    """
    repo_id = remote.repo_id
    cached = try_to_load_from_cache(repo_id, WEIGHTS_FILE, remote.cache_dir, remote.revision)
    if isinstance(cached, str):
        _logger.info("%s: the whole file is in the cache, nothing was fetched.", repo_id)
        return read_local(cached, own)
    with translate_hub_errors(f"load {repo_id}", token=remote.token):
        url = hf_hub_url(repo_id, WEIGHTS_FILE, revision=remote.revision)
        meta = get_hf_file_metadata(url, token=remote.token)
        if not _in_cache(repo_id, meta.etag, remote.cache_dir):
            headers = build_hf_headers(token=remote.token, library_name="timm_stitch")
            if urlsplit(meta.location).netloc != urlsplit(url).netloc:
                headers.pop("authorization", None)
            file = RemoteFile(meta.location, headers, WEIGHTS_FILE, meta.size)
            try:
                entries = file.header()
                wanted = {name: entries[name] for name in own if name in entries}
                check_keys(cast("Mapping[str, Tensor]", wanted), own, "this network")  # which compares only shapes
                tensors = file.tensors(wanted)
                whole = meta.size or max(entry.stop for entry in entries.values())
                _logger.info(
                    "%s: %s of %s bytes were fetched, which saved %s.", repo_id, f"{file.read:,}", f"{whole:,}",
                    f"{whole - file.read:,}",
                )  # fmt: skip
                return tensors
            except NoRangesError:
                _logger.warning("%s: the server does not send parts of files, so the whole file is fetched.", repo_id)
        return read_local(remote.file(WEIGHTS_FILE), own)


def _in_cache(repo_id: str, etag: str | None, cache_dir: Path | None) -> bool:
    """Whether the cache has this content, perhaps from another commit."""
    blobs = Path(cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"), "blobs")
    return bool(etag) and (blobs / str(etag)).is_file()


def _commit(path: Path) -> str | None:
    """Get the commit whose snapshot in the cache holds a file."""
    return path.parent.name if path.parent.parent.name == "snapshots" else None
