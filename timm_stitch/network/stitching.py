"""From models at hand to a stitchable network.

Imports the layers below.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from ..anchors.auto import View, view
from ..plan.enumeration import enumerate_stitches
from ..plan.stitch_plan import Anchor, StitchPlan
from .network import SNNet

# What a network takes over from its largest anchor's configuration.
_IMAGE_FIELDS = (
    "num_classes", "input_size", "fixed_input_size", "pool_size", "crop_pct", "crop_mode", "interpolation",
    "mean", "std",
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
    network = SNNet(views, plan, stitched_norm=stitched_norm, stitch_id=stitch_id)
    config = _config(models) | {
        "num_classes": network.num_classes,
        "input_size": (network.in_chans, *network.image_size),
    }
    network.pretrained_cfg = network.default_cfg = config  # type: ignore[assignment]
    return network


def meeting_points(front: nn.Module, back: nn.Module) -> list[dict[str, Any]]:
    """Where two models can meet: the boundaries of each at every spatial size that both have.

    Returns:
        One row a reduction: `reduction`, how many front boundaries (after a block) and back boundaries
        (before a block) there are, and the channels of each.
    """
    a, b = (view(model).describe() for model in (front, back))
    rows = []
    for reduction in sorted(set(a.reductions[1:]) & set(b.reductions[:-1])):
        leave = [i for i, r in enumerate(a.reductions) if i and r == reduction]
        enter = [i for i, r in enumerate(b.reductions[:-1]) if r == reduction]
        rows.append(
            {
                "reduction": reduction,
                f"{a.name} after blocks": ", ".join(str(i - 1) for i in leave),
                "channels": ", ".join(map(str, sorted({a.widths[i] for i in leave}))),
                f"{b.name} before blocks": ", ".join(map(str, enter)),
                "channels ": ", ".join(map(str, sorted({b.widths[i] for i in enter}))),
            }
        )
    if not rows:
        raise ValueError(
            f"{a.name!r} and {b.name!r} meet nowhere: after blocks 1/{sorted(set(a.reductions[1:]))} of the image, "
            f"before blocks 1/{sorted(set(b.reductions[:-1]))}. Use models with equal patch or stage sizes."
        )
    return rows


def _config(models: Sequence[nn.Module]) -> dict[str, Any]:
    """timm's configuration for the network: the largest anchor's, with the names of all stems and heads."""
    cfgs = [dict(getattr(model, "pretrained_cfg", None) or {}) for model in models]
    config = {k: v for k, v in cfgs[-1].items() if k in _IMAGE_FIELDS}
    return {**config, "architecture": "snnet", **stems_and_heads(cfgs)}


def stems_and_heads(cfgs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...] | None]:
    """The `first_conv` and `classifier` of a network: what timm's configurations of its anchors name, all together.

    Args:
        cfgs: of each anchor; an empty one names nothing.
    """
    found: dict[str, tuple[str, ...] | None] = {}
    for field in ("first_conv", "classifier"):
        names: list[str] = []
        for i, cfg in enumerate(cfgs):
            value = cfg.get(field) or ()
            names += [f"anchors.{i}.{name}" for name in ((value,) if isinstance(value, str) else value)]
        found[field] = tuple(names) or None
    return found


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
    differing = {}
    for what in ("mean", "std"):
        values = [tuple((getattr(model, "pretrained_cfg", None) or {}).get(what) or ()) for model in models]
        if len({value for value in values if value}) > 1:
            differing[what] = dict(zip([part.describe().name for part in views], values, strict=True))
    if differing:
        warnings.warn(
            f"the anchors were trained on images normalised differently: {differing}. One input serves all stitches, "
            "so accuracy will suffer: use anchors with equal preprocessing.",
            stacklevel=3,
        )
