"""From timm's models to a stitchable network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from ...anchors.view import View
from ...network.compatibility import check_meeting, number_duplicates, warn_of_order
from ...plan.enumeration import PlanOptions
from .network import SNNet
from .pretrained_cfg import cfg_of, merge_cfgs
from .views import view_of

Value = TypeVar("Value")


def stitch_timm(
    models: Sequence[nn.Module],
    options: PlanOptions,
    *,
    stitched_norm: bool = True,
    stitch_id: int | None = None,
) -> SNNet:
    """Stitch timm's models into one network.

    Args:
        models: the models from the fastest to the slowest, taken as they are.
        options: the choice of stitches.
        stitched_norm: run the back anchor's final norm on stitched paths.
        stitch_id: the current stitch at first; default the largest anchor alone.

    Raises:
        TypeError: if a model cannot be opened as an anchor.
        ValueError: if the models cannot meet, or there is no such plan.
    """
    views = [view_of(model) for model in models]
    check_meeting(views)
    warn_of_preprocessing(models, views)
    plan = options.make(number_duplicates([view.describe() for view in views]))
    network = SNNet(views, plan, stitched_norm=stitched_norm, stitch_id=stitch_id)
    config = merge_cfgs(models) | {
        "num_classes": network.num_classes,
        "input_size": (network.in_chans, *network.image_size),
    }
    network.pretrained_cfg = network.default_cfg = config
    if options.plan is None:
        warn_of_order(network)
    return network


def for_each_anchor(name: str, value: Value | Sequence[Value], count: int) -> list[Value]:
    """Give every anchor its value of an argument that is one value for all, or a sequence of one for each.

    Raises:
        ValueError: if there are more or fewer.
    """
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values for {count} anchors: give one number, or one per anchor.")
    return values


def warn_of_preprocessing(models: Sequence[nn.Module], views: Sequence[View]) -> None:
    """Warn of anchors that were trained on images normalised differently."""
    differing = {}
    for field in ("mean", "std"):
        values = [tuple(cfg_of(model).get(field) or ()) for model in models]
        if len({value for value in values if value}) > 1:
            differing[field] = dict(zip([view.describe().name for view in views], values, strict=True))
    if differing:
        warnings.warn(
            f"the anchors were trained on images normalised differently: {differing}. One input serves all stitches, "
            "so accuracy will suffer: use anchors with equal preprocessing.",
            stacklevel=3,
        )
