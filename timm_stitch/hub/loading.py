"""A network by the name that people give it: registered with timm, a folder, on the Hub, or its anchors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from ..families.timm_models.arguments import OF_NETWORK
from ..families.timm_models.network import SNNet
from ..families.timm_models.stitching import for_each_anchor, stitch
from ..files import PathLike
from ..plan.stitch_plan import StitchPlan


def load_network(
    names: PathLike | Sequence[str], *, pretrained: bool = True, device: str = "cpu", **args: Any
) -> SNNet:
    """Load or make a stitchable network.

    Args:
        names: a registered name (`"snnet_deit_tsb"`), a folder that `save_pretrained` wrote, `"hf-hub:USER/NAME"`, or
            several timm models to stitch, fastest first, each a name, a folder or on the Hub.
        pretrained: with weights.
        device: where it is to be; on `"meta"` it has no weights.
        args: further arguments of `timm.create_model`; `anchors` of `"snnet"` may be folders and on the Hub, too.

    Raises:
        ValueError: if there is no such network, or it is not a stitchable one.
    """
    several = [os.fspath(names)] if isinstance(names, (str, os.PathLike)) else list(names)
    if device == "meta":
        args = {**args, "device": device}
    anchors = args.get("anchors", ()) if several == ["snnet"] else ()
    if anchors and all(isinstance(name, str) for name in anchors) and any(":" in with_prefix(name) for name in anchors):
        several = list(anchors)
        args = {name: value for name, value in args.items() if name != "anchors"}
    if len(several) > 1:
        named = [with_prefix(name) for name in several]
        if any(":" in name for name in named):  # one's own, which the registry cannot make by name
            model: Any = _stitch_own(named, pretrained, args)
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


def _stitch_own(names: Sequence[str], pretrained: bool, args: Mapping[str, Any]) -> SNNet:
    """Stitch models in folders or on the Hub, with the arguments that `snnet` takes for anchors that are registered."""
    of_network = {name: value for name, value in args.items() if name in OF_NETWORK}
    common = {name: value for name, value in args.items() if name not in (*OF_NETWORK, "drop_path_rate")}
    rates = for_each_anchor("drop_path_rate", args.get("drop_path_rate"), len(names))
    own = [{} if rate is None else {"drop_path_rate": rate} for rate in rates]
    models = [timm.create_model(n, pretrained=pretrained, **common, **o) for n, o in zip(names, own, strict=True)]
    touch_unused, plan = of_network.pop("touch_unused", None), of_network.pop("plan", None)
    plan = StitchPlan.from_dict(plan) if isinstance(plan, Mapping) else plan
    network = stitch(models, plan=plan, **of_network)
    if touch_unused is not None:
        network.touch_unused = touch_unused
    return network


def with_prefix(name: str) -> str:
    """A name as timm takes it: a folder is `local-dir:`."""
    return f"local-dir:{name}" if ":" not in name and Path(name).is_dir() else name
