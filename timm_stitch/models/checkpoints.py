"""Reading weights: the authors' layout becomes ours, and foreign weights are refused in one line.

The authors' names are in `authors_layout`. Files are read with `weights_only`.
"""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors.torch import load_file
from timm.models import PretrainedCfg
from torch import Tensor, nn

from ..families.dense.network import DenseNetwork
from ..families.timm_models.naming import make_registered
from ..families.timm_models.network import SNNet
from ..families.timm_models.pretrained_cfg import cfg_of, stems_and_heads
from ..hub.errors import FetchError, fetch_error, local_files_advice, redact_tokens, unreadable
from ..network.weights import EXTRA_STATE, check_keys, split_norm
from .authors_layout import is_authors, rename
from .published import is_registered
from .segmentation_weights import convert_segmentation, refuse_segmentation
from .state_dicts import adapt_anchors, unwrap


def convert_checkpoint(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, object], name: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Turn one of the authors' checkpoints into our layout.

    Args:
        path_or_state_dict: a file of theirs (a release, or a training checkpoint that holds the optimizer too),
            or its contents as `torch.load` returns them.
        name: the name of the registered network, e.g. `"snnet_deit_tsb"`.

    Returns:
        The state dict, and the arguments of `timm.create_model(name, ...)` with which the network computes
        the same as the authors' code.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a checkpoint of that network.

    Examples:
        >>> import timm, timm_stitch
        >>> state_dict, args = timm_stitch.convert_checkpoint("snnet_deit.pth", "snnet_deit_tsb")  # doctest: +SKIP
        >>> model = timm.create_model("snnet_deit_tsb", **args)  # doctest: +SKIP
        >>> model.load_state_dict(state_dict)  # doctest: +SKIP
        <All keys matched successfully>
    """
    loaded = path_or_state_dict
    raw = dict(loaded) if isinstance(loaded, Mapping) else read_weights(loaded)
    model = make_registered(name, device="meta")
    weights = unwrap(raw)
    if isinstance(model, DenseNetwork):
        return convert_segmentation(weights, name)
    if not isinstance(model, SNNet):
        raise ValueError(f"the authors have no weights of {name!r}: give the name of a network of theirs.")
    refuse_segmentation(weights)
    if not is_authors(weights):
        raise ValueError(
            f"these weights are not in the authors' layout (no 'stitch_layers.…' among {list(weights)[:3]} …): "
            "give a file of github.com/ziplab/SN-Net; weights in our layout need no conversion."
        )
    state_dict = from_authors(weights, model)
    check_keys(state_dict, model.state_dict(), f"the authors' {name}")
    with_norm = trained_with_norm(model)
    if not with_norm:
        state_dict[EXTRA_STATE] = torch.tensor(False)
    return state_dict, {"stitched_norm": with_norm}


def read_weights(path: str | os.PathLike[str]) -> Mapping[str, object]:
    """Read a safetensors or PyTorch file without running anything in it.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is truncated, corrupt, or wants more than weights unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {str(path)!r}: check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            contents: Mapping[str, object] = torch.load(path, map_location="cpu", weights_only=True)
            return contents
    except OSError:
        raise
    except Exception as error:  # torch's unpickler raises whatever a damaged file leads it to
        raise unreadable(path, error) from error


def trained_with_norm(model: SNNet) -> bool:
    """Whether the authors trained a network with the final norm on stitched paths: all networks but DeiT's."""
    return model.published is None or model.published.stitched_norm


def from_authors(state_dict: Mapping[str, Tensor], model: SNNet) -> dict[str, Tensor]:
    """Turn weights in the authors' layout into ours; tensors that need no change are not copied.

    Args:
        state_dict: the weights in the authors' layout.
        model: their network; it may be on the meta device.
    """
    return adapt_anchors(rename(state_dict, model.plan), model.anchors)


def adapt(state_dict: Mapping[str, object], model: SNNet, stitched_norm: bool | None) -> dict[str, Tensor]:
    """Adapt weights to a network; timm's loader calls this between reading and loading them.

    The weights are in the authors' layout or ours. Each anchor's own family adapts its weights
    (position embeddings to another image size, and so on).

    Args:
        state_dict: the contents of the file.
        model: the network that is being loaded.
        stitched_norm: the caller's choice; None for that of the weights' training.
    """
    flag: bool | None
    weights = unwrap(state_dict)
    refuse_segmentation(weights)
    if is_authors(weights):
        weights, flag = from_authors(weights, model), trained_with_norm(model)
    else:
        weights, flag = split_norm(weights)
        weights = adapt_anchors(weights, model.anchors)
    flag = flag if stitched_norm is None else stitched_norm
    if flag is not None:
        model.stitched_norm = flag
    # Classifiers and first convolutions may differ: timm adapts them to num_classes and in_chans.
    named = stems_and_heads([cfg_of(anchor) for anchor in model.anchors])
    adaptable = {f"{name}.{leaf}" for name in named["classifier"] or () for leaf in ("weight", "bias")}
    adaptable |= {f"{name}.weight" for name in named["first_conv"] or ()}
    own = {k: v for k, v in model.state_dict().items() if k not in adaptable}
    check_keys({k: v for k, v in weights.items() if k not in adaptable}, own, "this network")
    return weights


def build_from_file(cfg: PretrainedCfg | None, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose weights may be downloaded or read, with one-line errors that name the file.

    Args:
        cfg: timm's configuration of the model, which names the file.
        build: the function that makes the model.

    Raises:
        OSError: if there is no such file or it cannot be fetched.
        ValueError: if it is not a readable weights file.
    """
    source = (cfg.file or cfg.hf_hub_id or cfg.url or cfg.architecture) if cfg is not None else None
    try:
        # The authors' training checkpoints hold their command line: a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return build()
    except FetchError:
        raise  # an anchor's own, already in one line
    except OSError as error:
        redact_tokens(error)
        if isinstance(error, FileNotFoundError) and cfg is not None and cfg.file:
            raise _NoFileError(f"there is no weights file {str(source)!r}: check the path.") from error
        raise _fetch_error(cfg, source, error) from error
    except Exception as error:
        lines = str(error).splitlines()
        if isinstance(error, RuntimeError) and lines and lines[0].startswith("Error(s) in loading state_dict"):
            raise ValueError(
                f"the weights of {source!r} are not this network's ({' '.join(lines[1].split()):.160} …): give those "
                "that were saved of it."
            ) from error
        if _is_from_reader(error) or (error.__cause__ is not None and _is_from_reader(error.__cause__)):
            raise unreadable(str(source), error) from error
        raise


def _fetch_error(cfg: PretrainedCfg | None, source: object, error: Exception) -> FetchError:
    """Make the error for weights that timm could not fetch, which names the model and the way without internet."""
    name = cfg.architecture if cfg is not None else None
    if name and is_registered(name):
        advice = (
            "Without internet, fetch the authors' file elsewhere, then run "
            f"`timm-stitch convert FILE {name} --output net` and name net instead; in Python, "
            "timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file='PATH'))."
        )
    else:
        advice = local_files_advice(name if name != "snnet" else None, cfg.hf_hub_id if cfg is not None else None)
    return fetch_error(f"{source!r}, the weights of {name!r}" if name else repr(source), error, advice)


class _NoFileError(FetchError, FileNotFoundError):
    """There is no such file."""


def _is_from_reader(error: BaseException) -> bool:
    """Whether the readers of weight files raised an error."""
    readers = (torch.serialization.__file__, safetensors.torch.__file__)
    return any(frame.f_code.co_filename in readers for frame, _ in traceback.walk_tb(error.__traceback__))
