"""The `snnet_*` models of timm's registry. (timm lists them under this file's name: module="snnet".)

Weights of the authors: Apache-2.0, github.com/ziplab/SN-Net. Paper: arXiv:2302.06586.
Imports everything below; importing it registers the models.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from urllib.error import URLError

import safetensors.torch
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from .checkpoints import adapt, corrupt
from .compat import resolve_pretrained_cfg
from .lean import buildable, finish
from .network import SNNet
from .plan import StitchPlan
from .saved_files import check_arguments, recall
from .stitching import stitch

_logger = logging.getLogger(__name__)

AnchorSpec = str | Mapping[str, Any]


def _cfg(url: str = "", anchors: int = 3, conv: str = "patch_embed.proj", head: str = "head", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": tuple(f"anchors.{i}.{conv}" for i in range(anchors)),
        "classifier": tuple(f"anchors.{i}.{head}" for i in range(anchors)),
        "paper_ids": "arXiv:2302.06586",
        "paper_name": "Stitchable Neural Networks",
        "origin_url": "https://github.com/ziplab/SN-Net",
        "license": "apache-2.0",
        **kwargs,
    }


_DEIT = {
    "snnet_in1k": _cfg(url="https://github.com/ziplab/SN-Net/releases/download/v1.0/snnet_deit.pth"),
    "anchors_in1k": _cfg(crop_pct=0.9),
}

default_cfgs = generate_default_cfgs(
    {
        **{f"{name}.{tag}": cfg for name in ("snnet_deit_tsb", "snnet_deit") for tag, cfg in _DEIT.items()},
        "snnet.untagged": _cfg(first_conv=None, classifier=None, fixed_input_size=False, license=None),
    }
)


def create_snnet(
    variant: str,
    pretrained: bool,
    anchors: Sequence[AnchorSpec],
    authors_tag: str | None = None,
    published: str | None = None,
    plan_args: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered network as timm builds its own, with all of `create_model`'s arguments.

    Args:
        variant: the registered name.
        pretrained: load the weights of the tag; for a tag without weights of its own, those of each
            anchor, with random stitching layers.
        anchors: names that timm knows, or dicts of such a name as `"architecture"` and its arguments.
        authors_tag: the tag whose weights run stitched paths without the final norm.
        published: the authors' count for `stitch_table`, or None.
        plan_args: arguments of `stitch`.
        **kwargs: of `create_model`; what is not known here goes to every anchor.
    """
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    cfg_arg = kwargs.pop("pretrained_cfg", None)
    cfg = resolve_pretrained_cfg(variant, cfg_arg, overlay)
    own_weights = bool(cfg.has_weights or cfg.state_dict or cfg.source)
    if kwargs.get("pretrained_model_args"):
        check_arguments(kwargs["pretrained_model_args"])
    asked = kwargs.get("stitched_norm")
    lean = pretrained and own_weights and str(kwargs.get("device")) != "meta"
    device = kwargs.pop("device", None) if lean else None
    if pretrained and own_weights and asked is None and authors_tag and cfg.tag == authors_tag:
        kwargs["stitched_norm"] = False
    model = _loading(
        cfg,
        build_model_with_cfg,
        partial(_assemble, anchors, pretrained and not own_weights, dict(plan_args or {}), published, lean),
        variant,
        pretrained and own_weights,
        pretrained_cfg=cfg_arg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=partial(adapt, stitched_norm=asked),
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )
    if lean:
        model = finish(model, device)
        recall(model, cfg, kwargs.get("cache_dir"))
    if pretrained and isinstance(model, SNNet) and not cfg.source and not {"file", "url", "state_dict"} & set(overlay):
        model.trained["base_models"] = _hub_ids(model)
    if pretrained and not own_weights:
        _logger.warning(
            "%s: the anchors have their own pretrained weights, the stitching layers are untrained: initialise them "
            "with timm_stitch.least_squares_init(model, images), then train.", variant,
        )  # fmt: skip
    return model


def _hub_ids(model: SNNet) -> list[str]:
    """Where on the Hub the anchors' own weights are."""
    cfgs = [getattr(anchor, "pretrained_cfg", None) or {} for anchor in model.anchors]
    return [str(cfg["hf_hub_id"]) for cfg in cfgs if cfg.get("hf_hub_id") and not cfg.get("file")]


def _assemble(
    anchors: Sequence[AnchorSpec],
    pretrained_anchors: bool,
    plan_args: Mapping[str, Any],
    published: str | None,
    lean: bool = False,
    *,
    stitched_norm: bool = True,
    stitch_id: int | None = None,
    touch_unused: bool | None = None,
    drop_path_rate: float | Sequence[float] | None = None,
    **kwargs: Any,
) -> SNNet:
    """The model class that `build_model_with_cfg` calls: anchors by name, then the network.

    A lean one is on the meta device wherever what a file does not hold can be computed later.
    """
    rates = list(drop_path_rate) if isinstance(drop_path_rate, (list, tuple)) else [drop_path_rate] * len(anchors)
    if len(rates) != len(anchors):
        raise ValueError(
            f"drop_path_rate has {len(rates)} values for {len(anchors)} anchors: give one number, or one per anchor."
        )
    place = {"device": "meta"} if lean else {}
    models = []
    for spec, rate in zip(anchors, rates, strict=True):
        own = {"architecture": spec} if isinstance(spec, str) else dict(spec)
        name = own.pop("architecture", None)
        if not isinstance(name, str):
            raise ValueError(f"anchor {spec!r} names no timm model: give a name, or a dict with 'architecture'.")
        models.append(_anchor(name, pretrained_anchors, {**own, **kwargs, **place, "drop_path_rate": rate}))
    if lean and not buildable(models):
        again = {"stitched_norm": stitched_norm, "stitch_id": stitch_id, "touch_unused": touch_unused}
        return _assemble(
            anchors, pretrained_anchors, plan_args, published, drop_path_rate=drop_path_rate, **again, **kwargs
        )
    network = stitch(models, stitched_norm=stitched_norm, stitch_id=stitch_id, **plan_args)
    network.published = published
    if touch_unused is not None:
        network.touch_unused = touch_unused
    return network


