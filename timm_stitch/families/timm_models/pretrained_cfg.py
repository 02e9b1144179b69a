"""timm's configuration of a network, from those of its anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

# What a network takes over from its largest anchor's configuration.
_IMAGE_FIELDS = (
    "num_classes", "input_size", "fixed_input_size", "pool_size", "crop_pct", "crop_mode", "interpolation",
    "mean", "std",
)  # fmt: skip


def merged_cfg(models: Sequence[nn.Module]) -> dict[str, Any]:
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
