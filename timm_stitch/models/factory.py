"""Networks built as timm builds its own, with all of `create_model`'s arguments.

Anchors are made by name, the network is stitched from them, and timm's own loader loads the weights.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
from timm.models import PretrainedCfg, build_model_with_cfg
from torch import nn

from ..anchors.budget import bounded, time_limit
from ..errors import library_errors
from ..families.family import SavedNetwork
from ..families.registry import is_stitchable
from ..families.timm_models.arguments import (
    OF_NETWORK,
    Arguments,
    check_anchor,
    check_arguments,
    check_cfg,
    check_cfg_fields,
    without_sources,
)
from ..families.timm_models.feature_pyramid import FeaturePyramid
from ..families.timm_models.features import Features
from ..families.timm_models.meta_build import can_build_on_meta, materialize
from ..families.timm_models.network import SNNet
from ..families.timm_models.pretrained_cfg import AnchorSpec, cfg_of, timm_cfg
from ..families.timm_models.stitching import for_each_anchor, stitch_timm
from ..families.timm_models.timm_compat import resolve_pretrained_cfg
from ..files import read_consistently
from ..hub.json_files import load_results_of_cfg, network_files
from ..network.stitchable import StitchableNetwork
from ..plan.costs import PublishedCount
from ..plan.enumeration import PlanOptions
from .checkpoints import adapt, build_from_file
from .published import ALIASES, AUTHORS_TAG, published_table, refuse_plan_options

_logger = logging.getLogger(__name__)


def create_snnet(
    variant: str,
    pretrained: bool,
    anchors: Sequence[AnchorSpec],
    published: PublishedCount | None = None,
    plan_args: Arguments | None = None,
    stitches: Literal["all"] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered network as timm builds its own, with all of `create_model`'s arguments.

    Args:
        variant: the registered name.
        pretrained: whether to load the weights of the tag; for a tag without weights of its own, those of each
            anchor, with random stitching layers.
        anchors: timm names, or dicts of such a name as `"architecture"` and its arguments.
        published: the authors' way of counting, for a network of theirs, or None.
        plan_args: the arguments of `stitch`.
        stitches: `"all"`, with `features_only=True`, for a backbone whose feature maps are alike for every stitch, a
            `Pyramid`; `out_indices` then count levels, or blocks of the largest anchor. Default one stitch for good.
        **kwargs: the arguments of `create_model`; those that a network does not take go to every anchor.

    Examples:
        >>> from timm_stitch import create_snnet
        >>> model = create_snnet("snnet", False, ["resnet18", "resnet34"], plan_args={"direction": "two_way"})
        >>> len(model.plan)
        58
    """
    refuse_plan_options(variant, kwargs)
    if stitches is not None:
        return _create_pyramid(variant, pretrained, anchors, published, plan_args, stitches, **kwargs)
    # 1. The arguments, which a saved network's file may have given.
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    cfg_arg = kwargs.pop("pretrained_cfg", None)
    saved = kwargs.pop("saved", None)
    if isinstance(cfg_arg, Mapping):
        check_cfg_fields(cfg_arg)
    cfg = resolve_pretrained_cfg(variant, cfg_arg, overlay)
    own_weights = bool(cfg.has_weights or cfg.state_dict or cfg.source)
    if not isinstance(saved, SavedNetwork):
        _check_arguments(cfg, kwargs, variant, anchors)
    stitched_norm = kwargs.get("stitched_norm")
    on_meta = str(kwargs.get("device")) == "meta"
    if cfg.source and not pretrained and not on_meta:
        with time_limit(), bounded():  # a network from a file is built without memory first
            _make_anchors(anchors, [None] * len(anchors), False, {**_common(kwargs), "device": "meta"})
    # 2. Building: on the meta device where a file's tensors come later.
    deferred = pretrained and own_weights and not on_meta
    device = kwargs.pop("device", None) if deferred else None
    theirs = bool(pretrained and own_weights and published and cfg.tag == AUTHORS_TAG)
    if theirs and stitched_norm is None and published is not None:
        kwargs["stitched_norm"] = published.stitched_norm
    build = partial(
        build_model_with_cfg,
        partial(_assemble, anchors, pretrained and not own_weights, dict(plan_args or {}), published, deferred),
        variant,
        pretrained and own_weights,
        pretrained_cfg=cfg_arg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=partial(adapt, stitched_norm=stitched_norm),
        feature_cfg={"out_indices": None, "feature_cls": Features},
        **kwargs,
    )

    def load() -> nn.Module:
        model = build_from_file(cfg, build)
        if deferred:
            materialize(model, device)
            if saved is None and cfg.source and is_stitchable(model):
                load_results_of_cfg(model, cfg, kwargs.get("cache_dir"))
        return model

    by_timm = saved is None and cfg.source == "local-dir" and cfg.file
    model = read_consistently(network_files(Path(str(cfg.file))), load) if by_timm else load()
    # 3. What is known about the weights.
    as_released = theirs and stitched_norm is None and not (cfg.file or cfg.state_dict or cfg.source)
    _note_origin(model, variant, cfg, overlay, pretrained, as_released)
    return model


