"""Networks from the Hugging Face Hub or a folder: whole, or only what one stitch needs.

Pulls use huggingface_hub's own cache, endpoint and token; a token is never shown.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import timm
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub import errors as hub
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..families.timm_models.meta_build import materialize
from ..families.timm_models.network import SNNet
from ..families.transformers_models.task_names import is_of_transformers
from ..files import steadily
from ..network.stitchable import StitchableNetwork
from ..network.weights import NORM_FLAG, check_keys, fingerprint_of, glance, split_norm
from ..plan.stitch_plan import StitchPlan
from .errors import check_repo_id, check_token, explained, unreadable
from .json_files import (
    CONFIG_FILE,
    STITCHES_FILE,
    WEIGHTS_FILE,
    network_files,
    read_config,
    read_json,
    read_stitches,
    remember,
)
from .safetensors_ranges import NoRangesError, RemoteFile, read_local

_logger = logging.getLogger(__name__)


def from_hub(
    repo_or_folder: str | os.PathLike[str],
    *,
    extract: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> Any:
    """Load a network that `save_pretrained` or `push_to_hub` kept.

    Args:
        repo_or_folder: `"user/name"`, `"user/name@revision"`, or a folder; `"hf-hub:…"` is always the Hub, and
            `"local-dir:…"` always a folder.
        extract: fetch and load this one stitch, and nothing that it does not use.
        revision: branch, tag or commit.
        token: as huggingface_hub takes it; default the one that is logged in.
        cache_dir: as huggingface_hub takes it.
        verify: compare the weights with the fingerprint kept beside them (of whole networks).
        **kwargs: of `timm.create_model`, e.g. `stitch_id` and `num_classes`; with `extract` only num_classes. Of
            networks of transformers' models those of its `from_pretrained`, and `stitch_id`; with `extract` none.

    Returns:
        The network (an `SNNet`, or one of `timm_stitch.text`, by what was saved), in eval mode,
        on the CPU unless kwargs name a device. `select` finds its rows.

    Raises:
        ValueError: if the files are damaged, of other weights, or not those of an SN-Net; if there is no
            such stitch.
        OSError: if something cannot be fetched; says what happened and what to do.
    """
    check_token(token)
    word, _, place = str(repo_or_folder).rpartition(":")
    if word not in ("hf-hub", "local-dir"):
        word, place = "", str(repo_or_folder)
    folder = Path(place).expanduser()
    if word == "local-dir" and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {place!r}: give the one that save_pretrained wrote.")
    model: Any
    if word != "hf-hub" and folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{place!r} is a folder, which has no revision {revision!r}: give hf-hub:{place} for the Hub's, or no "
                "revision."
            )

        def read() -> Any:
            return _load(folder, verify, kwargs) if extract is None else _extract(folder, extract, kwargs)

        return steadily(network_files(folder), read).eval()
    repo_id, _, pinned = place.partition("@")
    check_repo_id(repo_id)
    remote = _Repository(repo_id, revision or pinned or None, token, None if cache_dir is None else Path(cache_dir))
    remote, folder = _fetch_files(remote, whole=extract is None)
    model = _load(folder, verify, kwargs) if extract is None else _extract(folder, extract, kwargs, remote)
    model.trained["pulled_from"] = repo_id
    return model.eval()


@dataclass(frozen=True)
class _Repository:
    """A repository of the Hub at a revision, and how it is asked."""

    repo_id: str
    revision: str | None
    token: str | bool | None
    cache_dir: Path | None

    def file(self, name: str) -> Path:
        """One of its files, in the cache."""
        path = hf_hub_download(
            self.repo_id, name, revision=self.revision, token=self.token, cache_dir=self.cache_dir
        )  # fmt: skip
        return Path(path)


def _fetch_files(remote: _Repository, whole: bool) -> tuple[_Repository, Path]:
    """Fetch config, rows and, of a whole network, weights; gives the repository at that commit, and their folder."""
    with explained(f"load {remote.repo_id}", token=remote.token):
        config = remote.file(CONFIG_FILE)
        remote = replace(remote, revision=_commit(config) or remote.revision)
        read_config(config)
        try:
            remote.file(STITCHES_FILE)
        except hub.LocalEntryNotFoundError:
            _logger.warning("%s: %s could not be fetched, so the rows are not known.", remote.repo_id, STITCHES_FILE)
        except hub.EntryNotFoundError:
            _logger.debug("%s has no %s", remote.repo_id, STITCHES_FILE)
        if whole:
            remote.file(WEIGHTS_FILE)
            if is_of_transformers(read_json(config)):
                with suppress(hub.EntryNotFoundError):  # of networks that generate
                    remote.file("generation_config.json")
    return remote, config.parent


def _load(folder: Path, verify: bool, kwargs: Mapping[str, Any]) -> Any:
    config = read_config(folder / CONFIG_FILE)
    file, rows = folder / WEIGHTS_FILE, folder / STITCHES_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS_FILE} in {str(folder)!r}: other weight files are not read.")
    theirs = is_of_transformers(config)
    if verify and rows.is_file():
        expected = _mark(rows)
        weights = read_local(file, _names(file))
        norm = None if theirs else bool(config.get("model_args", {}).get(NORM_FLAG, True))
        found = fingerprint_of(weights, norm)
        if expected is not None and found != expected:
            raise ValueError(
                f"the weights in {str(file)!r} are not those that {STITCHES_FILE} was written for (fingerprint "
                f"{found}, expected {expected!s:.32}): the file was damaged or exchanged. Fetch it again, or give "
                "verify=False to use it without the rows."
            )
    if theirs:
        return _load_transformers(folder, config, kwargs)
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)
    except TypeError as error:
        raise ValueError(f"this network cannot be built with these arguments: {error!s:.160}.") from error
    return model


def _load_transformers(folder: Path, config: Mapping[str, Any], kwargs: Mapping[str, Any]) -> StitchableNetwork:
    """A network of transformers' models from the files of a folder, with its rows."""
    from ..families.transformers_models.files import read_network

    model = read_network(folder, config, **kwargs)
    _remember_rows(model, folder, model.plan)
    return model


