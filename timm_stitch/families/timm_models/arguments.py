"""What may stand in the `model_args` of a saved network: a list of what is allowed, at any depth of anchors in anchors.

An argument is allowed by its name if something in timm's own file of that architecture takes it to build with, and by
its value if that is a plain, bounded one. Whatever names files, addresses or weights is never allowed: a saved network
has its weights beside it. Nothing is made here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import timm
from timm.models import PretrainedCfg

from ...plan.bounds import MOST_ANCHORS, MOST_BLOCKS, MOST_WIDTH, ValueLimits, count_values
from ...plan.stitch_plan import StitchPlan

SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
MOST_CLASSES, MOST_PIXELS = 1 << 20, 4096
_MOST_LEVELS, _MOST_VALUES = 8, 20_000

# Arguments that name files, addresses or weights, or that say what to do with a network instead of how to build it.
_READING = re.compile(
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


def check_arguments(args: Any, architecture: str = "snnet") -> None:
    """Refuse saved `model_args` that do more than say how to build a network, or would build without end.

    Args:
        args: the arguments, a stranger's.
        architecture: the registered network that they are of.

    Raises:
        ValueError: naming the argument.
    """
    if not isinstance(args, Mapping):
        raise ValueError(f"model_args in config.json is a {type(args).__name__}: expected an object of arguments.")
    named = _check_network("model_args", args, architecture, 0)
    if named > MOST_ANCHORS:
        raise ValueError(f"model_args in config.json must list at most {MOST_ANCHORS} anchors, at all depths together.")
    if count_values(args, without="plan") > _MOST_VALUES:  # a plan has bounds of its own
        raise ValueError(f"model_args in config.json has more than {_MOST_VALUES:,} values: expected a few.")
    blocks = sum(_blocks(spec) for spec in _all_anchors(args))
    if blocks > MOST_BLOCKS:
        raise ValueError(f"model_args in config.json asks for {blocks:,} blocks: expected at most {MOST_BLOCKS}.")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a saved `config.json` that is not that of a network of ours, or asks for more than building one.

    Raises:
        ValueError: naming what is strange.
    """
    name, cfg = config.get("architecture"), config.get("pretrained_cfg")
    ours = isinstance(name, str) and timm.is_model(name)
    if not ours or not timm.model_entrypoint(str(name)).__module__.startswith("timm_stitch."):
        raise ValueError(
            f"config.json names the architecture {name!r:.80}, which is not a stitchable network here: expected "
            f"one of {', '.join(timm.list_models('snnet*'))}; other models load by timm.create_model."
        )
    check_arguments(config.get("model_args", {}), str(name))
    check_cfg(cfg)
    size = cfg.get("input_size", [3, 224, 224]) if isinstance(cfg, Mapping) else None
    numbers = [config.get("num_classes", 1), *(size if isinstance(size, list) else ["?"])]
    most = [MOST_CLASSES, *[MOST_PIXELS] * 3]
    if len(numbers) != 4 or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= m for n, m in zip(numbers, most, strict=True)
    ):
        raise ValueError(
            f"config.json has num_classes={config.get('num_classes')!r:.40} and input_size={size!r:.60}: expected a "
            f"number of classes (at most {MOST_CLASSES:,}) and [channels, height, width] (at most {MOST_PIXELS:,})."
        )


def check_anchor(spec: Mapping[str, Any]) -> None:
    """Refuse an anchor's own arguments that read files past what loads its weights; anybody's, not a stranger's alone.

    Raises:
        ValueError: naming them.
    """
    reading = {name for name in spec if name != "pretrained_cfg_overlay" and _READING.fullmatch(str(name))}
    if reading:
        raise ValueError(
            f"the anchor {spec.get('architecture')!r:.80} has arguments that read other files "
            f"({', '.join(sorted(reading))}): pretrained=True of the network loads the anchors' weights, from a "
            "file of yours by the anchor's pretrained_cfg_overlay=dict(file='PATH')."
        )


def without_sources(spec: Mapping[str, Any]) -> dict[str, Any]:
    """An anchor's arguments without where weights are: for anchors that are built without."""
    overlay = spec.get("pretrained_cfg_overlay")
    if not isinstance(overlay, Mapping):
        return {k: v for k, v in spec.items() if k != "pretrained_cfg_overlay"}
    return {**spec, "pretrained_cfg_overlay": {k: v for k, v in overlay.items() if k not in SOURCES}}


def check_cfg(cfg: Any) -> None:
    """Refuse a saved `pretrained_cfg` that is not one of timm's, or names files of its own.

    Raises:
        ValueError: naming what is strange.
    """
    check_cfg_fields(cfg)
    sources = [field for field in SOURCES if cfg.get(field)]
    if sources:
        raise ValueError(
            f"the pretrained_cfg in config.json names files of its own ({', '.join(sources)}): remove them."
        )


def check_cfg_fields(cfg: Any) -> None:
    """Refuse a saved `pretrained_cfg` with fields that timm's do not have.

    Raises:
        ValueError: naming them.
    """
    known = set(PretrainedCfg.__dataclass_fields__)
    if not isinstance(cfg, Mapping) or set(cfg) - known:
        strange = sorted(map(str, set(cfg) - known))[:4] if isinstance(cfg, Mapping) else type(cfg).__name__
        raise ValueError(
            f"the pretrained_cfg in config.json is not one of timm's ({strange!s:.160}): save the network again."
        )


