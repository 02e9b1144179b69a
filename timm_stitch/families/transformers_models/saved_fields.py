"""The fields that a saved configuration, which may be a stranger's, can have.

An anchor has the arguments of transformers' configuration of its type, with plain values within bounds. Fields that
name files, repositories, code or weights, or that change how others are built or quantised, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from ...plan.bounds import MOST_BLOCKS, ValueLimits, count_values
from .task_names import MODEL_TYPE

MOST_LABELS, MOST_LETTERS, MOST_VALUES, MOST_LEVELS = 1 << 20, 1 << 22, 200_000, 6

# Fields that name files, repositories, code or weights, or that change how others are built or quantised.
_FORBIDDEN = re.compile(
    r"auto_map|trust_remote_code|custom_pipelines|(quantization|compression|kernel|distributed)_config|use_kernels|backbone|"
    r"use_timm_backbone|use_pretrained_backbone|backbone_kwargs|\w*_(path|file|filename|url|repo|repo_id|dir)|"
    r"extra_\w*files|transformers_weights|\w*_implementation\w*"
)
_READ = re.compile(r"""\bconfig\.(\w+)|getattr\((?:\w+\.)*config,\s*["'](\w+)["']""")
_OF_ALL = ("model_type", "id2label", "label2id", "num_labels")
_DTYPES = (None, "float16", "bfloat16", "float32", "float64")
_LARGE = re.compile(r"(vocab|token|position|theta|window|length|chunk|context|base|scal|max_|limit|value|eps|size)")


def check_own(own: Mapping[str, object]) -> None:
    """Refuse a network's own fields, those other than anchors, openings and plan, that hold more than what it is.

    Raises:
        ValueError: naming the field.
    """
    where = "config.json"
    _check_forbidden(where, own)
    for name in ("dtype", "torch_dtype"):
        if own.get(name) not in _DTYPES:
            raise ValueError(f"{where} has {name}={own[name]!r:.40}: expected one of {', '.join(_DTYPES[1:])}.")
    check_value_count(list(own.values()))
    for name, value in own.items():
        _LIMITS.check(f"{where}: {name!s:.64}", str(name), value)


def check_anchor(where: str, anchor: object) -> None:
    """Refuse an anchor's configuration that holds more than how to build it.

    Raises:
        ValueError: naming the field.
    """
    values = anchor if isinstance(anchor, Mapping) else {}
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind == MODEL_TYPE or kind not in CONFIG_MAPPING:
        raise ValueError(f"{where} has model_type={kind!r:.80}, which transformers does not have here.")
    _check_forbidden(where, values)
    strange = sorted(str(name) for name in values if not is_kept(kind, str(name), None))
    if strange:
        raise ValueError(
            f"{where} has {', '.join(strange[:4])!s:.160}, which transformers' configuration of {kind!r} does not "
            "take: remove it from the model's config."
        )
    for name, value in values.items():
        _LIMITS.check(f"{where}: {name!s:.64}", str(name), value)


def is_kept(kind: str, name: str, value: object) -> bool:
    """Whether a field of a model's configuration goes into its network's: the fields of its type do.

    Fields that read other files do too, so that they are refused.
    """
    return name in _accepted_names(kind) or name in _OF_ALL or _is_forbidden(name, value)


def check_value_count(values: object) -> None:
    """Refuse more values than any configuration has.

    Raises:
        ValueError: naming the limit.
    """
    if count_values(values) > MOST_VALUES:
        raise ValueError(f"config.json has more than {MOST_VALUES:,} values: expected a few.")


def _is_forbidden(name: str, value: object) -> bool:
    return bool(value) and _FORBIDDEN.fullmatch(name) is not None


def _check_forbidden(where: str, values: Mapping[Any, Any]) -> None:
    names = sorted(str(name) for name, value in values.items() if _is_forbidden(str(name), value))
    if names:
        raise ValueError(
            f"{where} has fields that read other files, or run other code ({', '.join(names)[:160]}): a stitched "
            "network needs none, so this was refused."
        )


@cache
def _accepted_names(kind: str) -> frozenset[str]:
    """The names of the fields of configurations of a type."""
    cls = CONFIG_MAPPING[kind]
    names = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    for base in cls.__mro__:
        names.update(getattr(base, "__annotations__", ()))
    with suppress(Exception):  # some have fields without a default
        names.update(cls().to_dict())
    return frozenset(names | _read_names(cls))


def _read_names(cls: type) -> set[str]:
    """The names that transformers' own code of a type reads from its configuration, declared there or not."""
    with suppress(ImportError, OSError, ValueError):
        spec = find_spec(cls.__module__.replace(".configuration_", ".modeling_"))
        if spec is not None and spec.origin:
            source = Path(spec.origin).read_text(encoding="utf-8")
            names = {a or b for a, b in _READ.findall(source)}
            return {name for name in names if name[0] != "_" and not hasattr(cls, name)}
    return set()


def _limit(name: str) -> int:
    if re.search(r"(num|n)_?(hidden_)?layers?$|depth|num_\w*(block|stage|group|layer)", name):
        return MOST_BLOCKS
    if name in ("label2id", "id2label", "num_labels"):
        return MOST_LABELS
    return 1 << 40 if _LARGE.search(name) and not name.endswith(("hidden_size", "intermediate_size")) else 1 << 20


_LIMITS = ValueLimits(_limit, _check_forbidden, MOST_LEVELS, infinite=True)
