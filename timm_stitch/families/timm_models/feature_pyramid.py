"""The pyramid as timm's `features_only` makes backbones: levels chosen by `out_indices` among all of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...anchors.block_view import BlockView
from ...plan.levels import EARLY, Ends, make_ends
from ...plan.stitch_plan import Anchor, Level
from .features import take_indices
from .pyramid import Pyramid
from .pyramid_levels import level_entries
from .timm_compat import FeatureInfo

_DEFAULT = 4  # levels of a network without stages: behind each quarter of its blocks


class FeaturePyramid(Pyramid):
    """Feature maps alike for every stitch, with the attributes that other libraries know from timm's backbones.

    `timm.create_model(..., features_only=True, stitches="all")` makes one.

    Args:
        network: the network.
        out_indices: the numbers of levels, or the number of the last: for networks with stages of all levels that each
            anchor has, stems included, for others of the blocks of the largest anchor. Default all levels, or four
            at equal parts of the depth.

    Attributes:
        out_indices: the numbers of the levels, ascending.

    Raises:
        ValueError: if there are no such levels.
    """

    def __init__(self, network: Any, out_indices: int | Sequence[int] | None = None) -> None:
        anchors: Sequence[Anchor] = network.plan.anchors
        every = all_levels(network.views, anchors)
        count, unit = len(every[-1]), "levels"
        if not any(len(anchor.stages) > 1 for anchor in anchors):
            unit = "blocks in the largest anchor"
            if out_indices is None:
                out_indices = [end - 1 for end in make_ends(anchors, min(_DEFAULT, count))[-1]]
        taken, _ = take_indices(count, out_indices, f"this network has {count} {unit}.")
        indices = sorted(set(taken))
        super().__init__(network, tuple(tuple(own[n] for n in indices) for own in every))
        self.out_indices, self._every = tuple(indices), every

    @property
    def feature_info(self) -> FeatureInfo:
        """timm's description of all levels, and the numbers of those that are given."""
        entries = [dict(entry) for entry in level_entries(self.network.views, self._every)]
        return FeatureInfo(entries, self.out_indices)

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's configuration of the network, under its other name."""
        return self.pretrained_cfg


def all_levels(views: Sequence[BlockView], anchors: Sequence[Anchor]) -> Ends:
    """List every level: of the stem and each stage where all anchors have it, or of each block of the largest anchor.

    Raises:
        ValueError: if the anchors have no level in common.
    """
    if all(len(anchor.stages) == 1 for anchor in anchors):
        return make_ends(anchors, list(range(anchors[-1].depth)))
    boundaries = [_boundaries(view, anchor) for view, anchor in zip(views, anchors, strict=True)]
    common = [level for level in boundaries[-1] if all(level in own for own in boundaries)]
    if not common:
        names = ", ".join(repr(anchor.name) for anchor in anchors)
        raise ValueError(f"feature maps of every stitch need anchors with stages of equal sizes, got {names}.")
    return tuple(tuple(own[level] for level in common) for own in boundaries)


def _boundaries(view: BlockView, anchor: Anchor) -> dict[Level, int]:
    """Get the boundary of each level of an anchor, in the order of its forward pass."""
    ends = {} if view.early is None else {(view.early[2], 0): EARLY}
    if anchor.reductions[0] != anchor.reductions[1]:
        ends[anchor.reductions[0], 0] = 0
    return ends | {level: blocks.stop for level, blocks in anchor.stage_at.items()}
