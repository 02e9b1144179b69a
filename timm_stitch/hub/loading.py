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
from ..network.stitching import stitch


def load_network(
    names: PathLike | Sequence[str], *, pretrained: bool = True, device: str = "cpu", **args: Any
) -> SNNet:
    """Load or make a stitchable network.

    Args:
        names: a registered name (`"snnet_deit_tsb"`), a folder that `save_pretrained` wrote, `"hf-hub:USER/NAME"`, or
            several timm models to stitch, fastest first, each a name, a folder or on the Hub.
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
        named = [with_prefix(name) for name in several]
        if any(":" in name for name in named):  # one's own, which the registry cannot make by name
            model: Any = stitch([timm.create_model(name, pretrained=pretrained, **args) for name in named])
        else:
            model = timm.create_model("snnet", anchors=several, pretrained=pretrained, **args)
    else:
        name = with_prefix(several[0])
        if ":" not in name and not timm.is_model(name.split(".")[0]):
            known = ", ".join(timm.list_models("snnet*"))
            raise ValueError(
                f"there is no folder and no model {name!r}: expected a folder, hf-hub:USER/NAME or {known}."
            )
        model = timm.create_model(name, pretrained=pretrained, **args)
    if not isinstance(model, SNNet):
        raise ValueError(f"{several[0]!r} is one network, not a stitchable one: name several to stitch them.")
    return model if device == "meta" else model.to(device)


def with_prefix(name: str) -> str:
    """A name as timm takes it: a folder is `local-dir:`."""
    return f"local-dir:{name}" if ":" not in name and Path(name).is_dir() else name
