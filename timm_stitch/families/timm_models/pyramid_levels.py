"""The levels of a pyramid over anchors: channels, reductions, and the stitching layers that project to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...anchors.block_view import BlockView
from ...plan.levels import EARLY, Ends
from ...plan.stitch_plan import StitchPlan
from .features import FeatureEntry
from .pyramid_costs import LevelOfAnchor


def level_entries(views: Sequence[BlockView], ends: Ends) -> list[FeatureEntry]:
    """Make entries of timm's `feature_info` for levels, named by the largest anchor, as wide as the widest."""
    largest, last, entries = views[-1], len(views) - 1, list[FeatureEntry]()
    for level in zip(*ends, strict=True):
        end = level[-1]
        if end > 0:
            name = largest.block_name(end - 1)
        else:
            inside = largest.early if end == EARLY else None
            name = largest.parameter_groups().stem[-1] if inside is None else inside[0]
        widest = max(level_width(view, own) for view, own in zip(views, level, strict=True))
        reduction = level_reduction(largest, end)
        entries.append({"module": f"network.anchors.{last}.{name}", "num_chs": widest, "reduction": reduction})
    return entries


def level_channels(entries: Sequence[FeatureEntry], channels: int | Sequence[int] | None = None) -> list[int]:
    """List the channels of levels: those of their entries, or the given ones for all levels or for each.

    Raises:
        ValueError: if there are not as many channels as levels.
    """
    if channels is None:
        return [entry["num_chs"] for entry in entries]
    count = len(entries)
    wanted = [channels] * count if isinstance(channels, int) else list(channels)
    if len(wanted) != count or not all(isinstance(width, int) and width > 0 for width in wanted):
        raise ValueError(f"channels must be a positive number, or one for each of {count} levels, got {channels!r}.")
    return wanted


def level_width(view: BlockView, end: int) -> int:
    """Return the channels of an anchor's activation at a level."""
    if end == EARLY and view.early is not None:
        return view.early[1]
    return view.widths[max(end, 0)]


def level_reduction(view: BlockView, end: int) -> int:
    """Return the pixels of the image to one of an anchor's activation at a level, along a side."""
    if end == EARLY and view.early is not None:
        return view.early[2]
    return view.reductions[max(end, 0)]


def tied_layers(
    plan: StitchPlan, ends: Ends, needed: Mapping[LevelOfAnchor, tuple[int, int]]
) -> dict[LevelOfAnchor, int]:
    """Find the stitching layers that leave an anchor at a level for an anchor as wide as the level."""
    tied: dict[LevelOfAnchor, int] = {}
    for (anchor, level), widths in needed.items():
        for number, spec in enumerate(plan.layers):
            leaves = {stop for stop, _ in plan.pairs(number)}
            if spec.front == anchor and (spec.in_width, spec.out_width) == widths and ends[anchor][level] in leaves:
                tied.setdefault((anchor, level), number)
    return tied
