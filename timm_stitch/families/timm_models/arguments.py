"""The arguments that the `model_args` of a saved network may have, at any depth of anchors in anchors.

An argument is allowed by its name if something in timm's own file of that architecture takes it to build with, and by
its value if that is a plain, bounded one. Whatever names files, addresses or weights is never allowed: a saved network
has its weights next to it. Nothing is built here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from functools import cache
from types import ModuleType
from typing import Any

import timm
from timm.models import PretrainedCfg

from ...plan.bounds import MOST_ANCHORS, MOST_BLOCKS, MOST_WIDTH, ValueLimits, count_values
from ...plan.stitch_plan import StitchPlan
from .pretrained_cfg import Cfg

Arguments = Mapping[str, Any]  # arguments of a network or an anchor, by name
Config = Mapping[str, Any]  # the contents of a `config.json`

SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
MOST_CLASSES, MOST_PIXELS = 1 << 20, 4096
_MOST_LEVELS, _MOST_VALUES = 8, 20_000
_CFG_FIELDS = frozenset(PretrainedCfg.__dataclass_fields__)

# Arguments that name files, addresses or weights, or that do something else than build a network.
_FORBIDDEN = re.compile(
    r"pretrained\w*|checkpoint\w*|cache_dir|url|file|filename|\w*_(path|file|filename|url|hub_id|dir)|hub\w*|hf_\w+|"
    r"state_dict|custom_load|source|scriptable|exportable|no_jit|pruned|kwargs_filter"
)
# Those that timm's families take without naming them, and those of `models.snnet`.
_COMMON = frozenset(
    {"num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate", "norm_layer", "act_layer",
     "bn_tf", "bn_momentum", "bn_eps", "device", "dtype"}
)  # fmt: skip
OF_NETWORK = frozenset(
    {"anchors", "direction", "nearest", "kernel_size", "stride", "rank", "plan", "stitched_norm", "stitch_id",
     "touch_unused"}
)  # fmt: skip
_COUNTS = re.compile(r"(depth|layer|block|num_stage|stage|repeat|num_reg|reg_tokens|num_pre)")


def check_arguments(args: object, architecture: str = "snnet") -> None:
    """Refuse saved `model_args` that do more than build a network, or build one without bounds.

    Args:
        args: the arguments, perhaps a stranger's.
        architecture: the name of the registered network.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(args, Mapping):
        raise ValueError(f"model_args in config.json is a {type(args).__name__}: expected an object of arguments.")
    if _check_network("model_args", args, architecture, 0) > MOST_ANCHORS:
        raise ValueError(f"model_args in config.json must list at most {MOST_ANCHORS} anchors, at all depths together.")
    if count_values(args, without="plan") > _MOST_VALUES:  # a plan has bounds of its own
        raise ValueError(f"model_args in config.json has more than {_MOST_VALUES:,} values: expected a few.")
    blocks = sum(_count_blocks(spec) for spec in _all_anchors(args))
    if blocks > MOST_BLOCKS:
        raise ValueError(f"model_args in config.json asks for {blocks:,} blocks: expected at most {MOST_BLOCKS}.")


def check_config(config: Config) -> None:
    """Refuse a saved `config.json` that is not one of a stitchable network, or asks for more than building one.

    Raises:
        ValueError: naming what is wrong.
    """
    name = config.get("architecture")
    if name is None and isinstance(config.get("model_type"), str):
        raise ValueError(
            f"config.json is that of one model of transformers ({config['model_type']!s:.40}), not of a stitched "
            "network: name several models to stitch them, or a network that save_pretrained wrote."
        )
    if not isinstance(name, str) or not timm.is_model(name) or not _is_stitchable(name):
        raise ValueError(
            f"config.json names the architecture {name!r:.80}, which is not a stitchable network here: expected "
            f"one of {', '.join(timm.list_models('snnet*'))}; other models load by timm.create_model."
        )
    check_arguments(config.get("model_args", {}), name)
    size = check_cfg(config.get("pretrained_cfg")).get("input_size", [3, 224, 224])
    numbers = [config.get("num_classes", 1), *(size if isinstance(size, list) else ["?"])]
    most = [MOST_CLASSES, *[MOST_PIXELS] * 3]
    if len(numbers) != 4 or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= m for n, m in zip(numbers, most, strict=True)
    ):
        raise ValueError(
            f"config.json has num_classes={config.get('num_classes')!r:.40} and input_size={size!r:.60}: expected a "
            f"number of classes (at most {MOST_CLASSES:,}) and [channels, height, width] (at most {MOST_PIXELS:,})."
        )


