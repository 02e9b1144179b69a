"""The `snnet_*` models of timm's registry, which lists them under this file's name: `module="snnet"`.

Weights of the authors: Apache-2.0, github.com/ziplab/SN-Net and github.com/ziplab/SN-Netv2. Papers:
arXiv:2302.06586, arXiv:2307.00154.
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

import safetensors.torch
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ..anchors.meta_device import can_build_on_meta, materialize
from ..anchors.timm_compat import resolve_pretrained_cfg
from ..hub.json_files import check_arguments, recall
from ..network.network import SNNet
from ..network.pretrained_cfg import stems_and_heads
from ..network.stitching import stitch
from ..network.weights import glance
from ..plan.costs import PublishedCount
from ..plan.stitch_plan import StitchPlan
from .checkpoints import adapt, corrupt
from .published import NETWORKS, published_table

_logger = logging.getLogger(__name__)

AnchorSpec = str | Mapping[str, Any]


def _timm_cfg(anchor: AnchorSpec) -> dict[str, Any]:
    """timm's own configuration of an anchor; empty for a name that it does not know."""
    name = anchor if isinstance(anchor, str) else str(anchor.get("architecture"))
    return dataclasses.asdict(timm.get_pretrained_cfg(name)) if timm.is_model(name.split(".")[0]) else {}


def _cfg(anchors: Sequence[str], **kwargs: Any) -> dict[str, Any]:
    """The configuration of a published network: its largest anchor's, and what `kwargs` says."""
    largest = timm.get_pretrained_cfg(anchors[-1])
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": largest.pool_size,
        "crop_pct": largest.crop_pct,
        "interpolation": "bicubic",
        "fixed_input_size": any(timm.get_pretrained_cfg(anchor).fixed_input_size for anchor in anchors),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        **stems_and_heads([_timm_cfg(anchor) for anchor in anchors]),
        "paper_ids": "arXiv:2302.06586",
        "paper_name": "Stitchable Neural Networks",
        "origin_url": "https://github.com/ziplab/SN-Net",
        "license": "apache-2.0",
        **kwargs,
    }


def _v1(file: str, **kwargs: Any) -> dict[str, Any]:
    return {"url": f"https://github.com/ziplab/SN-Net/releases/download/{file}", **kwargs}


def _v2(repo: str) -> dict[str, Any]:
    # NOTE: the name of the one .pth file in each repository was not seen; this is the repository's own.
    return {"hf_hub_id": f"ziplab/{repo}", "hf_hub_filename": f"{repo}.pth", **_V2_PAPER}


_V2_PAPER = {
    "crop_pct": 1.0,
    "paper_ids": "arXiv:2307.00154",
    "paper_name": "Stitched ViTs are Flexible Vision Backbones",
    "origin_url": "https://github.com/ziplab/SN-Netv2",
}

# Where the authors' weights are, and with which settings they evaluated them; for ResNet and LeViT with timm's.
AUTHORS_TAG = "snnet_in1k"
_WEIGHTS = {
    "snnet_deit_tsb": _v1("v1.0/snnet_deit.pth", crop_pct=0.875),
    "snnet_swin_tsb": _v1("v1.0/snnet_swin.pth", crop_pct=0.875),
    "snnet_resnet_18_50": _v1("v1.1/resnet_18_50.pth"),
    "snnet_resnet18_swin_t": _v1("v1.1/resnet18_swin_ti.pth"),
    "snnet_levit_192_256": _v1("v1.2/levit_192_256_release.pth"),
    "snnetv2_deit3_sb": _v2("snnetv2_deit3_s_b_imagenet_1k"),
    "snnetv2_deit3_sl": _v2("snnetv2_deit3_s_l_imagenet_1k"),
    "snnetv2_deit3_bl": _v2("snnetv2_deit3_b_l_imagenet_1k"),
}
_ALIASES = {"snnet_deit": "snnet_deit_tsb", "snnet_swin": "snnet_swin_tsb"}


