"""Checkpoints of timm's `train.py` as anchors: `.pth.tar` files that name their model, its arguments and its weights.

Files are read with `weights_only`. The averaged weights (`state_dict_ema`) are preferred, as in timm.
"""

from __future__ import annotations

import argparse
import math
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
_LARGEST = 1 << 16  # pixels of a side
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
    if "img_size" not in own and (size := _resized(path, name, own, weights)):
        own["img_size"] = size
    height_width = _trained_size(path, args, own)
    cfg |= {"input_size": (own.get("in_chans", 3), *height_width)} if height_width else {}
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


def _resized(path: str, name: str, own: Mapping[str, Any], weights: Mapping[str, object]) -> int | None:
    """Find the image size of position embeddings that are not of the model's own size, which timm would resample.

    Raises:
        ValueError: if no square image has as many positions.
    """
    embedding = clean_state_dict(dict(weights)).get("pos_embed")
    if not isinstance(embedding, Tensor) or embedding.ndim != 3:
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(name, **own)
    expected = getattr(model, "pos_embed", None)
    if not isinstance(expected, Tensor) or expected.shape == embedding.shape or not hasattr(model, "patch_embed"):
        return None
    patches = model.patch_embed
    count = embedding.shape[1] - (expected.shape[1] - patches.num_patches)
    side = math.isqrt(max(count, 0))
    if not side or side * side != count:
        raise ValueError(
            f"{path!r} has {embedding.shape[1]} positions, those of no square image: make the model by "
            f"timm.create_model({name!r}, img_size=(HEIGHT, WIDTH), checkpoint_path={path!r})."
        )
    return side * int(patches.patch_size[0])


def _trained_size(path: str, args: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[int, int] | None:
    """Find the (height, width) of the images of a run; None for the model's own.

    Raises:
        ValueError: if it is no size.
    """
    shape = args.get("input_size")
    size = own.get("img_size") or (shape[1:] if isinstance(shape, (list, tuple)) else None) or args.get("img_size")
    if not size:
        return None
    sizes = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sizes) != 2 or not all(isinstance(side, int) and 0 < side <= _LARGEST for side in sizes):
        raise ValueError(f"{path!r} names images of {size!r:.60}: expected a height and a width up to {_LARGEST:,}.")
    return sizes