def _check_network(where: str, args: Mapping[str, Any], architecture: str, level: int) -> int:
    """Check the arguments of a network of ours, and of all that is in it; returns the number of anchors."""
    if level > 2:
        raise ValueError(
            f"{where} in config.json has anchors in anchors in anchors: expected timm's models as anchors."
        )
    anchors = args.get("anchors") or ()
    if not isinstance(anchors, (list, tuple)) or len(anchors) > MOST_ANCHORS:
        raise ValueError(f"{where} in config.json must list at most {MOST_ANCHORS} anchors.")
    allowed, named = OF_NETWORK | _COMMON, len(anchors)
    for i, spec in enumerate(anchors):
        place = f"anchor {i}" if level == 0 else f"{where}.anchor {i}"
        named += _check_anchor(place, spec, level)
        allowed |= _taken(_name_of(place, spec))
    if "anchors" not in args:
        allowed |= _taken(architecture)
    _check_names(where, args, allowed)
    for key, value in args.items():
        if key == "plan":
            if value is not None:
                StitchPlan.from_dict(value)
        elif key != "anchors":
            _LIMITS.check(f"config.json: {where}.{key}", str(key), value)
    return named


def _name_of(where: str, spec: Any) -> str:
    name = spec if isinstance(spec, str) else spec.get("architecture") if isinstance(spec, Mapping) else None
    if not isinstance(name, str) or not timm.is_model(name.split(".")[0]) or not re.fullmatch(r"[\w.]{1,128}", name):
        raise ValueError(
            f"{where} in config.json: timm has no model {name!r:.80}; expected a name of timm.list_models."
        )
    return name.split(".")[0]


def _check_anchor(where: str, spec: Any, level: int) -> int:
    """Check an anchor; returns the number of anchors in it."""
    name = _name_of(where, spec)
    own = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "architecture"}
    overlay = own.pop("pretrained_cfg_overlay", None)  # timm's own saving keeps it; sources in it are never followed
    if overlay is not None:
        _LIMITS.check(f"config.json: {where}.pretrained_cfg_overlay", "pretrained_cfg_overlay", overlay)
        if set(overlay) - set(PretrainedCfg.__dataclass_fields__):
            raise ValueError(
                f"{where} in config.json has a pretrained_cfg_overlay that is not one of timm's: remove it."
            )
    if timm.model_entrypoint(name).__module__.startswith("timm_stitch."):
        return _check_network(where, own, name, level + 1)
    _check_names(where, own, _COMMON | _taken(name))
    for key, value in own.items():
        _LIMITS.check(f"config.json: model_args.anchors.{key}", str(key), value)
    return 0


def _check_names(where: str, args: Mapping[str, Any], allowed: frozenset[str]) -> None:
    names = [str(name) for name in args]
    reading = sorted(name for name in names if _READING.fullmatch(name))
    if reading:
        raise ValueError(
            f"{where} in config.json asks timm to read other files ({', '.join(reading)[:160]}): a saved network needs "
            "none, so this was refused. Remove it if you trust its author."
        )
    strange = sorted(set(names) - allowed)
    if strange:
        raise ValueError(
            f"the network cannot be built from {where} in config.json: nothing in it takes "
            f"{', '.join(strange[:4])!r:.160}. Expected arguments of timm's own classes; save the network again."
        )


@cache
def _taken(architecture: str) -> frozenset[str]:
    """The names that anything in the file of an architecture takes."""
    file = sys.modules[timm.model_entrypoint(architecture).__module__]
    found: set[str] = set()
    for value in list(vars(file).values()):
        if inspect.isfunction(value) or inspect.isclass(value):
            for made in value.__mro__ if inspect.isclass(value) else (value,):
                try:
                    found.update(inspect.signature(made).parameters)
                except (TypeError, ValueError):
                    continue
    return frozenset(found - {"self", "cls", "args", "kwargs"})


def _check_keys(where: str, values: Mapping[Any, Any]) -> None:
    """Refuse names of files inside a value; those of a `pretrained_cfg_overlay` are never followed."""
    reading = [key for key in values if _READING.fullmatch(str(key))]
    if reading and not where.endswith("pretrained_cfg_overlay"):
        raise ValueError(f"{where} asks timm to read other files ({reading[0]!s:.64}): remove it.")


def _most(name: str) -> int:
    if name == "num_classes":
        return MOST_CLASSES
    if "size" in name:
        return MOST_PIXELS
    return MOST_BLOCKS if _COUNTS.search(name) else MOST_WIDTH


_LIMITS = ValueLimits(_most, _check_keys, _MOST_LEVELS)


def _all_anchors(args: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    for spec in args.get("anchors") or ():
        if isinstance(spec, Mapping):
            yield {**{k: v for k, v in args.items() if k not in OF_NETWORK}, **spec}
            yield from _all_anchors(spec)


def _blocks(spec: Mapping[str, Any]) -> int:
    """The blocks that an anchor's arguments name, of which there are as many as the numbers say."""

    def total(value: Any) -> float:
        if isinstance(value, (list, tuple)):
            return sum(map(total, value))
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0

    return int(
        max([0, *(total(v) for k, v in spec.items() if re.match(r"depths?$|layers$|num_blocks|block_config", k))])
    )