def _published_cfgs() -> dict[str, dict[str, Any]]:
    """Two tags for each name: the authors' weights, and those of the anchors."""
    cfgs = {}
    for name, weights in [*_WEIGHTS.items(), *((alias, _WEIGHTS[name]) for alias, name in _ALIASES.items())]:
        anchors = NETWORKS[_ALIASES.get(name, name)].anchors
        cfgs[f"{name}.{AUTHORS_TAG}"] = _cfg(anchors, **weights)
        own_anchors = {k: v for k, v in weights.items() if k.startswith(("paper", "origin"))}
        cfgs[f"{name}.anchors_in1k"] = _cfg(anchors, **own_anchors)
    return cfgs


_EFFICIENTNET_LITE = ("tf_efficientnet_lite0.in1k", "tf_efficientnet_lite1.in1k", "tf_efficientnet_lite2.in1k")

default_cfgs = generate_default_cfgs(
    {
        **_published_cfgs(),
        # One input size for three anchors that were trained at 224, 240 and 260 pixels: the middle one.
        "snnet_efficientnet_lite_012.anchors_in1k": _cfg(
            _EFFICIENTNET_LITE, input_size=(3, 240, 240), pool_size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3,
            paper_ids="arXiv:1905.11946", origin_url=None,
        ),
        "snnet.untagged": {
            **_cfg(("deit_tiny_patch16_224",), pool_size=None, crop_pct=0.875),
            "first_conv": None, "classifier": None, "fixed_input_size": False, "license": None,
        },
    }
)  # fmt: skip


