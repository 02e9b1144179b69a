"""Load a network by a registered name, by the names of its anchors, from a folder, or from the Hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import hf_hub_download
from torch import Tensor

from ..errors import library_errors, one_line_errors
from ..families.family import (
    CONFIG_FILE,
    STITCHES_FILE,
    WEIGHTS_FILE,
    Family,
    ReadTensors,
    SavedNetwork,
    add_loading_callback,
)
from ..families.registry import families, family_of_config
from ..families.saved_files import check_inside, read_json
from ..files import PathLike, read_consistently
from ..network.stitchable import StitchableNetwork
from ..network.weights import cache_fingerprint, fingerprint_of, sum_tensors
from ..plan.bounds import JsonObject
from .errors import check_repo_id, check_token, translate_hub_errors
from .json_files import edited_message, load_results, load_results_of_cfg, network_files, read_saved
from .repository import Repository, fetch_network, fetch_tensors
from .safetensors_ranges import read_local
from .stitch_files import read_stitch_file

_logger = logging.getLogger(__name__)

_SOURCES = ("hf-hub", "local-dir")
_CHECKPOINTS = (".tar", ".pth", ".pt")  # of timm's train.py


def load(
    names: PathLike | Sequence[str], *, pretrained: bool = True, device: str = "cpu", **arguments: Any
) -> StitchableNetwork:
    """Load or make a stitchable network of any family.

    Args:
        names: a registered name (`"snnet_deit_tsb"`), a folder of `save_pretrained`, `"hf-hub:USER/NAME"`, or several
            models to stitch, fastest first, each by its timm name, its folder, `"hf-hub:USER/NAME"`, or a checkpoint of
            timm's `train.py` (`"output/run/model_best.pth.tar"`).
        pretrained: whether to load weights.
        device: the device of the network; on `"meta"` it has no weights.
        **arguments: further arguments of `from_hub` for saved networks, else of `timm.create_model`. The `anchors` of
            `"snnet"` may also be folders or on the Hub.

    Returns:
        The network.

    Raises:
        ValueError: if there is no such network, or it is not stitchable.
        OSError: if its files cannot be fetched or read.

    Examples:
        >>> import timm_stitch
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
    if len(sources) == 1 and _split_source(sources[0])[0]:
        arguments |= ({} if device == "cpu" else {"device": device}) | ({} if pretrained else {"pretrained": False})
        return from_hub(sources[0], **arguments)
    family = _family_of_names(sources)
    with library_errors(f"cannot make {' + '.join(several)}", RuntimeError):
        return family.make(sources, pretrained, device, **arguments)


