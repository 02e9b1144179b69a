"""Checks that anchors fit a plan and each other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ..anchors.view import View
from ..plan.costs import short
from ..plan.results import Rows
from ..plan.stitch_plan import Anchor, StitchPlan
from .crossing import uses_back_prefix_tokens


def check_anchors(views: Sequence[View], plan: StitchPlan) -> None:
    """Refuse anchors that do not fit the plan or each other.

    Raises:
        ValueError: naming the anchor and the difference.
    """
    if len(views) != len(plan.anchors):
        raise ValueError(f"the plan has {len(plan.anchors)} anchors ({plan.anchor_names}), got {len(views)} models.")
    if len({id(view.anchor) for view in views}) < len(views):
        raise ValueError("the same module was given as two anchors: give a copy, or another model.")
    for view, anchor in zip(views, plan.anchors, strict=True):
        if (view.widths, view.reductions) != (anchor.widths, anchor.reductions):
            raise ValueError(
                f"the plan's anchor {anchor.name!r} has {anchor.depth} blocks of {sorted(set(anchor.widths))} "
                f"channels; the model has {view.depth} of {sorted(set(view.widths))}. "
                "Make the plan from these models."
            )
    tensors = [next(view.anchor.parameters()) for view in views]
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        where = {name: (str(t.dtype), str(t.device)) for name, t in zip(plan.anchor_names, tensors, strict=True)}
        raise ValueError(f"the anchors differ in dtype or device: {where}. Move them together first, with .to(…).")
    for attribute in ("num_classes", "in_chans"):
        values = [getattr(view.anchor, attribute, None) for view in views]
        if len(set(values)) > 1:
            raise ValueError(
                f"cannot stitch anchors whose {attribute} differ: {dict(zip(plan.anchor_names, values, strict=True))}. "
                f"Create them with equal {attribute}."
            )
    for number, spec in enumerate(plan.layers):
        if uses_back_prefix_tokens(plan, views, number) and not views[spec.back].prefix_names():
            front, back = plan.anchor_names[spec.front], plan.anchor_names[spec.back]
            raise ValueError(
                f"cannot stitch {front!r} to {back!r}: the second has class or register tokens that the first "
                "lacks, and cannot make them apart from its patches. Use anchors that both have them or both lack them."
            )


def check_meeting(views: Sequence[View]) -> None:
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


def warn_of_order(network: Any) -> None:  # a StitchableNetwork, whose file is above this one
    """Warn of a slower anchor before a faster one.

    Counting multiply-adds may run the anchors, so this is done only where parameters fall from one to the next.
    """
    params = [sum(parameter.numel() for parameter in view.anchor.parameters()) for view in network.views]
    if params == sorted(params):
        return
    try:
        costs = network.costs()
    except ValueError:  # of anchors that cannot run here, such as those on the meta device
        return
    alone = [network.plan[network.plan.anchor_id(number)] for number in range(len(params))]
    macs = [costs.cost(stitch).macs for stitch in alone]
    if macs != sorted(macs):
        listed = ", ".join(f"{stitch.name} {short(count)}" for stitch, count in zip(alone, macs, strict=True))
        warnings.warn(
            f"the anchors are not ordered from the fastest to the slowest (multiply-adds: {listed}): list the fastest "
            "first. Until another stitch is set, the last anchor runs alone.",
            stacklevel=5,
        )


def meeting_points(front: View, back: View) -> Rows:
    """List the boundaries where two anchors can meet, at every spatial size that both have.

    Returns:
        One row per reduction: `reduction`, the blocks of the front after which they meet, those of the back before
        which they meet, and the channels on both sides.

    Raises:
        ValueError: if they meet nowhere.
    """
    a, b = front.describe(), back.describe()
    rows = []
    for reduction in sorted(set(a.reductions[1:]) & set(b.reductions[:-1])):
        leave = [i for i, r in enumerate(a.reductions) if i and r == reduction]
        enter = [i for i, r in enumerate(b.reductions[:-1]) if r == reduction]
        rows.append(
            {
                "reduction": reduction,
                f"{a.name} after blocks": ", ".join(str(i - 1) for i in leave),
                "leave channels": ", ".join(map(str, sorted({a.widths[i] for i in leave}))),
                f"{b.name} before blocks": ", ".join(map(str, enter)),
                "enter channels": ", ".join(map(str, sorted({b.widths[i] for i in enter}))),
            }
        )
    if not rows:
        raise ValueError(
            f"{a.name!r} and {b.name!r} meet nowhere: after blocks 1/{sorted(set(a.reductions[1:]))} of the image, "
            f"before blocks 1/{sorted(set(b.reductions[:-1]))}. Use models with equal patch or stage sizes."
        )
    return rows


def number_duplicates(anchors: Sequence[Anchor]) -> list[Anchor]:
    """Append a number to the names of anchors whose names occur twice."""
    names = [anchor.name for anchor in anchors]
    return [
        replace(anchor, name=f"{anchor.name}#{i}") if names.count(anchor.name) > 1 else anchor
        for i, anchor in enumerate(anchors)
    ]
