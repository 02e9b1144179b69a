"""Networks of timm's models as files: `config.json` in timm's own form, and weights, which timm and we read.

The files may be a stranger's: `arguments` checks them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from torch import Tensor, nn

from ...network.weights import NORM_FLAG, check_keys, save_file, split_norm
from ..family import CONFIG_FILE, WEIGHTS_FILE, ReadTensors, SavedNetwork
from .arguments import Arguments, Config, check_arguments
from .meta_build import materialize
from .network import SNNet
from .pretrained_cfg import cfg_of
from .timm_compat import get_model_args, parse_model_cfg, save_config_for_hf

# Arguments of timm.create_model about where and from what a model is made, not which model.
_RUNTIME = (
    "device", "dtype", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
)  # fmt: skip
# What timm's models raise for values that they do not know.
_BUILDING_ERRORS = (AssertionError, LookupError, AttributeError, ArithmeticError)


def write_network(model: SNNet, folder: Path, label_names: Sequence[str] | None) -> dict[str, Any]:
    """Write configuration and weights into a folder; returns the contents of `config.json`."""
    check_label_names(model, label_names)
    config = write_config(model, folder, label_names)
    save_file(_tensors_to_save(model), folder / WEIGHTS_FILE)
    return config


def write_config(model: SNNet, folder: Path, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the configuration of a network into a folder; returns its contents."""
    save_config_for_hf(model, str(folder / CONFIG_FILE), model_args=rebuild_args(model))
    return _edit_config(folder / CONFIG_FILE, model, label_names)


def describe_parts(model: SNNet) -> dict[str, Any]:
    """Describe a network without its heads: the name, the arguments and the configuration by which timm makes it."""
    with TemporaryDirectory() as folder:  # timm writes it to a file
        path = Path(folder) / CONFIG_FILE
        save_config_for_hf(model, str(path), model_args=_recorded_args(model))
        config = _edit_config(path, model, None)
    return {key: config[key] for key in ("architecture", "model_args", "pretrained_cfg")}


def check_label_names(model: Any, label_names: Sequence[str] | None) -> None:
    """Refuse names that are not one for each class.

    Raises:
        ValueError: naming both numbers.
    """
    if label_names is not None and len(label_names) != model.num_classes:
        raise ValueError(
            f"label_names has {len(label_names)} names for {model.num_classes} classes: give one for each."
        )


def _tensors_to_save(model: SNNet) -> dict[str, Tensor]:
    """Prepare the tensors for a file: contiguous, and each with memory of its own."""
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in split_norm(model.state_dict())[0].items():  # config.json says whether there is a final norm
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in places or memory.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        places.add(memory.data_ptr())
        tensors[name] = tensor
    return tensors


def _edit_config(path: Path, model: SNNet, label_names: Sequence[str] | None) -> dict[str, Any]:
    """Change the file that timm wrote into one that transformers reads too; returns its contents."""
    config: dict[str, Any] = json.loads(path.read_text())
    # transformers passes num_classes itself and trips over a second one; timm reads it from the top level.
    config["model_args"].pop("num_classes", None)
    if len({_pooling(anchor) for anchor in model.anchors}) > 1:  # each anchor pools in its own way
        config["model_args"].pop("global_pool", None)
    for field in ("label_names", "label_descriptions"):
        config["pretrained_cfg"].pop(field, None)
        if (names := cfg_of(model).get(field)) and len(names) == model.num_classes:
            config.setdefault(field, names)
    if label_names is not None:
        config["label_names"] = list(label_names)
        config.pop("label_descriptions", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
    return config


def _pooling(anchor: nn.Module) -> str:
    """The pooling of an anchor, by timm's name."""
    pool = getattr(anchor, "global_pool", None)
    return str(getattr(pool, "pool_type", pool) if isinstance(pool, nn.Module) else pool)


def rebuild_args(model: SNNet) -> dict[str, Any]:
    """The arguments with which timm makes a network again.

    Raises:
        ValueError: if an anchor is not one that timm can make by name, or making it again by name gives
            another network.
    """
    if any(view.is_partial for view in model.views):
        raise ValueError(
            f"this is a part of a larger network (stitch {model.stitch_id}), which timm cannot make again: save "
            "the larger one, from which from_hub(folder, extract=…) loads this stitch alone; or keep this one's "
            "weights with safetensors.torch.save_file(model.state_dict(), path)."
        )
    args = _recorded_args(model)
    _check_rebuilt(model, str(cfg_of(model)["architecture"]), args)
    return args


def _recorded_args(model: SNNet) -> dict[str, Any]:
    """Collect the arguments with which the network and its anchors were made, and what was set since."""
    args = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in _RUNTIME}
    args.update(stitch_id=model.stitch_id, stitched_norm=model.stitched_norm)
    name = str(cfg_of(model)["architecture"])
    if name == "snnet" and "anchors" in args:  # timm made it by name, and recorded how
        names = [spec if isinstance(spec, str) else spec["architecture"] for spec in args["anchors"]]
        specs = [_anchor_args(anchor) for anchor in model.anchors]
        args["anchors"] = [{**spec, "architecture": own} for spec, own in zip(specs, names, strict=True)]
        args.pop("global_pool", None)  # each anchor has its own
    elif name == "snnet":
        args |= {"anchors": [_anchor_args(anchor) for anchor in model.anchors], "plan": model.plan.to_dict()}
    return args