def _mark(rows: Path) -> Any:
    """The fingerprint in a `stitches.json`; None, with a warning, where it cannot be read."""
    try:
        return read_json(rows).get("weights")
    except ValueError as error:
        _logger.warning("the weights are not compared with their fingerprint: %s", error)
        return None


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise unreadable(file, error) from error


def _extract(folder: Path, stitch_id: int, kwargs: Mapping[str, Any], remote: _Repository | None = None) -> Any:
    """One stitch from the files of a folder, or with its weights by ranges from the Hub."""
    other = sorted(set(kwargs) - {"num_classes"})
    if other:
        raise ValueError(
            f"extract={stitch_id} loads the stitch as it was saved, and takes no {', '.join(other)}: load the whole "
            "network with these, then extract; num_classes is possible."
        )
    config = read_config(folder / CONFIG_FILE)
    if is_of_transformers(config):
        return _extract_transformers(folder, config, stitch_id, kwargs, remote)
    shape = {"num_classes": config.get("num_classes"), "pretrained_cfg": dict(config["pretrained_cfg"])}
    try:
        whole = timm.create_model(config["architecture"], device="meta", **{**config.get("model_args", {}), **shape})
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"config.json asks for a network that cannot be built ({error!s:.160}).") from error
    if not isinstance(whole, SNNet):
        raise ValueError(f"config.json asks for a {type(whole).__name__} instead of the network: save it again.")
    small = whole.extract(stitch_id)
    own, _ = split_norm(small.state_dict())
    tensors = _tensors(folder, remote, own)
    check_keys(tensors, own, f"stitch {stitch_id} of this network")
    small.load_state_dict(tensors)
    materialize(small)
    _remember_rows(small, folder, whole.plan, weights=glance(small))
    small.set_stitch(stitch_id)
    if "num_classes" in kwargs:
        small.reset_classifier(kwargs["num_classes"])
    return small


def _tensors(folder: Path, remote: _Repository | None, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, from the files of a folder or the Hub."""
    if remote is not None:
        return _fetch(remote, own)
    _check_file(folder / WEIGHTS_FILE)
    return read_local(folder / WEIGHTS_FILE, own)


def _remember_rows(model: StitchableNetwork, folder: Path, plan: StitchPlan, **weights: Any) -> None:
    """Let a network that was loaded know its rows, as those of `weights` if that is given."""
    try:
        remember(model, read_stitches(folder / STITCHES_FILE, plan) | weights)
    except OSError:
        _logger.debug("no rows beside the weights")
    except ValueError as error:
        _logger.warning("the network loads without its rows: %s", error)


def _extract_transformers(
    folder: Path, config: Mapping[str, Any], stitch_id: int, kwargs: Mapping[str, Any], remote: _Repository | None
) -> StitchableNetwork:
    """One stitch of a network of transformers' models."""
    if kwargs:
        raise ValueError(
            f"extract={stitch_id} loads the stitch as it was saved, and takes no {', '.join(sorted(kwargs))}."
        )
    from ..families.transformers_models.files import read_stitch

    small = read_stitch(config, stitch_id, partial(_tensors, folder, remote))
    _remember_rows(small, folder, StitchPlan.from_dict(config["plan"]), weights=glance(small))
    return small


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {file.name} in {str(file.parent)!r}: expected what save_pretrained writes."
        )


def _fetch(remote: _Repository, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name from the Hub: from a whole file that the cache has, by ranges, or else from the whole file."""
    repo_id = remote.repo_id
    cached = try_to_load_from_cache(repo_id, WEIGHTS_FILE, remote.cache_dir, remote.revision)
    if isinstance(cached, str):
        _logger.info("%s: the whole file is in the cache, nothing was fetched.", repo_id)
        return read_local(cached, own)
    with explained(f"load {repo_id}", token=remote.token):
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
                check_keys(cast("Mapping[str, Tensor]", wanted), own, "this network")  # which looks at shapes alone
                tensors = file.tensors(wanted)
                whole = meta.size or max(entry.stop for entry in entries.values())
                _logger.info(
                    "%s: %s of %s bytes were fetched, which saved %s.", repo_id, f"{file.read:,}", f"{whole:,}",
                    f"{whole - file.read:,}",
                )  # fmt: skip
                return tensors
            except NoRangesError:
                _logger.warning("%s: the server sends no parts of files, so the whole file is fetched.", repo_id)
        return read_local(remote.file(WEIGHTS_FILE), own)


def _in_cache(repo_id: str, etag: str | None, cache_dir: Path | None) -> bool:
    """Whether the cache has this very content, perhaps of another commit."""
    blobs = Path(cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"), "blobs")
    return bool(etag) and (blobs / str(etag)).is_file()


def _commit(path: Path) -> str | None:
    """The commit whose snapshot in the cache a file is in."""
    return path.parent.name if path.parent.parent.name == "snapshots" else None