def check_anchor(spec: Arguments) -> None:
    """Refuse an anchor's own arguments that read files besides its weights, whoever gives them.

    Raises:
        ValueError: naming them.
    """
    forbidden = _forbidden(name for name in spec if name != "pretrained_cfg_overlay")
    if forbidden:
        raise ValueError(
            f"the anchor {spec.get('architecture')!r:.80} has arguments that read other files "
            f"({', '.join(forbidden)}): pretrained=True of the network loads the anchors' weights, from a "
            "file of yours by the anchor's pretrained_cfg_overlay=dict(file='PATH')."
        )


def without_sources(spec: Arguments) -> dict[str, Any]:
    """An anchor's arguments without the sources of its weights, for an anchor that is built without these."""
    overlay = spec.get("pretrained_cfg_overlay")
    if not isinstance(overlay, Mapping):
        return {k: v for k, v in spec.items() if k != "pretrained_cfg_overlay"}
    return {**spec, "pretrained_cfg_overlay": {k: v for k, v in overlay.items() if k not in SOURCES}}


def check_cfg(cfg: object) -> Cfg:
    """Refuse a saved `pretrained_cfg` that is not one of timm's, or names files of its own.

    Returns:
        The configuration.

    Raises:
        ValueError: naming what is wrong.
    """
    fields = check_cfg_fields(cfg)
    sources = [field for field in SOURCES if fields.get(field)]
    if sources:
        raise ValueError(
            f"the pretrained_cfg in config.json names files of its own ({', '.join(sources)}): remove them."
        )
    return fields


def check_cfg_fields(cfg: object) -> Cfg:
    """Refuse a saved `pretrained_cfg` with fields that timm's do not have.

    Returns:
        The configuration.

    Raises:
        ValueError: naming them.
    """
    if not isinstance(cfg, Mapping) or set(cfg) - _CFG_FIELDS:
        strange = sorted(map(str, set(cfg) - _CFG_FIELDS))[:4] if isinstance(cfg, Mapping) else type(cfg).__name__
        raise ValueError(
            f"the pretrained_cfg in config.json is not one of timm's ({strange!s:.160}): save the network again."
        )
    return cfg


def _is_stitchable(architecture: str) -> bool:
    return timm.model_entrypoint(architecture).__module__ == "timm_stitch.models.snnet"


def _forbidden(names: Iterable[object]) -> list[str]:
    return sorted(name for name in map(str, names) if _FORBIDDEN.fullmatch(name))


def _check_network(where: str, args: Arguments, architecture: str, level: int) -> int:
    """Check the arguments of a stitchable network and its anchors; returns the number of these at all depths."""
    if level > 2:
        raise ValueError(
            f"{where} in config.json has anchors in anchors in anchors: expected timm's models as anchors."
        )
    anchors = args.get("anchors") or ()
    if not isinstance(anchors, (list, tuple)) or len(anchors) > MOST_ANCHORS:
        raise ValueError(f"{where} in config.json must list at most {MOST_ANCHORS} anchors.")
    allowed, count = OF_NETWORK | _COMMON, len(anchors)
    for i, spec in enumerate(anchors):
        place = f"anchor {i}" if level == 0 else f"{where}.anchor {i}"
        count += _check_anchor(place, spec, level)
        allowed |= _accepted_names(_name_of(place, spec))
    if "anchors" not in args:
        allowed |= _accepted_names(architecture)
    _check_names(where, args, allowed)
    for key, value in args.items():
        if key == "plan":
            if value is not None:
                StitchPlan.from_dict(value)
        elif key != "anchors":
            _LIMITS.check(f"config.json: {where}.{key}", str(key), value)
    return count


def _name_of(where: str, spec: object) -> str:
    name = spec if isinstance(spec, str) else spec.get("architecture") if isinstance(spec, Mapping) else None
    if not isinstance(name, str) or not timm.is_model(name.split(".")[0]) or not re.fullmatch(r"[\w.]{1,128}", name):
        raise ValueError(
            f"{where} in config.json: timm has no model {name!r:.80}; expected a name of timm.list_models."
        )
    return name.split(".")[0]