def _create_pyramid(
    variant: str,
    pretrained: bool,
    anchors: Sequence[AnchorSpec],
    published: PublishedCount | None,
    plan_args: Arguments | None,
    stitches: object,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    feature_cls: object = None,
    **kwargs: Any,
) -> FeaturePyramid:
    """Build a network for the feature maps of all its stitches."""
    if stitches != "all" or not features_only:
        raise ValueError(
            f"stitches must be 'all', and features_only True, got stitches={stitches!r:.60} and "
            f"features_only={features_only!r:.20}: without stitches a network has all of them, and a backbone one."
        )
    if feature_cls is not None:
        raise ValueError("stitches='all' takes no feature_cls: its maps are those of Pyramid.")
    pyramid = FeaturePyramid(create_snnet(variant, pretrained, anchors, published, plan_args, **kwargs), out_indices)
    if pretrained and len(pyramid.projections):
        _logger.warning(
            "%s: the projections of its feature maps are untrained: initialise them with "
            "timm_stitch.least_squares_init(model, images, layers='projections'), then train.", variant,
        )  # fmt: skip
    return pyramid


def _check_arguments(cfg: PretrainedCfg, kwargs: Arguments, variant: str, anchors: Sequence[AnchorSpec]) -> None:
    """Refuse arguments that timm itself read from a saved network's file, if they do more than build a network.

    The code that makes anchors and plans refuses anchors that read other files and plans without bounds.

    Raises:
        ValueError: naming what is wrong.
    """
    if cfg.source not in ("local-dir", "hf-hub"):
        return
    own = {"source": None, "file" if cfg.source == "local-dir" else "hf_hub_id": None}
    check_cfg({**dataclasses.asdict(cfg), **own})
    check_arguments(kwargs.get("pretrained_model_args") or {"anchors": anchors}, variant)


def _common(kwargs: Arguments) -> dict[str, object]:
    """The arguments of a network that every anchor takes."""
    other = (
        "pretrained_model_args", "cache_dir", "device", "features_only", "out_indices", "feature_cls",
        "pretrained_strict", "drop_path_rate",
    )  # fmt: skip
    return {k: v for k, v in kwargs.items() if k not in OF_NETWORK and k not in other}


def _note_origin(
    model: nn.Module, variant: str, cfg: PretrainedCfg, overlay: Arguments, pretrained: bool, as_released: bool
) -> None:
    """Note the published results of a network and the origin of its weights; warn of untrained layers."""
    network = model if is_stitchable(model) else None  # not a backbone for features
    if network is not None and network.published is not None:
        _add_published(network, ALIASES.get(variant, variant), as_released)
    for holder in ("pretrained_cfg", "default_cfg"):
        getattr(model, holder).pop("state_dict", None)  # else the network would hold its weights twice
    if pretrained and network is not None and not cfg.source and not {"file", "url", "state_dict"} & set(overlay):
        cfgs = [cfg_of(anchor) for anchor in network.anchors]
        own = [str(cfg["hf_hub_id"]) for cfg in cfgs if cfg.get("hf_hub_id") and not cfg.get("file")]
        network.trained["base_models"] = own
    if pretrained and not (cfg.has_weights or cfg.state_dict or cfg.source):
        _logger.warning(
            "%s: the anchors have their own pretrained weights, the stitching layers are untrained: initialise them "
            "with timm_stitch.least_squares_init(model, images), then train.", variant,
        )  # fmt: skip


