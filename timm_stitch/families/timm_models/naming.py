"""Networks by the names of timm's models: registered ones, folders and repositories of the Hub."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from torch import nn

from ...network.stitchable import StitchableNetwork
from ...plan.enumeration import PlanOptions
from ...plan.stitch_plan import StitchPlan
from .arguments import OF_NETWORK, Arguments
from .network import SNNet
from .stitching import for_each_anchor, stitch_timm
from .train_checkpoints import PREFIX, anchor_spec, make_model


def make_network(names: Sequence[str], pretrained: bool, device: str, arguments: Arguments) -> StitchableNetwork:
    """Make a network that is registered, or one of several anchors.

    Args:
        names: one registered network, or the anchors from the fastest to the slowest; with `local-dir:` or `hf-hub:`
            before those of folders and repositories, and `checkpoint:` before a file of timm's `train.py`.
        pretrained: whether to load weights.
        device: the device of the network; on `"meta"` it has no weights.
        arguments: further arguments of `timm.create_model`.

    Raises:
        ValueError: if there is no such model, or it is not a stitchable network.
    """
    if device == "meta":
        arguments = {**arguments, "device": device}
    of_files = [name.startswith(PREFIX) for name in names]
    if len(names) > 1 and any(":" in name and not of_file for name, of_file in zip(names, of_files, strict=True)):
        model: nn.Module = _stitch_sources(names, pretrained, arguments)  # the registry cannot make these by name
    elif len(names) > 1:
        anchors = [anchor_spec(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name for name in names]
        model = timm.create_model("snnet", anchors=anchors, pretrained=pretrained, **arguments)
    elif of_files[0]:
        model = make_model(names[0], pretrained, **arguments)
    else:
        if ":" not in names[0] and not timm.is_model(names[0].split(".")[0]):
            known = ", ".join(timm.list_models("snnet*"))
            raise ValueError(
                f"there is no folder and no model {names[0]!r}: expected a folder, hf-hub:USER/NAME or {known}."
            )
        model = timm.create_model(names[0], pretrained=pretrained, **arguments)
    if not isinstance(model, StitchableNetwork):
        name = names[0].removeprefix(PREFIX)
        raise ValueError(
            f"{name!r} is one network, not a stitchable one: name several to stitch them. For a verb that takes one "
            f"network, such as predict, stitch them first: timm-stitch init {shlex.quote(name)} OTHER --output net."
        )
    return model if device == "meta" else model.to(device)


def make_registered(name: str, device: str = "cpu", **arguments: Any) -> StitchableNetwork:
    """Make a network that is registered with timm, with arguments of `timm.create_model`.

    Raises:
        ValueError: if the model of that name is not a stitchable network.
    """
    model = timm.create_model(name, device=device, **arguments)
    if not isinstance(model, StitchableNetwork):
        raise ValueError(f"{name!r} is not a stitchable network: expected one of {timm.list_models('snnet*')}.")
    return model


def _stitch_sources(names: Sequence[str], pretrained: bool, arguments: Arguments) -> SNNet:
    """Stitch models in folders or on the Hub, with the arguments that `snnet` takes for registered anchors."""
    of_network = {name: value for name, value in arguments.items() if name in OF_NETWORK}
    common = {name: value for name, value in arguments.items() if name not in (*OF_NETWORK, "drop_path_rate")}
    rates = for_each_anchor("drop_path_rate", arguments.get("drop_path_rate"), len(names))
    own = [{} if rate is None else {"drop_path_rate": rate} for rate in rates]
    models = [make_model(n, pretrained, **common, **o) for n, o in zip(names, own, strict=True)]
    touch_unused = of_network.pop("touch_unused", None)
    start = {name: of_network.pop(name) for name in ("stitched_norm", "stitch_id") if name in of_network}
    if isinstance(of_network.get("plan"), Mapping):
        of_network["plan"] = StitchPlan.from_dict(of_network["plan"])
    network = stitch_timm(models, PlanOptions(**of_network), **start)
    if touch_unused is not None:
        network.touch_unused = touch_unused
    return network
