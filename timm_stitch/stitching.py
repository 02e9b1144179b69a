"""From models at hand to a stitchable network.

Imports the layers below.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from .enumeration import enumerate_stitches
from .network import SNNet
from .plan import Anchor, StitchPlan
from .views import View, view


# What a network takes over from its largest anchor's configuration.
_IMAGE_FIELDS = (
    "num_classes", "input_size", "fixed_input_size", "pool_size", "crop_pct", "crop_mode", "interpolation", "mean", "std",
)  # fmt: skip


def stitch(
    models: Sequence[nn.Module],
    direction: str = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    *,
    rank: int = 0,
    plan: StitchPlan | Callable[[Sequence[Anchor]], StitchPlan] | None = None,
    stitched_norm: bool = True,
    stitch_id: int | None = None,
) -> SNNet:
    """Stitch models into one network (SN-Net, arXiv:2302.06586).

    The stitching layers start random: follow with `least_squares_init`.

    Args:
        models: timm models from the fastest to the slowest; taken as they are, not copied, not changed.
        direction, nearest, kernel_size, stride, rank: as in `enumerate_stitches`.
        plan: instead of these five, a plan of one's own for the same models, or a function that makes
            one from their descriptions.
        stitched_norm: run the back anchor's final norm on stitched paths.
        stitch_id: the stitch to begin with; default the largest anchor alone.

    Returns:
        The network, on the models' device.

    Raises:
        TypeError: if a model cannot be opened as an anchor.
        ValueError: if the models cannot meet, or the plan cannot be.
    """
    models = list(models)
    views = [view(model) for model in models]
    _check_meeting(views)
    _warn_of_preprocessing(models, views)
    if plan is None:
        plan = enumerate_stitches(_describe(views), direction, nearest, kernel_size, stride, rank)
    elif not isinstance(plan, StitchPlan):
        plan = plan(_describe(views))
    network = SNNet(models, plan, stitched_norm=stitched_norm, stitch_id=stitch_id)
    network.pretrained_cfg = network.default_cfg = _config(models)  # type: ignore[assignment]
    return network


def _config(models: Sequence[nn.Module]) -> dict[str, Any]:
    """timm's configuration for the network: the largest anchor's, with the names of all stems and heads."""
    cfgs = [dict(getattr(model, "pretrained_cfg", None) or {}) for model in models]
    config = {k: v for k, v in cfgs[-1].items() if k in _IMAGE_FIELDS}
    config["architecture"] = "snnet"
    for field in ("first_conv", "classifier"):
        names: list[str] = []
        for i, cfg in enumerate(cfgs):
            value = cfg.get(field) or ()
            names += [f"anchors.{i}.{name}" for name in ((value,) if isinstance(value, str) else value)]
        config[field] = tuple(names) or None
    return config


def _describe(views: Sequence[View]) -> list[Anchor]:
    """The anchors, with a number behind names that occur twice."""
    anchors = [part.describe() for part in views]
    names = [anchor.name for anchor in anchors]
    return [
        part.describe(f"{anchor.name}#{i}") if names.count(anchor.name) > 1 else anchor
        for i, (part, anchor) in enumerate(zip(views, anchors, strict=True))
    ]


def _check_meeting(views: Sequence[View]) -> None:
    """Refuse token grids that differ.

    Raises:
        ValueError: naming the two models and their tokens.
    """
    for a, b in pairwise(views):
        leave, enter = a.tokens, b.tokens
        if leave and enter and leave - a.prefix_tokens != enter - b.prefix_tokens:
            raise ValueError(
                f"cannot stitch {a.describe().name!r} to {b.describe().name!r}: {leave} tokens leave block 0, "
                f"{enter} are expected. Use anchors with equal patch and image size."
            )
        if a.image_size and b.image_size and a.image_size != b.image_size:
            raise ValueError(
                f"cannot stitch {a.describe().name!r} to {b.describe().name!r}: they take images of {a.image_size} and "
                f"{b.image_size}. Create both with one img_size."
            )


def _warn_of_preprocessing(models: Sequence[nn.Module], views: Sequence[View]) -> None:
    for what in ("mean", "std"):
        values = [tuple((getattr(model, "pretrained_cfg", None) or {}).get(what) or ()) for model in models]
        if len({value for value in values if value}) > 1:
            names = [part.describe().name for part in views]
            warnings.warn(
                f"the anchors were trained on images of different {what}: {dict(zip(names, values, strict=True))}. "
                "One input serves all stitches, so accuracy will suffer: use anchors with equal preprocessing.",
                stacklevel=3,
            )