def from_hub(
    repo_or_folder: PathLike,
    *,
    extract: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: PathLike | None = None,
    verify: bool = True,
    **kwargs: Any,
) -> StitchableNetwork:
    """Load a network that `save_pretrained` saved or `push_to_hub` pushed.

    Args:
        repo_or_folder: `"user/name"`, `"user/name@revision"`, a folder, or a file of `timm-stitch extract` or
            `pull --stitch-id` with one stitch. The prefix `"hf-hub:"` names the Hub, and `"local-dir:"` a folder.
        extract: the id of a stitch to fetch and load alone, without anything that it does not use.
        revision: a branch, tag or commit.
        token: a token of huggingface_hub; default that of the current login.
        cache_dir: the cache of huggingface_hub.
        verify: whether to compare the weights of a whole network with their saved fingerprint, each tensor of a stitch
            with its checksum, and the configuration with its own (which networks saved by earlier versions lack).
        **kwargs: arguments of `timm.create_model`, e.g. `stitch_id` and `num_classes`; with `extract` only num_classes.
            For networks of transformers' models those of its `from_pretrained`, and `stitch_id`; with `extract` none.

    Returns:
        The network in eval mode, an `SNNet` or a network of transformers' models, on the CPU unless kwargs name a
        device. `select` uses its saved rows.

    Raises:
        ValueError: if the files are damaged, of other weights, or not those of a stitchable network; or if there is no
            such stitch.
        OSError: if something cannot be fetched.

    Examples:
        >>> import tempfile, timm_stitch
        >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False)
        >>> folder = timm_stitch.save_pretrained(model, tempfile.mkdtemp())
        >>> timm_stitch.from_hub(folder, extract=3).plan.stitches[0].name
        'levit_192[0:2] + levit_256[2:12]'
    """
    check_token(token)
    source, place = _split_source(str(repo_or_folder))
    folder = Path(place).expanduser()
    if source != "hf-hub" and folder.suffix == ".safetensors" and folder.is_file():
        return _load_file(folder, extract, verify, kwargs)
    if source == "local-dir" and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {place!r}: expected one that save_pretrained wrote.")
    if source != "hf-hub" and folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{place!r} is a folder, which has no revision {revision!r}: give hf-hub:{place} for a repository "
                "on the Hub, or no revision."
            )

        def read() -> StitchableNetwork:
            saved = read_saved(folder)
            if extract is None:
                return _load_whole(saved, verify, kwargs)
            return _load_stitch(saved, extract, verify, kwargs, partial(_read_tensors, folder / WEIGHTS_FILE))

        with one_line_errors(f"the network in {place!r} cannot be loaded"):
            return read_consistently(network_files(folder), read).eval()
    repo_id, _, pinned = place.partition("@")
    check_repo_id(repo_id)
    remote = Repository(repo_id, revision or pinned or None, token, None if cache_dir is None else Path(cache_dir))
    remote, saved = fetch_network(remote, whole=extract is None and kwargs.get("pretrained", True))
    with one_line_errors(f"the network of {repo_id!r} cannot be loaded"):
        if extract is None:
            network = _load_whole(saved, verify, kwargs)
        else:
            network = _load_stitch(saved, extract, verify, kwargs, partial(fetch_tensors, remote))
    network.trained["pulled_from"] = repo_id
    return network.eval()


def _load_file(file: Path, extract: int | None, verify: bool, arguments: JsonObject) -> StitchableNetwork:
    """Load the stitch of a file that `save_stitch` wrote."""
    saved, stitch_id = read_stitch_file(file)
    if extract not in (None, stitch_id):
        raise ValueError(f"{str(file)!r} holds stitch {stitch_id}, not {extract}: leave extract out.")
    return _load_stitch(saved, stitch_id, verify, arguments, partial(_read_tensors, file)).eval()


def _load_whole(saved: SavedNetwork, verify: bool, arguments: JsonObject) -> StitchableNetwork:
    """Load a network from the files of a folder, after a check of its weights against their fingerprint."""
    family, file = family_of_config(saved.config), saved.folder / WEIGHTS_FILE
    if not arguments.get("pretrained", True):
        return family.load(saved, **arguments)
    _check_file(file)
    has_fingerprint = verify and saved.fingerprint is not None
    if has_fingerprint:
        weights = read_local(file)
        fingerprint = fingerprint_of(weights, family.stitched_norm(saved.config))
        if fingerprint != saved.fingerprint:
            raise ValueError(
                f"the weights in {str(file)!r} do not belong to stitches.json (fingerprint "
                f"{fingerprint}, expected {saved.fingerprint!s:.32}): the file is damaged or was replaced. Fetch it "
                "again, or give verify=False to use it without the rows."
            )
        del weights
    network = family.load(saved, **arguments)
    _refuse_edited(saved, verify)
    load_results(network, saved)
    if has_fingerprint and not arguments:
        cache_fingerprint(network, fingerprint)
    return network