def _check_anchor(where: str, spec: str | Arguments, level: int) -> int:
    """Check an anchor; returns the number of anchors in it."""
    name = _name_of(where, spec)
    own = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "architecture"}
    overlay = own.pop("pretrained_cfg_overlay", None)  # timm's own saving keeps it; sources in it are never followed
    if overlay is not None:
        _LIMITS.check(f"config.json: {where}.pretrained_cfg_overlay", "pretrained_cfg_overlay", overlay)
        if set(overlay) - _CFG_FIELDS:
            raise ValueError(
                f"{where} in config.json has a pretrained_cfg_overlay that is not one of timm's: remove it."
            )
    if _is_stitchable(name):
        return _check_network(where, own, name, level + 1)
    _check_names(where, own, _COMMON | _accepted_names(name))
    for key, value in own.items():
        _LIMITS.check(f"config.json: model_args.anchors.{key}", str(key), value)
    return 0


def _check_names(where: str, args: Arguments, allowed: frozenset[str]) -> None:
    forbidden = _forbidden(args)
    if forbidden:
        raise ValueError(
            f"{where} in config.json asks timm to read other files ({', '.join(forbidden)[:160]}): a saved network "
            "needs none, so this was refused. Remove it if you trust its author."
        )
    strange = sorted({str(name) for name in args} - allowed)
    if strange:
        raise ValueError(
            f"the network cannot be built from {where} in config.json: nothing in it takes "
            f"{', '.join(strange[:4])!r:.160}. Expected arguments of timm's own classes; save the network again."
        )


@cache
def _accepted_names(architecture: str) -> frozenset[str]:
    """The names of all arguments that functions and classes in the file of an architecture take."""
    file = sys.modules[timm.model_entrypoint(architecture).__module__]
    names: set[str] = set()
    for value in list(vars(file).values()):
        if inspect.isfunction(value) or inspect.isclass(value):
            for function in value.__mro__ if inspect.isclass(value) else (value,):
                with suppress(TypeError, ValueError):
                    names.update(inspect.signature(function).parameters)
        if is_dataclass(value):  # MaxViT takes the fields of `conv_cfg` as `conv_…`
            for field in fields(value):
                nested = _dataclass_of(field, file) if field.name.endswith("_cfg") else None
                names.update(f"{field.name[:-3]}{part.name}" for part in (fields(nested) if nested else ()))
    return frozenset(names - {"self", "cls", "args", "kwargs"})


def _dataclass_of(field: Field[Any], file: ModuleType) -> Any:
    """The dataclass in a file that a field holds, by its annotation; None for other fields."""
    held: Any = vars(file).get(field.type, None) if isinstance(field.type, str) else field.type
    return held if is_dataclass(held) else None


def _check_keys(where: str, values: Mapping[object, object]) -> None:
    """Refuse names of files inside a value; those of a `pretrained_cfg_overlay` are never followed."""
    forbidden = _forbidden(values)
    if forbidden and not where.endswith("pretrained_cfg_overlay"):
        raise ValueError(f"{where} asks timm to read other files ({forbidden[0]:.64}): remove it.")


def _limit(name: str) -> int:
    if name == "num_classes":
        return MOST_CLASSES
    if "size" in name:
        return MOST_PIXELS
    return MOST_BLOCKS if _COUNTS.search(name) else MOST_WIDTH


_LIMITS = ValueLimits(_limit, _check_keys, _MOST_LEVELS)


def _all_anchors(args: Arguments) -> Iterable[Arguments]:
    for spec in args.get("anchors") or ():
        if isinstance(spec, Mapping):
            yield {**{k: v for k, v in args.items() if k not in OF_NETWORK}, **spec}
            yield from _all_anchors(spec)


def _count_blocks(spec: Arguments) -> int:
    """Count the blocks that an anchor's arguments ask for."""

    def total(value: object) -> float:
        if isinstance(value, (list, tuple)):
            return sum(map(total, value))
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0

    depths = [v for k, v in spec.items() if re.match(r"depths?$|layers$|num_blocks|block_config", k)]
    return int(max([0, *map(total, depths)]))
