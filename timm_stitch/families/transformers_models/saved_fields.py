"""The fields that a saved configuration, which may be a stranger's, can have.

An anchor has the arguments of transformers' configuration of its type, and so have the configurations inside it, at
every level. Values are plain: numbers within bounds, and words, which can be no path and no address. Fields that name
files, repositories, code or weights, or that change how others are built or quantised, are refused. Nothing is built.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from ...plan.bounds import MOST_BLOCKS, ValueLimits, count_values
from .task_names import MODEL_TYPE
from .wrapped_timm import check_wrapped

MOST_LABELS, MOST_LETTERS, MOST_VALUES, MOST_LEVELS = 1 << 20, 1 << 22, 200_000, 6
_MOST_PIXELS, _MOST_POSITIONS = 4096, 1 << 20
SHOWN = ("_name_or_path", "_model_name_or_path")  # where a model came from, which is not read

# Fields that name files, repositories, code or weights, or that change how others are built or quantised.
_FORBIDDEN = re.compile(
    r"auto_map|trust_remote_code|custom_pipelines|(quantization|compression|kernel|distributed|compile|fusion)_config|"
    r"use_kernels|backbone|use_timm_backbone|use_pretrained_backbone|backbone_kwargs|adapter_kwargs|"
    r"\w*_(path|file|files|filename|url|repo|repo_id|dir)|extra_\w*files|transformers_weights|\w*_implementation\w*"
)
_READ = re.compile(r"""\bconfig\.(\w+)|getattr\((?:\w+\.)*config,\s*["'](\w+)["']""")
_OF_ALL = ("model_type", "id2label", "label2id", "num_labels")
_LABELS, _DTYPE_FIELDS = ("id2label", "label2id"), ("dtype", "torch_dtype")
_DTYPES = (None, "float16", "bfloat16", "float32", "float64")
_TEXTS = ("stop_strings", "_name_or_path")  # of settings for generating
_WORD, _NAME = re.compile(r"[\w.+\-]{0,64}"), re.compile(r"[\w.\-]{1,64}")
_LARGE = re.compile(
    r"(vocab|token|position|theta|window|length|chunk|context|base|scal|max_|limit|value|pad_val|clip|eps|size)"
)
_PIXELS = re.compile(r"(image|img|patch|grid|crop)_?\w*size|\w*resolution|\w*(kernel|stride|padding)s?(_size)?s?")


def check_own(own: Mapping[str, object]) -> None:
    """Refuse a network's own fields, those other than anchors, openings and plan, that hold more than what it is.

    Raises:
        ValueError: naming the field.
    """
    where = "config.json"
    _check_names(where, own)
    check_value_count(list(own.values()))
    declared = _declared_names(PreTrainedConfig)
    for name, value in own.items():
        if name not in declared and hasattr(PreTrainedConfig, str(name)) and name not in _OF_ALL:
            raise ValueError(f"{where} has {name!s:.64}, which is no field of a configuration: save the network again.")
        _check_value(f"{where}: {name!s:.64}", PreTrainedConfig, str(name), value, nested=name in declared)
    check_class_count(own)


def check_anchor(where: str, anchor: object) -> None:
    """Refuse an anchor's configuration that holds more than how to build it.

    Raises:
        ValueError: naming the field.
    """
    values = anchor if isinstance(anchor, Mapping) else {}
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind == MODEL_TYPE or kind not in CONFIG_MAPPING:
        raise ValueError(f"{where} has model_type={kind!r:.80}, which transformers does not have here.")
    _check_config(where, CONFIG_MAPPING[kind], values)


def check_generation(values: Mapping[str, object]) -> None:
    """Refuse settings for generating that hold more than plain values.

    Raises:
        ValueError: naming the setting.
    """
    where = GENERATION_CONFIG_NAME
    _check_names(where, values)
    check_value_count(values)
    known = GenerationConfig().to_dict() | GenerationConfig._get_default_generation_params()
    for name, value in values.items():
        if name not in known and hasattr(GenerationConfig, str(name)):
            raise ValueError(f"{where} has {name!s:.64}, which is no setting: remove it.")
        place = f"{where}: {name!s:.64}"
        _LIMITS.check(place, str(name), value)
        if name not in _TEXTS:
            _check_words(place, value)


def keep_known(cls: type[PreTrainedConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the fields of a model's configuration that go into its network's: those of its type, at every level.

    Fields that read other files are kept too, so that they are refused.
    """
    kept = {}
    for name, value in values.items():
        inner = _class_inside(cls, name, value)
        if name in SHOWN or not (has_field(cls, name) or _is_forbidden(name, value)):
            continue
        kept[name] = value if inner is None else keep_known(inner, value)
    return kept


def has_field(cls: type[PreTrainedConfig], name: str) -> bool:
    """Whether configurations of a type have a field: it declares it, or its model's code reads it."""
    return name in _accepted_names(cls) or name in _OF_ALL


def check_value_count(values: object) -> None:
    """Refuse more values than any configuration has.

    Raises:
        ValueError: naming the limit.
    """
    if count_values(values) > MOST_VALUES:
        raise ValueError(f"config.json has more than {MOST_VALUES:,} values: expected a few.")


def check_class_count(values: object) -> None:
    """Refuse more classes in all configurations together than transformers names in seconds.

    Raises:
        ValueError: naming the limit.
    """
    count = sum(_class_counts(values))
    if count > MOST_VALUES:
        raise ValueError(f"config.json asks for names of {count:,} classes: expected at most {MOST_VALUES:,} in all.")


def _class_counts(value: object) -> Iterator[int]:
    """Iterate over the numbers of classes of all configurations inside a value."""
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from _class_counts(item)
    if isinstance(value, Mapping) and isinstance(count := value.get("num_labels"), int):
        yield max(count, 0)


def _check_config(where: str, cls: type[PreTrainedConfig], values: Mapping[Any, Any], level: int = 0) -> None:
    """Refuse a configuration of a type, or one inside it, with fields that the type does not have."""
    if level > MOST_LEVELS:
        raise ValueError(f"{where} lies more than {MOST_LEVELS} levels deep: save the network again.")
    _check_names(where, values)
    known = _accepted_names(cls)
    strange = sorted(str(name) for name in values if name not in known and name not in (*_OF_ALL, *SHOWN))
    if strange:
        raise ValueError(
            f"{where} has {', '.join(strange[:4])!s:.160}, which transformers' configuration of {cls.model_type!r} "
            "does not take: remove it from the model's config."
        )
    check_wrapped(where, cls.model_type, values)
    _check_positions(where, values)
    declared = _declared_names(cls)
    for name, value in values.items():
        _check_value(f"{where}: {name!s:.64}", cls, name, value, level, nested=name in declared)


def _check_value(
    where: str, cls: type[PreTrainedConfig], name: str, value: object, level: int = 0, nested: bool = True
) -> None:
    """Refuse a value of a field; only `nested` fields, those that the type declares, hold mappings."""
    if name in SHOWN:
        return
    if name in _DTYPE_FIELDS and (not isinstance(value, (str, type(None))) or value not in _DTYPES):
        raise ValueError(f"{where.split(':')[0]} has {name}={value!r:.40}: expected one of {', '.join(_DTYPES[1:])}.")
    if name in _LABELS:
        _check_labels(where, name, value)
        return
    inner = _class_inside(cls, name, value)
    if inner is not None and isinstance(value, Mapping):
        _check_config(where, inner, value, level + 1)
    elif name == "per_layer_config" and isinstance(value, Mapping):
        for layer, own in value.items():
            _check_config(f"{where}.{layer!s:.16}", cls, own if isinstance(own, Mapping) else {"": own}, level + 1)
    elif isinstance(value, Mapping) and not nested:
        raise ValueError(f"{where} is an object: expected a plain value in a field that its type does not declare.")
    else:
        _LIMITS.check(where, name, value)
        _check_words(where, value)


def _class_inside(cls: type[PreTrainedConfig], name: str, value: object) -> type[PreTrainedConfig] | None:
    """Find the type of a configuration inside another; None for other values."""
    if not isinstance(value, Mapping):
        return None
    inner: Any = cls.sub_configs.get(name)
    if isinstance(inner, type) and issubclass(inner, PreTrainedConfig):
        return inner
    kind = value.get("model_type")
    if inner is None and kind is None:
        return None
    default = getattr(getattr(cls, "sub_configs_defaults", {}).get(name), "model_type", None)
    kind = default if kind is None else kind
    if not isinstance(kind, str) or kind == MODEL_TYPE or kind not in CONFIG_MAPPING:
        raise ValueError(f"{name!s:.64} has model_type={kind!r:.80}, which transformers does not have here.")
    return CONFIG_MAPPING[kind]


def _check_labels(where: str, name: str, value: object) -> None:
    """Refuse names of classes that are not one short text for each number."""
    if value is None:
        return
    pairs = value.items() if isinstance(value, Mapping) else [(None, None)]
    numbered = ((k, v) if name == "id2label" else (v, k) for k, v in pairs)
    if len(pairs) > MOST_LABELS or not all(
        re.fullmatch(r"\d{1,9}", str(number)) and isinstance(label, (str, int)) and len(str(label)) <= 256
        for number, label in numbered
    ):
        raise ValueError(f"{where} is not one short name for each of at most {MOST_LABELS:,} classes.")


def _check_words(where: str, value: object) -> None:
    """Refuse texts that could be a path or an address, and keys that are no names."""
    if isinstance(value, str) and (_WORD.fullmatch(value) is None or ".." in value):
        raise ValueError(f"{where} is {value!r:.80}: expected a word, as transformers' own configurations have it.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if _NAME.fullmatch(str(key)) is None:
                raise ValueError(f"{where} has a field {key!r:.80}: expected names.")
            _check_words(f"{where}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_words(where, item)


def _check_positions(where: str, values: Mapping[Any, Any]) -> None:
    """Refuse images of more patches than any model takes, over whose pairs some types loop."""
    sizes = [values.get(name) for name in ("image_size", "patch_size")]
    image, patch = ([v] * 2 if isinstance(v, int) else v for v in sizes)
    if not isinstance(image, (list, tuple)) or not all(isinstance(v, int) for v in image):
        return
    sides = patch if isinstance(patch, (list, tuple)) and all(isinstance(v, int) and v > 0 for v in patch) else [1]
    if len(image) == 2 and (image[0] // min(sides)) * (image[1] // min(sides)) > _MOST_POSITIONS and patch is not None:
        raise ValueError(f"{where} has images of {image} in patches of {patch}: expected {_MOST_POSITIONS:,} at most.")


def _is_forbidden(name: str, value: object) -> bool:
    return bool(value) and _FORBIDDEN.fullmatch(name) is not None


def _check_names(where: str, values: Mapping[Any, Any]) -> None:
    names = sorted(str(name) for name, value in values.items() if _is_forbidden(str(name), value))
    if names:
        raise ValueError(
            f"{where} has fields that read other files, or run other code ({', '.join(names)[:160]}): a stitched "
            "network needs none, so this was refused."
        )


def _declared_names(cls: type[PreTrainedConfig]) -> frozenset[str]:
    """The names of the fields that a type declares."""
    return _names(cls.__module__, cls.__qualname__)[0]


def _accepted_names(cls: type[PreTrainedConfig]) -> frozenset[str]:
    """The names of the fields of configurations of a type: those that it declares, or its code reads."""
    return _names(cls.__module__, cls.__qualname__)[1]


@cache
def _names(module: str, name: str) -> tuple[frozenset[str], frozenset[str]]:
    cls: type[PreTrainedConfig] = getattr(sys.modules[module], name)
    declared = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    for base in cls.__mro__:
        declared.update(getattr(base, "__annotations__", ()))
    with suppress(Exception):  # some have fields without a default
        declared.update(cls().to_dict())
    read = {a or b for a, b in _READ.findall(_modeling_source(module))}
    return frozenset(declared), frozenset(declared | {own for own in read if own[0] != "_" and not hasattr(cls, own)})


def _modeling_source(module: str) -> str:
    """Read transformers' own code of a type, by the module of its configuration."""
    with suppress(ImportError, OSError, ValueError):
        spec = find_spec(module.replace(".configuration_", ".modeling_"))
        if spec is not None and spec.origin:
            return Path(spec.origin).read_text(encoding="utf-8")
    return ""


def _limit(name: str) -> int:
    if re.search(r"(num|n)_?(hidden_)?layers?$|(^|_)depths?$|num_\w*(block|stage|group|layer)", name):
        return MOST_BLOCKS
    if name == "num_labels":
        return MOST_LABELS
    if _PIXELS.fullmatch(name):
        return _MOST_PIXELS
    return 1 << 40 if _LARGE.search(name) and not name.endswith(("hidden_size", "intermediate_size")) else 1 << 20


_LIMITS = ValueLimits(_limit, _check_names, MOST_LEVELS, infinite=True)