def _load_stitch(
    saved: SavedNetwork,
    stitch_id: int,
    verify: bool,
    arguments: JsonObject,
    read_tensors: ReadTensors,
) -> StitchableNetwork:
    """Load one stitch, with its weights from a file or by ranges from the Hub, each compared with its checksum."""

    def read_checked(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = read_tensors(own)
        if verify and saved.sums is not None:
            _check_sums(tensors, saved.sums)
        return tensors

    network = family_of_config(saved.config).load_stitch(saved, stitch_id, read_checked, **arguments)
    _refuse_edited(saved, verify)
    network.__dict__["_saved_config"] = saved.config
    load_results(network, saved)
    return network


def _refuse_edited(saved: SavedNetwork, verify: bool) -> None:
    """Refuse a network of another configuration than was saved, once building it has named what is strange."""
    if not saved.is_edited:
        return
    if verify:
        raise ValueError(f"{edited_message(saved)} Fetch it again, or give verify=False to load it as it is.")
    _logger.warning("%s", edited_message(saved))


def _check_sums(tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    other = [name for name, checksum in sum_tensors(tensors).items() if saved.get(name) != checksum]
    if other:
        raise ValueError(
            f"{len(other)} tensors of {WEIGHTS_FILE} (e.g. {other[0]!r:.80}) are not those that {STITCHES_FILE} was "
            "written for: the file was damaged or exchanged. Fetch it again, or give verify=False to use it so."
        )


def _load_rows(network: StitchableNetwork, source: str, options: JsonObject) -> None:
    """Add the saved rows to a network that transformers' own loader loaded from a folder or the Hub."""
    if Path(source).is_dir():
        cfg = SimpleNamespace(source="local-dir", file=source)
    else:
        revision = options.get("revision")
        cfg = SimpleNamespace(source="hf-hub", hf_hub_id=f"{source}@{revision}" if revision else source)
    load_results_of_cfg(network, cfg, options.get("cache_dir"))


def _read_tensors(file: Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    _check_file(file)
    return read_local(file, own)


def _check_file(file: Path) -> None:
    if file.is_file() or file.is_symlink():
        check_inside(file)
    elif file.with_name(f"{file.name}.index.json").is_file():
        raise FileNotFoundError(
            f"the weights in {str(file.parent)!r} are in several files, and only {file.name} is read: load it by "
            "transformers' AutoModel classes, and save it with timm_stitch.save_pretrained."
        )
    else:
        raise FileNotFoundError(
            f"there is no {file.name} in {str(file.parent)!r}: expected a folder that save_pretrained wrote; other "
            "weight files are not read."
        )


def to_source(name: str) -> str:
    """Add the prefix `local-dir:` to the name of a folder, and `checkpoint:` to that of a checkpoint."""
    source, place = _split_source(name)
    path = Path(place).expanduser()
    own = path.is_dir() or (path.suffix == ".safetensors" and path.is_file())
    if not source and path.suffix in _CHECKPOINTS and path.is_file():
        return f"checkpoint:{place}"
    return f"local-dir:{place}" if not source and own else name


def _split_source(name: str) -> tuple[str, str]:
    """Split a name into its prefix (`"hf-hub"`, `"local-dir"` or nothing) and the rest."""
    source, _, place = name.partition(":")
    return (source, place) if source in _SOURCES else ("", name)


def _family_of_names(sources: Sequence[str]) -> Family:
    """Find the one family of the models with these names."""
    of_names = []
    for source in sources:
        config = _config_of(source)
        of_names.append(next(family for family in families() if family.names_anchor(source, config)))
    if len({family.name for family in of_names}) > 1:
        names = " and ".join(sorted({family.name for family in of_names}))
        raise ValueError(f"cannot stitch models of {names} into one network: name models of one of them.")
    return of_names[0]


def _config_of(source: str) -> JsonObject | None:
    """Read the `config.json` of a folder or repository of one model; None for a registered name."""
    kind, place = _split_source(source)
    if kind == "local-dir":
        return read_json(Path(place) / CONFIG_FILE)
    if kind == "hf-hub":
        repo_id, _, revision = place.partition("@")
        with translate_hub_errors(f"load {repo_id}"):
            return read_json(hf_hub_download(repo_id, CONFIG_FILE, revision=revision or None))
    return None


add_loading_callback(_load_rows)