def _anchor(name: str, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model {name!r}: see timm.list_models('*{name.split('_')[0]}*').")
    if not pretrained:
        return timm.create_model(name, **kwargs)
    return _loading(timm.get_pretrained_cfg(name), timm.create_model, name, pretrained=True, **kwargs)


def _loading(cfg: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what may download or read weights, and say in one line what went wrong with which file."""
    source = (cfg.file or cfg.hf_hub_id or cfg.url) if cfg is not None else None
    try:
        # The authors' training checkpoints hold their command line: a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return function(*args, **kwargs)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no weights file {str(source)!r}: check the path.") from error
    except (URLError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"could not fetch {source!r} ({reason:.160}). Without internet, fetch the file elsewhere and give it: "
            "timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file='PATH')); or begin with random "
            "weights: pretrained=False."
        ) from error
    except Exception as error:
        if _while_reading(error) or (error.__cause__ is not None and _while_reading(error.__cause__)):
            raise ValueError(corrupt(str(source), error)) from error
        raise


def _while_reading(error: BaseException) -> bool:
    """Whether an error came out of the readers of weight files."""
    readers = (torch.serialization.__file__, safetensors.torch.__file__)
    return any(frame.f_code.co_filename in readers for frame, _ in traceback.walk_tb(error.__traceback__))


_DEIT_ANCHORS = ("deit_tiny_patch16_224.fb_in1k", "deit_small_patch16_224.fb_in1k", "deit_base_patch16_224.fb_in1k")


@register_model
def snnet_deit_tsb(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Net of DeiT-Ti, -S and -B: 71 stitches (SN-Net, table of DeiT)."""
    return create_snnet("snnet_deit_tsb", pretrained, _DEIT_ANCHORS, "snnet_in1k", "deit", **kwargs)


@register_model
def snnet_deit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Another name of `snnet_deit_tsb`."""
    return create_snnet("snnet_deit", pretrained, _DEIT_ANCHORS, "snnet_in1k", "deit", **kwargs)


@register_model
def snnet(
    pretrained: bool = False,
    anchors: Sequence[AnchorSpec] = (),
    direction: str = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    plan: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """An SN-Net of any anchors that timm has; `pretrained=True` loads each anchor's own weights.

    Args:
        pretrained: as in `create_snnet`.
        anchors: timm names, or dicts of `"architecture"` and arguments, fastest first.
        direction, nearest, kernel_size, stride: as in `stitch`.
        plan: a plan of one's own (`StitchPlan.to_dict()`) instead of these four.
        **kwargs: of `timm.create_model`.
    """
    if isinstance(anchors, str) or len(anchors) < 2:
        raise ValueError(
            f"anchors={anchors!r}: expected two or more timm names, fastest first, e.g. "
            "create_model('snnet', anchors=['deit_tiny_patch16_224', 'deit_small_patch16_224'], pretrained=True)."
        )
    if not isinstance(kwargs.get("pretrained_cfg"), (dict, timm.models.PretrainedCfg)):
        kwargs["pretrained_cfg_overlay"] = {**_cfg_of(anchors), **(kwargs.get("pretrained_cfg_overlay") or {})}
    plan_args: dict[str, Any] = {"direction": direction, "nearest": nearest, "kernel_size": kernel_size, "stride": stride}
    if plan is not None:
        plan_args["plan"] = StitchPlan.from_dict(plan)
    return create_snnet("snnet", pretrained, anchors, plan_args=plan_args, **kwargs)


def _cfg_of(anchors: Sequence[AnchorSpec]) -> dict[str, Any]:
    """What the largest anchor's own configuration says of images, with its arguments applied."""
    spec = anchors[-1]
    own = {"architecture": spec} if isinstance(spec, str) else dict(spec)
    name = str(own.get("architecture"))
    cfg = dataclasses.asdict(timm.get_pretrained_cfg(name)) if timm.is_model(name.split(".")[0]) else {}
    fields = ("input_size", "crop_pct", "interpolation", "mean", "std", "num_classes", "fixed_input_size", "pool_size")
    found = {field: cfg[field] for field in fields if cfg.get(field) is not None}
    channels, *size = found.get("input_size", (3, 224, 224))
    img_size = own.get("img_size", size)
    img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    found["input_size"] = (own.get("in_chans", channels), *img_size)
    found["num_classes"] = own.get("num_classes", found.get("num_classes", 1000))
    for field in ("first_conv", "classifier"):
        names: list[str] = []
        for i, anchor in enumerate(anchors):
            name = anchor if isinstance(anchor, str) else str(anchor.get("architecture"))
            own_cfg = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
            value = getattr(own_cfg, field, None) or ()
            names += [f"anchors.{i}.{part}" for part in ((value,) if isinstance(value, str) else value)]
        found[field] = tuple(names) or None
    return found