def _add_published(model: StitchableNetwork, name: str, as_released: bool) -> None:
    """Note the authors' accuracy of each stitch, also as a result if these are their weights."""
    for row in published_table(name).get("stitches", ()):
        top1 = row.get("top1")
        if top1 is not None and row["stitch_id"] in model.plan:
            model.published_scores[row["stitch_id"]] = {"top1": top1}
    if as_released:
        model.results.adopt([{"stitch_id": k, "top1": top1} for k, top1 in model.published_top1.items()])


def _assemble(
    anchors: Sequence[AnchorSpec],
    pretrained_anchors: bool,
    plan_args: Arguments,
    published: PublishedCount | None,
    deferred: bool = False,
    *,
    rank: int | None = None,
    stitched_norm: bool = True,
    stitch_id: int | None = None,
    touch_unused: bool | None = None,
    drop_path_rate: float | Sequence[float] | None = None,
    **kwargs: Any,
) -> SNNet:
    """Make the anchors by name, then the network; `build_model_with_cfg` calls this as the model class.

    A deferred network is on the meta device, if everything that a file does not hold can be computed after loading.
    """
    rates: list[float | None] = for_each_anchor("drop_path_rate", drop_path_rate, len(anchors))
    lays_out = deferred or str(kwargs.get("device")) == "meta"
    with time_limit() if lays_out else nullcontext(), bounded():
        models = _make_anchors(anchors, rates, pretrained_anchors, kwargs | ({"device": "meta"} if deferred else {}))
    if deferred and not can_build_on_meta(models):
        models = _make_anchors(anchors, rates, pretrained_anchors, kwargs)
    options = PlanOptions(**{**plan_args, **({} if rank is None else {"rank": rank})})
    network = stitch_timm(models, options, stitched_norm=stitched_norm, stitch_id=stitch_id)
    network.published = published
    if touch_unused is not None:
        network.touch_unused = touch_unused
    return network


def _make_anchors(
    anchors: Sequence[AnchorSpec], rates: Sequence[float | None], pretrained: bool, kwargs: Arguments
) -> list[nn.Module]:
    """Make each anchor by name, with its own arguments and the common ones."""
    resizable = any(_fixed_size(spec) for spec in anchors)
    models = []
    for spec, rate in zip(anchors, rates, strict=True):
        own = {"architecture": spec} if isinstance(spec, str) else dict(spec)
        name = own.pop("architecture", None)
        if not isinstance(name, str):
            raise ValueError(f"anchor {spec!r} names no timm model: give a name, or a dict with 'architecture'.")
        args = {**own, **kwargs, **({} if rate is None else {"drop_path_rate": rate})}
        if resizable and not _fixed_size(spec):
            args.pop("img_size", None)  # as timm does: only models made for one size take one
        check_anchor(own)
        models.append(_make_anchor(name, pretrained, args if pretrained else without_sources(args)))
    return models


def _make_anchor(name: str, pretrained: bool, kwargs: Arguments) -> nn.Module:
    if not timm.is_model(name.split(".")[0]):
        if "/" in name:
            raise ValueError(
                f"timm has no model {name!r}: a model on the Hub is hf-hub:{name}, and there is no such folder."
            )
        raise ValueError(f"timm has no model {name!r}: see timm.list_models('*{name.split('_')[0]}*').")
    with library_errors(f"timm cannot make the anchor {name!r}", RuntimeError, TypeError):
        if not pretrained:
            return timm.create_model(name, **kwargs)
        build = partial(timm.create_model, name, pretrained=True, **kwargs)
        return build_from_file(timm.get_pretrained_cfg(name), build)


def _fixed_size(anchor: AnchorSpec) -> bool:
    """Whether an anchor is made for one image size, which it then takes as an argument."""
    return bool(timm_cfg(anchor).get("fixed_input_size"))
