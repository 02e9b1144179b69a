"""What may stand in the fields of a saved configuration, which may be a stranger's.

An anchor has the arguments that transformers' configuration of its type has, with plain values within bounds. Whatever
names files, repositories, code or weights, or has others built or quantised in their way, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING

from ...plan.bounds import MOST_BLOCKS, ValueLimits, count_values
from .task_names import MODEL_TYPE

MOST_LABELS, MOST_LETTERS, MOST_VALUES, MOST_LEVELS = 1 << 20, 1 << 22, 200_000, 6

# Fields that name files, repositories, code or weights, or that have others built or quantised in their way.
_READING = re.compile(
    r"auto_map|trust_remote_code|custom_pipelines|(quantization|compression|kernel|distributed)_config|use_kernels|backbone|"
    r"use_timm_backbone|use_pretrained_backbone|backbone_kwargs|\w*_(path|file|filename|url|repo|repo_id|dir)|"
    r"extra_\w*files|transformers_weights|\w*_implementation\w*"
)
_OF_ALL = ("model_type", "id2label", "label2id", "num_labels")
_DTYPES = (None, "float16", "bfloat16", "float32", "float64")
_LARGE = re.compile(r"(vocab|token|position|theta|window|length|chunk|context|base|scal|max_|limit|value|eps|size)")


def check_own(own: Mapping[str, Any]) -> None:
    """Refuse fields of a network's own that say more than what it is; those of anchors, openings and plan are others.

    Raises:
        ValueError: naming which.
    """
    where = "config.json"
    _check_reading(where, own)
    for name in ("dtype", "torch_dtype"):
        if own.get(name) not in _DTYPES:
            raise ValueError(f"{where} has {name}={own[name]!r:.40}: expected one of {', '.join(_DTYPES[1:])}.")
    check_count(list(own.values()))
    for name, value in own.items():
        _LIMITS.check(f"{where}: {name!s:.64}", str(name), value)


def check_anchor(where: str, anchor: Any) -> None:
    """Refuse an anchor's configuration that says more than how to build it.

    Raises:
        ValueError: naming what.
    """
    kind = anchor.get("model_type") if isinstance(anchor, Mapping) else None
    if not isinstance(kind, str) or kind == MODEL_TYPE or kind not in CONFIG_MAPPING:
        raise ValueError(f"{where} has model_type={kind!r:.80}, which transformers does not have here.")
    _check_reading(where, anchor)
    strange = sorted(str(name) for name in anchor if not is_kept(kind, str(name), None))
    if strange:
        raise ValueError(
            f"{where} has {', '.join(strange[:4])!s:.160}, which transformers' configuration of {kind!r} does not "
            "take: remove it from the model's config."
        )
    for name, value in anchor.items():
        _LIMITS.check(f"{where}: {name!s:.64}", str(name), value)


def is_kept(kind: str, name: str, value: Any) -> bool:
    """Whether a field of a model's configuration goes into that of its network: those that its type has.

    What reads other files is kept too, to be refused.
    """
    return name in _taken(kind) or name in _OF_ALL or _reads(name, value)


def check_count(values: Any) -> None:
    """Refuse more values than a configuration has.

    Raises:
        ValueError: saying how many.
    """
    if count_values(values) > MOST_VALUES:
        raise ValueError(f"config.json has more than {MOST_VALUES:,} values: expected a few.")


def _reads(name: str, value: Any) -> bool:
    return bool(value) and _READING.fullmatch(name) is not None


def _check_reading(where: str, given: Mapping[Any, Any]) -> None:
    reading = sorted(str(name) for name, value in given.items() if _reads(str(name), value))
    if reading:
        raise ValueError(
            f"{where} has fields that read other files, or run other code ({', '.join(reading)[:160]}): a stitched "
            "network needs none, so this was refused."
        )


@cache
def _taken(kind: str) -> frozenset[str]:
    """The fields that a configuration of a type has."""
    cls: Any = CONFIG_MAPPING[kind]
    found = {f.name for f in fields(cls)} if is_dataclass(cls) else set()
    for part in cls.__mro__:
        found.update(getattr(part, "__annotations__", ()))
    with suppress(Exception):  # some have fields without a default
        found.update(cls().to_dict())
    return frozenset(found)


def _most(name: str) -> int:
    if re.search(r"(num|n)_?(hidden_)?layers?$|depth|num_\w*(block|stage|group|layer)", name):
        return MOST_BLOCKS
    if name in ("label2id", "id2label", "num_labels"):
        return MOST_LABELS
    return 1 << 40 if _LARGE.search(name) and not name.endswith(("hidden_size", "intermediate_size")) else 1 << 20


_LIMITS = ValueLimits(_most, _check_reading, MOST_LEVELS, infinite=True)
