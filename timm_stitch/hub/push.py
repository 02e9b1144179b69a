"""Networks to and from the Hugging Face Hub: whole, or only what one stitch needs.

Pushes are one commit. Pulls use huggingface_hub's own cache, endpoint and token; a token is never shown.
Imports everything below.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)  # fmt: skip
from huggingface_hub import errors as hub
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, build_hf_headers
from huggingface_hub.utils._validators import validate_repo_id

from ..anchors.meta_device import materialize
from ..network.network import SNNet
from ..network.weights import NORM_FLAG, check_keys, fingerprint_of, glance
from .errors import explained
from .json_files import CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE, read_config, read_json, read_stitches, remember
from .model_card import TAG
from .safetensors_ranges import NoRangesError, RemoteFile, read_local
from .saving import CARD_FILE, CURVE_FILE, save_pretrained

_logger = logging.getLogger(__name__)


def push_to_hub(
    model: SNNet,
    repo_id: str,
    *,
    results: Iterable[Mapping[str, Any]] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
    **card: Any,
) -> str:
    """Put a network on the Hub in one commit: weights, config, stitches.json, the card and its curve.

    The repository is made if there is none. What a user wrote into a card that is there is kept; results, usage
    and the list of anchors in it are written anew. If anything fails, what was in the repository stays.

    Args:
        model: as for `save_pretrained`.
        repo_id: `"user/name"`.
        results: rows from `evaluate`.
        private: for a repository that is made now.
        revision: the branch, made if there is none; default `main`.
        create_pr: open a pull request instead of committing to the branch.
        commit_message, commit_description: of the commit.
        token: as huggingface_hub takes it; default the one that is logged in.
        **card: the other arguments of `save_pretrained`: dataset, split, base_models, license and so on.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ValueError: as `save_pretrained`, or if `repo_id` is none.
        OSError: if the Hub refuses or cannot be reached; says what happened and what to do.
    """
    _check_id(repo_id)
    api = HfApi(token=token, library_name="timm_stitch")
    with tempfile.TemporaryDirectory(prefix="timm-stitch-") as folder:
        # Everything that can be refused here is refused before the Hub hears of it.
        save_pretrained(model, folder, results, repo_id=repo_id, **card)
        with explained(f"push to {repo_id}", "nothing was committed"):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            info = api.model_info(repo_id, revision=revision)
            there = {file.rfilename for file in info.siblings or ()}
            if CARD_FILE in there:
                card_there = api.hf_hub_download(repo_id, CARD_FILE, revision=info.sha, local_dir=Path(folder, "old"))
                Path(folder, CARD_FILE).write_bytes(Path(card_there).read_bytes())
        if CARD_FILE in there:
            save_pretrained(model, folder, results, repo_id=repo_id, **card)
        names = [
            name
            for name in (CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE, CARD_FILE, CURVE_FILE)
            if Path(folder, name).exists()
        ]
        operations: list[Any] = [CommitOperationAdd(name, Path(folder, name)) for name in names]
        if CURVE_FILE in there - set(names):
            operations.append(CommitOperationDelete(CURVE_FILE))
        with explained(f"push to {repo_id}", lambda: _left(api, repo_id, revision, info.sha)):
            commit = api.create_commit(
                repo_id, operations, revision=revision, create_pr=create_pr, parent_commit=info.sha,
                commit_message=commit_message or f"{model.num_stitches} stitches by timm_stitch",
                commit_description=commit_description,
            )  # fmt: skip
    return str(commit.pr_url or commit.commit_url)


def list_hub(
    search: str | None = None, *, author: str | None = None, limit: int = 50, token: str | bool | None = None
) -> list[dict[str, Any]]:
    """The stitchable networks on the Hub, by the tag that their cards have; most downloaded first.

    Args:
        search: a part of their names.
        author: a user or an organisation.
        limit: the most to list.
        token: as huggingface_hub takes it; default the one that is logged in.

    Returns:
        Dicts of `repo_id`, `downloads`, `likes`, `updated` (a date) and `private`.

    Raises:
        OSError: if the Hub refuses or cannot be reached.
    """
    with explained("list the networks on the Hub", "nothing was fetched"):
        found = HfApi(token=token, library_name="timm_stitch").list_models(
            filter=TAG, search=search, author=author, sort="downloads", limit=limit
        )
        return [
            {
                "repo_id": info.id,
                "downloads": info.downloads,
                "likes": info.likes,
                "updated": str(info.last_modified.date()) if info.last_modified else None,
                "private": info.private,
            }
            for info in found
        ]


def from_hub(
    repo_or_folder: str | os.PathLike[str],
    *,
    extract: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> SNNet:
    """Load a network that `save_pretrained` or `push_to_hub` kept.

    Args:
        repo_or_folder: `"user/name"`, `"user/name@revision"`, or a folder.
        extract: fetch and load this one stitch, and nothing that it does not use.
        revision: branch, tag or commit.
        token: as huggingface_hub takes it; default the one that is logged in.
        cache_dir: as huggingface_hub takes it.
        verify: compare the weights with the fingerprint kept beside them (of whole networks).
        **kwargs: of `timm.create_model`, e.g. `stitch_id` and `num_classes`; with `extract` only num_classes.

    Returns:
        The network, in eval mode, on the CPU unless kwargs name a device. `select` finds its rows.

    Raises:
        ValueError: if the files are damaged, of other weights, or not those of an SN-Net; if there is no
            such stitch.
        OSError: if something cannot be fetched; says what happened and what to do.
    """
    place = str(repo_or_folder).removeprefix("local-dir:").removeprefix("hf-hub:")
    if Path(place).expanduser().is_dir():
        folder = Path(place).expanduser()
        model = _load(folder, verify, kwargs) if extract is None else _extract(folder, extract, kwargs)
        return model.eval()
    repo_id, _, pinned = place.partition("@")
    _check_id(repo_id)
    hub_args = {"revision": revision or pinned or None, "token": token, "cache_dir": cache_dir}
    with explained(f"load {repo_id}"):
        config = Path(hf_hub_download(repo_id, CONFIG_FILE, **hub_args))  # type: ignore[arg-type]
        hub_args["revision"] = _commit(config) or hub_args["revision"]
        read_config(config)
        try:
            hf_hub_download(repo_id, STITCHES_FILE, **hub_args)  # type: ignore[arg-type]
        except hub.LocalEntryNotFoundError:
            _logger.warning("%s: %s could not be fetched, so the rows are not known.", repo_id, STITCHES_FILE)
        except hub.EntryNotFoundError:
            _logger.debug("%s has no %s", repo_id, STITCHES_FILE)
        if extract is None:
            weights = hf_hub_download(repo_id, WEIGHTS_FILE, **hub_args)  # type: ignore[arg-type]
    if extract is None:
        model = _load(Path(weights).parent, verify, kwargs)
    else:
        model = _extract(config.parent, extract, kwargs, (repo_id, hub_args))
    model.trained["pulled_from"] = repo_id
    return model.eval()


def _load(folder: Path, verify: bool, kwargs: Mapping[str, Any]) -> Any:
    config = read_config(folder / CONFIG_FILE)
    file, rows = folder / WEIGHTS_FILE, folder / STITCHES_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS_FILE} in {str(folder)!r}: other weight files are not read.")
    if verify and rows.is_file():
        expected = read_json(rows).get("weights")
        weights = read_local(file, _names(file))
        norm = None if NORM_FLAG in weights else bool(config.get("model_args", {}).get(NORM_FLAG, True))
        found = fingerprint_of(weights, norm)
        if found != expected:
            raise ValueError(
                f"the weights in {str(file)!r} are not those that {STITCHES_FILE} was written for (fingerprint "
                f"{found}, expected {expected!s:.32}): the file was damaged or exchanged. Fetch it again, or give "
                "verify=False to use it without the rows."
            )
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)
    except TypeError as error:
        raise ValueError(f"this network cannot be built with these arguments: {error!s:.160}.") from error
    return model


def _names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ValueError(
            f"{str(file)!r} is no readable weights file ({error!s:.120}): it may be truncated. Fetch it again."
        ) from error


def _extract(
    folder: Path, stitch_id: int, kwargs: Mapping[str, Any], remote: tuple[str, dict[str, Any]] | None = None
) -> Any:
    """One stitch from the files of a folder, or with its weights by ranges from the Hub."""
    other = sorted(set(kwargs) - {"num_classes"})
    if other:
        raise ValueError(
            f"extract={stitch_id} loads the stitch as it was saved, and takes no {', '.join(other)}: load the whole "
            "network with these, then extract; num_classes is possible."
        )
    config = read_config(folder / CONFIG_FILE)
    shape = {"num_classes": config.get("num_classes"), "pretrained_cfg": dict(config["pretrained_cfg"])}
    try:
        whole = timm.create_model(config["architecture"], device="meta", **{**config.get("model_args", {}), **shape})
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"config.json asks for a network that cannot be built ({error!s:.160}).") from error
    small = whole.extract(stitch_id)
    own = {name: tensor for name, tensor in small.state_dict().items() if name != NORM_FLAG}
    if remote is None:
        _check_file(folder / WEIGHTS_FILE)
        tensors = read_local(folder / WEIGHTS_FILE, own)
    else:
        tensors = _fetch(*remote, own)
    check_keys(tensors, own, f"stitch {stitch_id} of this network")
    small.load_state_dict(tensors)
    model = materialize(small)
    try:
        rows = read_stitches(folder / STITCHES_FILE, whole.plan)
        remember(model, rows | {"weights": glance(model)})
    except OSError:
        _logger.debug("no rows beside the weights")
    except ValueError as error:
        _logger.warning("the stitch loads without its row: %s", error)
    model.set_stitch(stitch_id)
    if "num_classes" in kwargs:
        model.reset_classifier(kwargs["num_classes"])
    return model


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {file.name} in {str(file.parent)!r}: expected what save_pretrained writes."
        )


def _fetch(repo_id: str, hub_args: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by name from the Hub: from a whole file that the cache has, by ranges, or else from the whole file."""
    cached = try_to_load_from_cache(repo_id, WEIGHTS_FILE, hub_args["cache_dir"], hub_args["revision"])
    if isinstance(cached, str):
        _logger.info("%s: the whole file is in the cache, nothing was fetched.", repo_id)
        return read_local(cached, own)
    token = hub_args["token"]
    with explained(f"load {repo_id}"):
        url = hf_hub_url(repo_id, WEIGHTS_FILE, revision=hub_args["revision"])
        meta = get_hf_file_metadata(url, token=token)
        if not _in_cache(repo_id, meta.etag, hub_args["cache_dir"]):
            headers = build_hf_headers(token=token, library_name="timm_stitch")
            if urlsplit(meta.location).netloc != urlsplit(url).netloc:
                headers.pop("authorization", None)
            file = RemoteFile(meta.location, headers, WEIGHTS_FILE, meta.size)
            try:
                entries = file.header()
                check_shapes = {name: entries[name] for name in own if name in entries}
                check_keys(check_shapes, own, "this network")  # type: ignore[arg-type]
                tensors = file.tensors(check_shapes)
                whole = meta.size or max(entry.stop for entry in entries.values())
                _logger.info(
                    "%s: %s of %s bytes were fetched, which saved %s.", repo_id, f"{file.read:,}", f"{whole:,}",
                    f"{whole - file.read:,}",
                )  # fmt: skip
                return tensors
            except NoRangesError:
                _logger.warning("%s: the server sends no parts of files, so the whole file is fetched.", repo_id)
        return read_local(hf_hub_download(repo_id, WEIGHTS_FILE, **hub_args), own)


def _in_cache(repo_id: str, etag: str | None, cache_dir: Any) -> bool:
    """Whether the cache has this very content, perhaps of another commit."""
    blobs = Path(cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"), "blobs")
    return bool(etag) and (blobs / str(etag)).is_file()


def _commit(path: Path) -> str | None:
    """The commit whose snapshot in the cache a file is in."""
    return path.parent.name if path.parent.parent.name == "snapshots" else None


def _check_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(
            f"{repo_id!r:.200} is neither a folder nor a repository of the Hub: expected 'user/name' or a folder."
        )


def _left(api: HfApi, repo_id: str, revision: str | None, before: str | None) -> str:
    """What a commit that failed left behind: an answer can be lost after the commit was made."""
    try:
        if api.model_info(repo_id, revision=revision).sha != before:
            return "there is a new commit, perhaps this one: look before pushing again"
    except Exception:
        return "whether it was committed is unknown: look before pushing again"
    return "nothing was committed"
