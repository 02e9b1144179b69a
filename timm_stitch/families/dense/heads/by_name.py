"""Heads by their names, as `timm_stitch.dense` and saved networks give them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from torch import nn

from ..settings import DenseSettings

HEADS = {"linear": ("linear", "LinearHead"), "setr": ("setr", "SetrHead"), "dpt": ("dpt", "DptHead")}


def make_head(settings: DenseSettings, reductions: Sequence[int]) -> nn.Module:
    """Make the head that settings name.

    Raises:
        ValueError: if there is no such head, or it does not take these options.
    """
    name = settings.head
    if name not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, or a function that makes one, got {name!r}.")
    file, cls = HEADS[name]
    maker = getattr(importlib.import_module(f".{file}", __package__), cls)
    try:
        module: nn.Module = maker(settings.channels, reductions, settings.num_classes, **settings.head_options)
    except TypeError as error:
        raise ValueError(f"head {name!r} does not take {dict(settings.head_options)}: {error}.") from None
    return module
