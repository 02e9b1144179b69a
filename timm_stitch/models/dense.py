"""The name by which timm loads saved dense networks: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import register_model
from torch import nn


@register_model
def dense_snnet(
    pretrained: bool = False, pretrained_cfg: Any = None, cache_dir: Any = None, **kwargs: Any
) -> nn.Module:
    """A dense network that was saved; its `config.json` has this name, and timm says where it read that."""
    from ..hub.loading import from_hub

    cfg = pretrained_cfg if isinstance(pretrained_cfg, Mapping) else {}
    source = cfg.get("source")
    place = cfg.get("file") if source == "local-dir" else cfg.get("hf_hub_id")
    if source not in ("local-dir", "hf-hub") or not place:
        raise ValueError(
            "dense_snnet is the name of saved dense networks: give local-dir:FOLDER or hf-hub:USER/NAME, or make one "
            "by timm_stitch.dense(model, …)."
        )
    arguments = {name: value for name, value in kwargs.items() if value is not None}
    return from_hub(f"{source}:{place}", cache_dir=cache_dir, pretrained=pretrained, **arguments)
