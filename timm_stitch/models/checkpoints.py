"""Weights on their way in: the authors' layout to ours, and foreign weights refused in one line.

How the authors name things is in `authors_layout`. Nothing is read that needs more than `weights_only`.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors.torch import load_file
from timm.models import PretrainedCfg, clean_state_dict
from torch import Tensor, nn

from ..families.timm_models.network import SNNet
from ..families.timm_models.pretrained_cfg import stems_and_heads
from ..hub.errors import XET_ADVICE, is_xet_error, redact_tokens, unreadable
from ..network.weights import EXTRA_STATE, check_keys, split_norm
from .authors_layout import is_authors, rename


def convert_checkpoint(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any], name: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Turn one of the authors' checkpoints into our layout.

    Args:
        path_or_state_dict: a file of theirs (a release, or a training checkpoint with the optimizer
            and so on beside the weights), or what `torch.load` gives for it.
        name: the registered network that it is, e.g. `"snnet_deit_tsb"`.

    Returns:
        The state dict, and the arguments that `timm.create_model(name, ...)` needs for these weights
        to compute what the authors' code does.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a checkpoint of that network.
    """
    loaded = path_or_state_dict
    raw = dict(loaded) if isinstance(loaded, Mapping) else read_weights(loaded)
    model: Any = timm.create_model(name, device="meta")
    if not hasattr(model, "stitch_ids"):
        raise ValueError(f"{name!r} is not a stitchable network: expected one of {timm.list_models('snnet*')}.")
    weights = unwrap(raw)
    if not is_authors(weights):
        raise ValueError(
            f"these weights are not in the authors' layout (no 'stitch_layers.…' among {list(weights)[:3]} …): "
            "give a file of github.com/ziplab/SN-Net; weights in our layout need no conversion."
        )
    state_dict = from_authors(weights, model)
    check_keys(state_dict, model.state_dict(), f"the authors' {name}")
    with_norm = trained_with_norm(model)
    if not with_norm:
        state_dict[EXTRA_STATE] = torch.tensor(False)  # as in the network's own state_dict
    return state_dict, {"stitched_norm": with_norm}


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
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
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return loaded
    except OSError:
        raise
    except Exception as error:  # torch's unpickler raises whatever a damaged file leads it to
        raise unreadable(path, error) from error


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights inside what a file holds: the file may be a whole training checkpoint."""
    weights: Any = checkpoint
    for key in ("model", "state_dict"):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
    if not isinstance(weights, Mapping) or not any(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"no weights found: expected tensors by name, or such a dict under 'model'; got {list(checkpoint)[:6]}."
        )
    return clean_state_dict({k: v for k, v in weights.items() if isinstance(v, Tensor)})


def trained_with_norm(model: SNNet) -> bool:
    """Whether the authors trained a network with the final norm on stitched paths: all but DeiT's."""
    return model.published is None or model.published.stitched_norm


def from_authors(state_dict: Mapping[str, Tensor], model: SNNet) -> dict[str, Tensor]:
    """The authors' layout to ours; tensors that need no change are passed on, not copied.

    Args:
        state_dict: in the authors' layout.
        model: the network that it belongs to; it may be on the meta device.
    """
    return _by_family(rename(state_dict, model.plan), model)


def adapt(state_dict: Mapping[str, Any], model: SNNet, stitched_norm: bool | None) -> dict[str, Tensor]:
    """What timm's loader calls between reading weights and loading them.

    Takes the authors' layout or ours, and lets each anchor's own family adapt its weights
    (position embeddings to another image size, and so on).

    Args:
        state_dict: as read.
        model: the network that is being loaded.
        stitched_norm: what the caller asked for, or None: what the weights were trained with.
    """
    flag: bool | None
    weights = unwrap(state_dict)
    if is_authors(weights):
        weights, flag = from_authors(weights, model), trained_with_norm(model)
    else:
        weights, flag = split_norm(weights)
        weights = _by_family(weights, model)
    asked = flag if stitched_norm is None else stitched_norm
    if asked is not None:
        model.stitched_norm = asked
    # Classifiers and first convolutions may differ: timm adapts them to num_classes and in_chans.
    named = stems_and_heads([getattr(anchor, "pretrained_cfg", None) or {} for anchor in model.anchors])
    loose = {f"{name}.{leaf}" for name in named["classifier"] or () for leaf in ("weight", "bias")}
    loose |= {f"{name}.weight" for name in named["first_conv"] or ()}
    own = {k: v for k, v in model.state_dict().items() if k not in loose}
    check_keys({k: v for k, v in weights.items() if k not in loose}, own, "this network")
    return weights


