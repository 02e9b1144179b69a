"""One way to load a network: by a registered name, the names of its anchors, a folder, or from the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import library_errors
from ..families.family import CONFIG_FILE, WEIGHTS_FILE, Family, SavedNetwork
from ..families.registry import families, family_of_config
from ..files import PathLike, read_consistently
from ..network.stitchable import StitchableNetwork
from ..network.weights import cache_fingerprint, fingerprint_of
from .errors import check_repo_id, check_token, explained, unreadable
from .json_files import load_results, network_files, read_json, read_saved
from .repository import Repository, fetch_network, fetch_tensors
from .safetensors_ranges import read_local

_SOURCES = ("hf-hub", "local-dir")


def load(
    names: PathLike | Sequence[str], *, pretrained: bool = True, device: str = "cpu", **arguments: Any
) -> StitchableNetwork:
    """Load or make a stitchable network, whatever its anchors are.

    Args:
        names: a registered name (`"snnet_deit_tsb"`), a folder that `save_pretrained` wrote, `"hf-hub:USER/NAME"`, or
            several models to stitch, fastest first, each a timm name, a folder or on the Hub.
        pretrained: load weights.
        device: the device of the network; on `"meta"` it has no weights.
        **arguments: further arguments of `from_hub` for saved networks, else of `timm.create_model`; `anchors` of
            `"snnet"` may be folders and on the Hub, too.

    Returns:
        The network.

    Raises:
        ValueError: if there is no such network, or it is not a stitchable one.
        OSError: if its files cannot be fetched or read.

    Examples:
        >>> network = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
        >>> network.num_stitches
        8
    """
    several = [os.fspath(names)] if isinstance(names, (str, os.PathLike)) else list(names)
    anchors = arguments.get("anchors", ()) if several == ["snnet"] else ()
    if anchors and all(isinstance(name, str) for name in anchors) and any(":" in to_source(name) for name in anchors):
        several = list(anchors)
        arguments = {name: value for name, value in arguments.items() if name != "anchors"}
    sources = [to_source(name) for name in several]
    pretrained = pretrained and device != "meta"
    if len(sources) == 1 and ":" in sources[0]:
        arguments |= ({} if device == "cpu" else {"device": device}) | ({} if pretrained else {"pretrained": False})
        return from_hub(sources[0], **arguments)
    family = _family_of_names(sources)
    with library_errors(f"cannot make {' + '.join(several)}", RuntimeError):
        return family.make(sources, pretrained, device, **arguments)


def from_hub(
    repo_or_folder: str | os.PathLike[str],
    *,
    extract: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> StitchableNetwork:
    """Load a network that `save_pretrained` or `push_to_hub` kept.

    Args:
        repo_or_folder: `"user/name"`, `"user/name@revision"`, or a folder; `"hf-hub:…"` is always the Hub, and
            `"local-dir:…"` always a folder.
        extract: fetch and load this one stitch, and nothing that it does not use.
        revision: a branch, tag or commit.
        token: as huggingface_hub takes it; default the one that is logged in.
        cache_dir: as huggingface_hub takes it.
        verify: compare the weights with the fingerprint that was saved with them (of whole networks).
        **kwargs: arguments of `timm.create_model`, e.g. `stitch_id` and `num_classes`; with `extract` only num_classes.
            For networks of transformers' models those of its `from_pretrained`, and `stitch_id`; with `extract` none.

    Returns:
        The network (an `SNNet`, or one of `timm_stitch.text`, by what was saved), in eval mode,
        on the CPU unless kwargs name a device. `select` finds its rows.

    Raises:
        ValueError: if the files are damaged, of other weights, or not those of an SN-Net; if there is no
            such stitch.
        OSError: if something cannot be fetched; says what happened and what to do.
    """
    check_token(token)
    source, place = _split_source(str(repo_or_folder))
    folder = Path(place).expanduser()
    if source == "local-dir" and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {place!r}: give the one that save_pretrained wrote.")
    if source != "hf-hub" and folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{place!r} is a folder, which has no revision {revision!r}: give hf-hub:{place} for the Hub's, or no "
                "revision."
            )

        def read() -> StitchableNetwork:
            saved = read_saved(folder)
            if extract is None:
                return _load_whole(saved, verify, kwargs)
            return _load_stitch(saved, extract, kwargs, partial(_read_tensors, folder / WEIGHTS_FILE))

        return read_consistently(network_files(folder), read).eval()
    repo_id, _, pinned = place.partition("@")
    check_repo_id(repo_id)
    remote = Repository(repo_id, revision or pinned or None, token, None if cache_dir is None else Path(cache_dir))
    remote, saved = fetch_network(remote, whole=extract is None and kwargs.get("pretrained", True))
    if extract is None:
        network = _load_whole(saved, verify, kwargs)
    else:
        network = _load_stitch(saved, extract, kwargs, partial(fetch_tensors, remote))
    network.trained["pulled_from"] = repo_id
    return network.eval()


def _load_whole(saved: SavedNetwork, verify: bool, arguments: Mapping[str, Any]) -> StitchableNetwork:
    """Load a network from the files of a folder, after comparing its weights with their fingerprint."""
    family, file = family_of_config(saved.config), saved.folder / WEIGHTS_FILE
    if not arguments.get("pretrained", True):
        return family.load(saved, **arguments)
    _check_file(file)
    compared = verify and saved.fingerprint is not None
    if compared:
        weights = read_local(file, _tensor_names(file))
        fingerprint = fingerprint_of(weights, family.stitched_norm(saved.config))
        if fingerprint != saved.fingerprint:
            raise ValueError(
                f"the weights in {str(file)!r} are not those that stitches.json was written for (fingerprint "
                f"{fingerprint}, expected {saved.fingerprint!s:.32}): the file was damaged or exchanged. Fetch it "
                "again, or give verify=False to use it without the rows."
            )
        del weights
    network = family.load(saved, **arguments)
    load_results(network, saved)
    if compared and not arguments:
        cache_fingerprint(network, fingerprint)
    return network


def _load_stitch(
    saved: SavedNetwork,
    stitch_id: int,
    arguments: Mapping[str, Any],
    read_tensors: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> StitchableNetwork:
    """Load one stitch, with its weights from a file or by ranges from the Hub."""
    network = family_of_config(saved.config).load_stitch(saved, stitch_id, read_tensors, **arguments)
    load_results(network, saved)
    return network


def _read_tensors(file: Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    _check_file(file)
    return read_local(file, own)


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {file.name} in {str(file.parent)!r}: expected what save_pretrained writes; other weight "
            "files are not read."
        )


def _tensor_names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise unreadable(file, error) from error


def to_source(name: str) -> str:
    """A name with `local-dir:` before it where it is that of a folder."""
    source, place = _split_source(name)
    return f"local-dir:{place}" if not source and Path(place).expanduser().is_dir() else name


def _split_source(name: str) -> tuple[str, str]:
    """`"hf-hub"`, `"local-dir"` or nothing, and the place that is named."""
    source, _, place = name.partition(":")
    return (source, place) if source in _SOURCES else ("", name)


def _family_of_names(sources: Sequence[str]) -> Family:
    """The one family whose models these names are of."""
    chosen = []
    for source in sources:
        config = _config_of(source)
        chosen.append(next(family for family in families() if family.names_anchor(source, config)))
    if len({family.name for family in chosen}) > 1:
        names = " and ".join(sorted({family.name for family in chosen}))
        raise ValueError(f"cannot stitch models of {names} into one network: name models of one of them.")
    return chosen[0]


def _config_of(source: str) -> Mapping[str, Any] | None:
    """The `config.json` of a folder or repository of one model; None for a registered name."""
    kind, place = _split_source(source)
    if kind == "local-dir":
        return read_json(Path(place) / CONFIG_FILE)
    if kind == "hf-hub":
        repo_id, _, revision = place.partition("@")
        with explained(f"load {repo_id}"):
            return read_json(hf_hub_download(repo_id, CONFIG_FILE, revision=revision or None))
    return None
