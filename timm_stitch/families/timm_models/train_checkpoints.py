"""Checkpoints of timm's `train.py` as anchors: `.pth.tar` files that name their model, its arguments and its weights.

Files are read with `weights_only`. The averaged weights (`state_dict_ema`) are preferred, as in timm.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import clean_state_dict
from torch import Tensor

from ...errors import library_errors
from .arguments import check_anchor
from .pretrained_cfg import timm_cfg

PREFIX = "checkpoint:"

# Arguments of train.py, with the argument of the model or the field of its configuration that each sets.
_MODEL_ARGS = {"gp": "global_pool", "in_chans": "in_chans"}
_CFG_FIELDS = ("mean", "std", "crop_pct", "interpolation")


def anchor_spec(path: str) -> dict[str, Any]:
    """Describe the model of a checkpoint: its `architecture`, its arguments, and the file as the source of its weights.

    Args:
        path: the file.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is not a checkpoint of timm's `train.py`, or names a model that timm lacks.
    """
    contents = _read(path)
    name, weights = contents.get("arch"), contents.get("state_dict_ema") or contents.get("state_dict")
    options = contents.get("args")
    args: dict[str, Any] = vars(options) if isinstance(options, argparse.Namespace) else {}
    if not isinstance(name, str) or not isinstance(weights, Mapping):
        raise ValueError(
            f"{path!r} names no model: expected a checkpoint of timm's train.py, with arch and state_dict, got "
            f"{list(contents)[:6]}."
        )
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"{path!r} is a checkpoint of {name!r:.80}, which timm lacks: import the package that has it.")
    extra = args.get("model_kwargs")
    own = {ours: args[theirs] for theirs, ours in _MODEL_ARGS.items() if args.get(theirs) is not None}
    own |= dict(extra) if isinstance(extra, Mapping) else {}
    classes = _num_classes(name, weights) or own.get("num_classes") or args.get("num_classes")
    own |= {"num_classes": classes} if classes else {}
    check_anchor({"architecture": name, **own})
    cfg = {field: args[field] for field in _CFG_FIELDS if args.get(field) is not None}
    cfg |= {"file": path, **({"num_classes": classes} if classes else {})}
    return {"architecture": name, **own, "pretrained_cfg_overlay": cfg}


def make_model(source: str, pretrained: bool, **arguments: Any) -> Any:
    """Make one model: of a name, of a folder or repository with its prefix, or of a checkpoint after `checkpoint:`."""
    if not source.startswith(PREFIX):
        return timm.create_model(source, pretrained=pretrained, **arguments)
    spec = anchor_spec(source.removeprefix(PREFIX))
    name = spec.pop("architecture")
    if not pretrained:
        spec["pretrained_cfg_overlay"].pop("file")
    with (
        library_errors(f"the weights in {source.removeprefix(PREFIX)!r} are not those of {name}", RuntimeError),
        torch.serialization.safe_globals([argparse.Namespace]),
    ):
        return timm.create_model(name, pretrained=pretrained, **{**spec, **arguments})


def _read(path: str) -> Mapping[str, Any]:
    """Read a checkpoint, its tensors mapped from the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path!r}: check the path.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # torch's unpickler raises whatever a damaged file leads it to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path!r} is not a readable checkpoint ({reason:.120}): give another file.") from error
    return contents if isinstance(contents, Mapping) else {}


def _num_classes(name: str, weights: Mapping[str, object]) -> int | None:
    """Count the classes by the shape of the classifier; None where there is no such tensor."""
    classifier = timm_cfg(name).get("classifier") or ""
    first = classifier if isinstance(classifier, str) else classifier[0]
    weight = clean_state_dict(dict(weights)).get(f"{first}.weight")
    return int(weight.shape[0]) if isinstance(weight, Tensor) else None