def _check_rebuilt(model: SNNet, name: str, args: Arguments) -> None:
    """Make the network again on the meta device, and compare."""
    check_arguments(args, name)
    shape = {"num_classes": model.num_classes, "in_chans": model.in_chans}
    again = timm.create_model(name, device="meta", **{**shape, **args, **shape})
    own, theirs = model.state_dict(), again.state_dict()
    differ = sorted({*own} ^ {*theirs} | {k for k in own if k in theirs and own[k].shape != theirs[k].shape})
    if differ or again.plan != model.plan:
        raise ValueError(
            f"timm would make another network from these anchors' names ({len(differ)} tensors differ, e.g. "
            f"{(differ or ['the plan'])[0]!r}): change anchors by arguments of timm.create_model, not by replacing "
            "modules."
        )


def _anchor_args(anchor: nn.Module | None) -> dict[str, Any]:
    name = cfg_of(anchor).get("architecture")
    recorded = getattr(anchor, "_model_args", None)
    if anchor is None or not name or recorded is None:
        raise ValueError(
            f"timm cannot make the anchor {type(anchor).__name__} again by name, so a folder would be unreadable: "
            "create the anchors with timm.create_model('deit_tiny_patch16_224', embed_dim=…, depth=…)."
        )
    current = {**recorded, **get_model_args(anchor)}  # pooling, sizes and classes that were set after creation
    return {"architecture": name, **{k: v for k, v in current.items() if k not in _RUNTIME}}


def read_network(saved: SavedNetwork, arguments: Arguments) -> nn.Module:
    """Load a whole network from a folder whose `config.json` was checked; timm reads its weights.

    Raises:
        ValueError: if the network cannot be built with these arguments.
    """
    source = {"file": str(saved.folder), "source": "local-dir"}
    cfg, architecture, model_args = parse_model_cfg(copy.deepcopy(dict(saved.config)), source)
    own = {"pretrained": True} | {name: value for name, value in arguments.items() if value is not None}
    try:
        model = timm.create_model(
            architecture, pretrained_cfg=cfg, pretrained_model_args=dict(model_args), saved=saved,
            **{**model_args, **own},
        )  # fmt: skip
        model._model_args.pop("saved")  # type: ignore[operator, union-attr] # timm records all arguments there
        return model
    except (TypeError, *_BUILDING_ERRORS) as error:
        raise ValueError(f"this network cannot be built with these arguments: {error!s:.160}.") from error


def read_stitch(
    saved: SavedNetwork, stitch_id: int, read_tensors: ReadTensors, num_classes: int | None = None
) -> SNNet:
    """Load one stitch of a network.

    Raises:
        ValueError: if the configuration is not that of a network, or there is no such stitch.
    """
    config = saved.config
    labels = {field: config[field] for field in ("label_names", "label_descriptions") if field in config}
    shape = {"num_classes": config.get("num_classes"), "pretrained_cfg": {**config["pretrained_cfg"], **labels}}
    try:
        whole = timm.create_model(config["architecture"], device="meta", **{**config.get("model_args", {}), **shape})
    except (TypeError, RuntimeError, *_BUILDING_ERRORS) as error:
        raise ValueError(f"config.json asks for a network that cannot be built ({error!s:.160}).") from error
    if not isinstance(whole, SNNet):
        raise ValueError(f"config.json asks for a {type(whole).__name__} instead of the network: save it again.")
    small = whole.extract(stitch_id)
    own, _ = split_norm(small.state_dict())
    tensors = read_tensors(own)
    check_keys(tensors, own, f"stitch {stitch_id} of this network")
    small.load_state_dict(tensors)
    materialize(small)
    small.set_stitch(stitch_id)
    if num_classes is not None:
        small.reset_classifier(num_classes)
    return small


def stitched_norm(config: Config) -> bool:
    """Whether stitched paths of a saved network run the final norm."""
    return bool(config.get("model_args", {}).get(NORM_FLAG, True))