def create_snnet(
    variant: str,
    pretrained: bool,
    anchors: Sequence[AnchorSpec],
    published: PublishedCount | None = None,
    plan_args: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered network as timm builds its own, with all of `create_model`'s arguments.

    Args:
        variant: the registered name.
        pretrained: load the weights of the tag; for a tag without weights of its own, those of each
            anchor, with random stitching layers.
        anchors: names that timm knows, or dicts of such a name as `"architecture"` and its arguments.
        published: how the authors counted, for a network of theirs, or None.
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
    theirs = bool(pretrained and own_weights and published and cfg.tag == AUTHORS_TAG)
    if theirs and asked is None and published is not None:
        kwargs["stitched_norm"] = published.stitched_norm
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
        model = materialize(model, device)
        recall(model, cfg, kwargs.get("cache_dir"))
    if published is not None and isinstance(model, SNNet):
        as_released = theirs and asked is None and not (cfg.file or cfg.state_dict or cfg.source)
        _attach(model, _ALIASES.get(variant, variant), as_released)
    for holder in ("pretrained_cfg", "default_cfg"):
        getattr(model, holder).pop("state_dict", None)  # else the network would hold its weights twice
    if pretrained and isinstance(model, SNNet) and not cfg.source and not {"file", "url", "state_dict"} & set(overlay):
        model.trained["base_models"] = _hub_ids(model)
    if pretrained and not own_weights:
        _logger.warning(
            "%s: the anchors have their own pretrained weights, the stitching layers are untrained: initialise them "
            "with timm_stitch.least_squares_init(model, images), then train.", variant,
        )  # fmt: skip
    return model


def _attach(model: SNNet, name: str, as_released: bool) -> None:
    """Note what the authors published of each stitch, and as its accuracy if these are their weights."""
    for row in published_table(name).get("stitches", ()):
        top1 = row.get("top1")
        if top1 is not None and row["stitch_id"] in model.plan:
            model.published_top1[row["stitch_id"]] = top1
    if as_released:
        rows = [{"stitch_id": k, "top1": top1} for k, top1 in model.published_top1.items()]
        model.remember(rows, weights=glance(model))


def _hub_ids(model: SNNet) -> list[str]:
    """Where on the Hub the anchors' own weights are."""
    cfgs = [getattr(anchor, "pretrained_cfg", None) or {} for anchor in model.anchors]
    return [str(cfg["hf_hub_id"]) for cfg in cfgs if cfg.get("hf_hub_id") and not cfg.get("file")]


def _assemble(
    anchors: Sequence[AnchorSpec],
    pretrained_anchors: bool,
    plan_args: Mapping[str, Any],
    published: PublishedCount | None,
    lean: bool = False,
    *,
    rank: int | None = None,
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
    resizable = [_fixed_size(spec) for spec in anchors]
    models = []
    for spec, rate in zip(anchors, rates, strict=True):
        own = {"architecture": spec} if isinstance(spec, str) else dict(spec)
        name = own.pop("architecture", None)
        if not isinstance(name, str):
            raise ValueError(f"anchor {spec!r} names no timm model: give a name, or a dict with 'architecture'.")
        given = {**own, **kwargs, **place, **({} if rate is None else {"drop_path_rate": rate})}
        if any(resizable) and not _fixed_size(spec):
            given.pop("img_size", None)  # as timm does: only models made for one size take one
        models.append(_anchor(name, pretrained_anchors, given))
    if lean and not can_build_on_meta(models):
        again = {"rank": rank, "stitched_norm": stitched_norm, "stitch_id": stitch_id, "touch_unused": touch_unused}
        return _assemble(
            anchors, pretrained_anchors, plan_args, published, drop_path_rate=drop_path_rate, **again, **kwargs
        )
    if rank is not None:
        plan_args = {**plan_args, "rank": rank}
    network = stitch(models, stitched_norm=stitched_norm, stitch_id=stitch_id, **plan_args)
    network.published = published
    if touch_unused is not None:
        network.touch_unused = touch_unused
    return network


def _fixed_size(spec: AnchorSpec) -> bool:
    """Whether an anchor is made for one image size, which it then takes as an argument."""
    name = spec if isinstance(spec, str) else str(spec.get("architecture"))
    return timm.is_model(name.split(".")[0]) and bool(timm.get_pretrained_cfg(name).fixed_input_size)


def _anchor(name: str, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model {name!r}: see timm.list_models('*{name.split('_')[0]}*').")
    if not pretrained:
        return timm.create_model(name, **kwargs)
    return _loading(timm.get_pretrained_cfg(name), timm.create_model, name, pretrained=True, **kwargs)


def _loading(cfg: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what may download or read weights, and say in one line what went wrong with which file."""
    source = (cfg.file or cfg.hf_hub_id or cfg.url or cfg.architecture) if cfg is not None else None
    try:
        # The authors' training checkpoints hold their command line: a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return function(*args, **kwargs)
    except _WeightsError:
        raise  # an anchor's own, already in one line
    except OSError as error:
        if isinstance(error, FileNotFoundError) and cfg is not None and cfg.file:
            raise _NoFileError(f"there is no weights file {str(source)!r}: check the path.") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _FetchError(
            f"could not fetch {source!r} ({reason:.160}). Without internet, fetch the file elsewhere and give it: "
            "timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file='PATH')); or begin with random "
            "weights: pretrained=False."
        ) from error
    except Exception as error:
        if _while_reading(error) or (error.__cause__ is not None and _while_reading(error.__cause__)):
            raise ValueError(corrupt(str(source), error)) from error
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


def _published(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """One of the authors' networks, from what `published.NETWORKS` says of it."""
    network = NETWORKS[_ALIASES.get(variant, variant)]
    return create_snnet(variant, pretrained, network.anchors, network.count, network.plan_args, **kwargs)


@register_model
def snnet_deit_tsb(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Net of DeiT-Ti, -S and -B: 71 stitches."""
    return _published("snnet_deit_tsb", pretrained, **kwargs)


@register_model
def snnet_deit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Another name of `snnet_deit_tsb`."""
    return _published("snnet_deit", pretrained, **kwargs)


@register_model
def snnet_swin_tsb(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Net of Swin-Ti, -S and -B (ImageNet-22k to 1k): 41 stitches in three stages."""
    return _published("snnet_swin_tsb", pretrained, **kwargs)


@register_model
def snnet_swin(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Another name of `snnet_swin_tsb`."""
    return _published("snnet_swin", pretrained, **kwargs)


@register_model
def snnet_resnet_18_50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Net of ResNet-18 and -50: 10 stitches in two stages."""
    return _published("snnet_resnet_18_50", pretrained, **kwargs)


@register_model
def snnet_resnet18_swin_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Net of ResNet-18 in front and Swin-Ti behind: 8 stitches in two stages."""
    return _published("snnet_resnet18_swin_t", pretrained, **kwargs)


@register_model
def snnet_levit_192_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Net of LeViT-192 and -256: 8 stitches in two stages."""
    return _published("snnet_levit_192_256", pretrained, **kwargs)


@register_model
def snnetv2_deit3_sb(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Netv2 of DeiT-III-S and -B (ImageNet-21k to 1k): 134 stitches, two-way."""
    return _published("snnetv2_deit3_sb", pretrained, **kwargs)


@register_model
def snnetv2_deit3_sl(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Netv2 of DeiT-III-S and -L (ImageNet-21k to 1k): 134 stitches, two-way."""
    return _published("snnetv2_deit3_sl", pretrained, **kwargs)


@register_model
def snnetv2_deit3_bl(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Netv2 of DeiT-III-B and -L (ImageNet-21k to 1k): 134 stitches, two-way."""
    return _published("snnetv2_deit3_bl", pretrained, **kwargs)


@register_model
def snnet_efficientnet_lite_012(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Net of EfficientNet-Lite0, 1 and 2: 65 stitches. No trained release: `pretrained=True` loads the anchors'."""
    return create_snnet("snnet_efficientnet_lite_012", pretrained, _EFFICIENTNET_LITE, **kwargs)


@register_model
def snnet(
    pretrained: bool = False,
    anchors: Sequence[AnchorSpec] = (),
    direction: str = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    rank: int = 0,
    plan: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """An SN-Net of any anchors that timm has; `pretrained=True` loads each anchor's own weights.

    Args:
        pretrained: as in `create_snnet`.
        anchors: timm names, or dicts of `"architecture"` and arguments, fastest first.
        direction, nearest, kernel_size, stride, rank: as in `stitch`.
        plan: a plan of one's own (`StitchPlan.to_dict()`) instead of these five.
        **kwargs: of `timm.create_model`.
    """
    if isinstance(anchors, str) or len(anchors) < 2:
        raise ValueError(
            f"anchors={anchors!r}: expected two or more timm names, fastest first, e.g. "
            "create_model('snnet', anchors=['deit_tiny_patch16_224', 'deit_small_patch16_224'], pretrained=True)."
        )
    if not isinstance(kwargs.get("pretrained_cfg"), (dict, timm.models.PretrainedCfg)):
        kwargs["pretrained_cfg_overlay"] = {**_cfg_of(anchors), **(kwargs.get("pretrained_cfg_overlay") or {})}
    plan_args: dict[str, Any] = {
        "direction": direction,
        "nearest": nearest,
        "kernel_size": kernel_size,
        "stride": stride,
    }
    plan_args["rank"] = rank
    if plan is not None:
        plan_args["plan"] = StitchPlan.from_dict(plan)
    return create_snnet("snnet", pretrained, anchors, plan_args=plan_args, **kwargs)


def _cfg_of(anchors: Sequence[AnchorSpec]) -> dict[str, Any]:
    """What the largest anchor's own configuration says of images, with its arguments applied."""
    spec = anchors[-1]
    own = {"architecture": spec} if isinstance(spec, str) else dict(spec)
    cfg = _timm_cfg(spec)
    fields = ("input_size", "crop_pct", "interpolation", "mean", "std", "num_classes", "fixed_input_size", "pool_size")
    found = {field: cfg[field] for field in fields if cfg.get(field) is not None}
    channels, *size = found.get("input_size", (3, 224, 224))
    img_size = own.get("img_size", size)
    img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    found["input_size"] = (own.get("in_chans", channels), *img_size)
    found["num_classes"] = own.get("num_classes", found.get("num_classes", 1000))
    return found | stems_and_heads([_timm_cfg(anchor) for anchor in anchors])
