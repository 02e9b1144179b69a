"""A network by the name that people give it: registered with timm, a folder, on the Hub, or its anchors.

Imports timm, and the registry through it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm

from ..files import PathLike
from ..network.network import SNNet


def load_network(
    names: PathLike | Sequence[str], *, pretrained: bool = True, device: str = "cpu", **args: Any
) -> SNNet:
    """Load or make a stitchable network.

    Args:
        names: a registered name (`"snnet_deit_tsb"`), a folder that `save_pretrained` wrote, `"hf-hub:USER/NAME"`, or
            several timm models to stitch, fastest first.
        pretrained: with weights.
        device: where it is to be; on `"meta"` it has no weights.
        args: further arguments of `timm.create_model`.

    Raises:
        ValueError: if there is no such network, or it is not a stitchable one.
    """
    several = [os.fspath(names)] if isinstance(names, (str, os.PathLike)) else list(names)
    if device == "meta":
        args = {**args, "device": device}
    if len(several) > 1:
        model: Any = timm.create_model("snnet", anchors=several, pretrained=pretrained, **args)
    else:
        name = f"local-dir:{several[0]}" if Path(several[0]).is_dir() else several[0]
        if ":" not in name and not timm.is_model(name.split(".")[0]):
            known = ", ".join(timm.list_models("snnet*"))
            raise ValueError(
                f"there is no folder and no model {name!r}: expected a folder, hf-hub:USER/NAME or {known}."
            )
        model = timm.create_model(name, pretrained=pretrained, **args)
    if not isinstance(model, SNNet):
        raise ValueError(f"{several[0]!r} is one network, not a stitchable one: name several to stitch them.")
    return model if device == "meta" else model.to(device)
