"""The rule by which a run draws the stitches of each step."""

from __future__ import annotations

from collections.abc import Mapping

from ..network.stitchable import StitchableNetwork
from .config import TrainConfig
from .sampling import Rule, make_rule


def sampling_rule(model: StitchableNetwork, config: TrainConfig, macs: Mapping[int, int]) -> tuple[Rule, int]:
    """Which stitches each step trains, and the largest anchor, from which others may learn."""
    drawn = model.stitch_ids if config.tune == "all" else [s.stitch_id for s in model.plan if not s.is_anchor]
    whole = [s.stitch_id for s in model.plan if s.is_anchor] or model.stitch_ids  # an extracted stitch has none
    anchors = sorted(whole, key=macs.__getitem__, reverse=True)
    rule = make_rule(
        config.sampling, {i: macs[i] for i in drawn}, config.seed,
        anchors=anchors, stitches=config.stitches,
        group_width=config.group_width, groups=config.groups, bias=config.group_bias, scores=config.scores,
    )  # fmt: skip
    return rule, anchors[0]