def _by_family(weights: Mapping[str, Tensor], model: SNNet) -> dict[str, Tensor]:
    """Let each anchor's own family adapt its weights."""
    adapted = dict(weights)
    for number, anchor in enumerate(model.anchors):
        prefix = f"anchors.{number}."
        own = {k[len(prefix) :]: adapted.pop(k) for k in list(adapted) if k.startswith(prefix)}
        adapted.update({prefix + k: v for k, v in _family_filter(own, anchor).items()})
    return adapted


def _family_filter(state_dict: dict[str, Tensor], anchor: nn.Module) -> dict[str, Tensor]:
    """Apply the `checkpoint_filter_fn` that timm keeps beside an anchor's class, if there is one and need of it.

    Weights that fit are passed on as they are: some filters resample position embeddings to the size that they have.
    """
    own = {name: tensor.shape for name, tensor in anchor.state_dict().items()}
    if own == {name: tensor.shape for name, tensor in state_dict.items()}:
        return state_dict
    function = getattr(sys.modules.get(type(anchor).__module__), "checkpoint_filter_fn", None)
    if function is None or not state_dict:
        return state_dict
    takes_model = len(inspect.signature(function).parameters) > 1
    return dict(function(state_dict, anchor) if takes_model else function(state_dict))


def reading(cfg: PretrainedCfg | None, build: Callable[[], nn.Module]) -> nn.Module:
    """Call what may download or read weights, and say in one line what went wrong with which file.

    Args:
        cfg: timm's configuration of what is built, which names the file.
        build: makes the model.

    Raises:
        OSError: if there is no such file or it cannot be fetched.
        ValueError: if it is not a readable weights file.
    """
    source = (cfg.file or cfg.hf_hub_id or cfg.url or cfg.architecture) if cfg is not None else None
    try:
        # The authors' training checkpoints hold their command line: a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return build()
    except _WeightsError:
        raise  # an anchor's own, already in one line
    except OSError as error:
        redact_tokens(error)
        if isinstance(error, FileNotFoundError) and cfg is not None and cfg.file:
            raise _NoFileError(f"there is no weights file {str(source)!r}: check the path.") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if is_xet_error(error):
            raise _FetchError(f"could not fetch {source!r} ({reason:.160}). {XET_ADVICE}") from error
        raise _FetchError(
            f"could not fetch {source!r} ({reason:.160}). Without internet, fetch the file elsewhere and give it: "
            "timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file='PATH')); or begin with random "
            "weights: pretrained=False."
        ) from error
    except Exception as error:
        said = str(error).splitlines()
        if isinstance(error, RuntimeError) and said and said[0].startswith("Error(s) in loading state_dict"):
            raise ValueError(
                f"the weights of {source!r} are not this network's ({' '.join(said[1].split()):.160} …): give those "
                "that were saved of it."
            ) from error
        if _while_reading(error) or (error.__cause__ is not None and _while_reading(error.__cause__)):
            raise unreadable(str(source), error) from error
        raise


class _WeightsError(Exception):
    """What went wrong with a weights file, said in one line."""


class _NoFileError(_WeightsError, FileNotFoundError):
    """There is no such file."""


class _FetchError(_WeightsError, OSError):
    """It could not be fetched."""


def _while_reading(error: BaseException) -> bool:
    """Whether an error came out of the readers of weight files."""
    readers = (torch.serialization.__file__, safetensors.torch.__file__)
    return any(frame.f_code.co_filename in readers for frame, _ in traceback.walk_tb(error.__traceback__))
