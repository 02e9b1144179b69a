"""timm's configuration of a network, from those of its anchors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import library_errors

if TYPE_CHECKING:
    from torch import nn

Cfg = Mapping[str, Any]  # a `pretrained_cfg` of timm's, by its fields
AnchorSpec = str | Mapping[str, Any]  # a timm name, or a dict of such a name as "architecture" and its arguments

# The fields that a network takes over from its largest anchor's configuration.
_IMAGE_FIELDS = (
    "num_classes", "input_size", "fixed_input_size", "pool_size", "crop_pct", "crop_mode", "interpolation",
    "mean", "std",
)  # fmt: skip


def cfg_of(model: nn.Module | None) -> Cfg:
    """The `pretrained_cfg` of a model; empty for one without."""
    return getattr(model, "pretrained_cfg", None) or {}


def timm_cfg(anchor: AnchorSpec) -> dict[str, Any]:
    """timm's own configuration of an anchor; empty for an unknown name."""
    import timm  # not above: `timm_stitch.plugin` imports this file while timm is being imported

    name = anchor if isinstance(anchor, str) else str(anchor.get("architecture"))
    with library_errors(f"timm cannot make the anchor {name!r}", RuntimeError):
        cfg = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    return {} if cfg is None else dataclasses.asdict(cfg)


def merge_cfgs(models: Sequence[nn.Module]) -> dict[str, object]:
    """Make timm's configuration for a network: the largest anchor's, with the names of all stems and heads."""
    config = {field: value for field, value in cfg_of(models[-1]).items() if field in _IMAGE_FIELDS}
    return {**config, "architecture": "snnet", **stems_and_heads([cfg_of(model) for model in models])}


def stems_and_heads(cfgs: Sequence[Cfg]) -> dict[str, tuple[str, ...] | None]:
    """The `first_conv` and `classifier` of a network: the names in the configurations of all its anchors.

    Args:
        cfgs: the configuration of each anchor; an empty one names nothing.
    """
    fields: dict[str, tuple[str, ...] | None] = {}
    for field in ("first_conv", "classifier"):
        names: list[str] = []
        for i, cfg in enumerate(cfgs):
            value = cfg.get(field) or ()
            names += [f"anchors.{i}.{name}" for name in ((value,) if isinstance(value, str) else value)]
        fields[field] = tuple(names) or None
    return fields
