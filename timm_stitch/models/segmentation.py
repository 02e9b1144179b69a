"""The authors' segmentation networks, built and loaded as timm builds and loads its own models.

Their anchors are DeiT-III's weights in BEiT's blocks: each block adds a bias by relative position. So the networks take
images of one size, 512x512 by default; `predict` slides a window of that size over others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import PretrainedCfg, load_pretrained

from ..families.dense.creating import dense
from ..families.dense.inference import Inference
from ..families.dense.network import DenseNetwork
from ..families.timm_models.arguments import check_cfg_fields
from ..families.timm_models.meta_build import materialize
from ..families.timm_models.timm_compat import resolve_pretrained_cfg
from ..plan.costs import PublishedCount
from .checkpoints import build_from_file
from .published import SEGMENTATION, published_table, refuse_plan_options
from .segmentation_weights import adapt_segmentation

_WINDOW, _STRIDE = 512, 341  # pixels of the authors' sliding windows

_OF_CLASSIFIERS = (
    "features_only", "stitches", "out_indices", "feature_cls", "global_pool", "stitched_norm", "pretrained_strict",
)  # fmt: skip
_OF_WEIGHTS = ("url", "file", "state_dict", "source", "custom_load", "first_conv", "classifier", "architecture", "tag")


def create_segmentation(name: str, pretrained: bool = False, **kwargs: Any) -> DenseNetwork:
    """Build one of the authors' segmentation networks, with the arguments of `timm.create_model`.

    Args:
        name: the registered name.
        pretrained: whether to load the weights of the tag.
        **kwargs: the arguments of `create_model`; those that the network does not take go to every anchor.

    Raises:
        OSError: if the weights cannot be fetched.
        ValueError: if an argument does not fit, or the weights are those of another network.

    Examples:
        >>> from timm_stitch.models.segmentation import create_segmentation
        >>> network = create_segmentation("snnetv2_setr_deit3_sl", device="meta")
        >>> network.num_stitches, network.num_classes, network.channels
        (134, 150, [1024, 1024, 1024, 1024])
    """
    # 1. The arguments.
    refuse_plan_options(name, kwargs)
    refused = [argument for argument in _OF_CLASSIFIERS if kwargs.pop(argument, None)]
    if refused:
        raise ValueError(
            f"{name!r} is a network for segmentation and takes no {', '.join(refused)}: feature maps of every stitch "
            "are those of Pyramid, model.pyramid(...) of a network of classifiers."
        )
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    cfg_arg, cache_dir = kwargs.pop("pretrained_cfg", None), kwargs.pop("cache_dir", None)
    if isinstance(cfg_arg, Mapping):
        check_cfg_fields(cfg_arg)
    cfg = resolve_pretrained_cfg(name, cfg_arg, overlay)
    shape = {"num_classes": cfg.num_classes, "in_chans": cfg.input_size[0], "img_size": cfg.input_size[1:]}
    kwargs = {**shape, **{argument: value for argument, value in kwargs.items() if value is not None}}
    stitch_id, device = kwargs.pop("stitch_id", None), kwargs.pop("device", None)
    # 2. The network: on the meta device where a file's tensors come later.
    deferred = pretrained and str(device) != "meta"
    fields = {field: value for field, value in vars(cfg).items() if value is not None}  # not copied: `state_dict`
    network = _build(name, fields, device="meta" if deferred else device, **kwargs)
    # 3. The weights.
    if deferred:

        def load() -> DenseNetwork:
            load_pretrained(
                network, fields, network.num_classes, network.in_chans, adapt_segmentation, cache_dir=cache_dir
            )
            return network

        build_from_file(cfg, load)
        materialize(network, device)
    # 4. What the authors published.
    as_made = (network.num_classes, network.in_chans, *network.image_size) == (cfg.num_classes, *cfg.input_size)
    released = deferred and as_made and not {"file", "url", "state_dict", "source"} & set(overlay)
    _add_published(network, name, cfg, released)
    return network if stitch_id is None else network.set_stitch(stitch_id)


def _build(name: str, cfg: Mapping[str, Any], *, num_classes: int, **kwargs: Any) -> DenseNetwork:
    """Build a network with random weights."""
    published = SEGMENTATION[name]
    own = {field: value for field, value in cfg.items() if field not in _OF_WEIGHTS}
    own["input_size"] = (kwargs["in_chans"], *_pair(kwargs["img_size"]))
    inner: Any = timm.create_model(
        "snnet", anchors=published.anchors, plan=published.plan.to_dict(), num_classes=0, pretrained_cfg_overlay=own,
        **kwargs,
    )  # fmt: skip
    network = dense(inner, "setr", num_classes, levels=published.levels, tie=True, head_options={"norm": "batch"})
    size = min(network.image_size)
    network.inference = Inference("slide", crop=size, stride=round(_STRIDE * size / _WINDOW))
    network.published = PublishedCount()
    return network


def _add_published(network: DenseNetwork, name: str, cfg: PretrainedCfg, as_released: bool) -> None:
    """Note the authors' figures of each stitch, also as results if these are their weights."""
    table = published_table(name)
    if table.get("tag") != cfg.tag:
        return
    network.published_scores = {
        row["stitch_id"]: {metric: row[metric] for metric in ("miou", "aacc", "macc")} for row in table["stitches"]
    }
    if as_released:
        network.results.adopt([{"stitch_id": k, **scores} for k, scores in network.published_scores.items()])


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
