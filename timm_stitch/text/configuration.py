"""The configuration of a stitched network of transformers' models, and what may stand in a saved one.

A saved configuration may be a stranger's. Anchors are of classes that transformers itself has for their model type;
their arguments are those that its configuration of that type has, with plain values within bounds. Whatever names
files, repositories, code or weights is refused.

Imports transformers, torch and `plan`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..anchors.transformers_view import Opening
from ..network.task_names import MODEL_TYPE
from ..plan.bounds import MOST_ANCHORS, MOST_BLOCKS, MOST_NAME, MOST_WIDTH
from ..plan.stitch_plan import StitchPlan

MOST_LABELS, MOST_LETTERS, MOST_VALUES, MOST_LEVELS = 1 << 20, 1 << 22, 200_000, 6

# Fields that name files, repositories, code or weights, or that have others built or quantised in their way.
_READING = re.compile(
    r"auto_map|trust_remote_code|custom_pipelines|quantization_config|kernel_config|use_kernels|backbone|"
    r"use_timm_backbone|use_pretrained_backbone|backbone_kwargs|\w*_(path|file|filename|url|repo|repo_id|dir)|extra_\w*files"
)
_NOT_KEPT = ("_name_or_path", "_model_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
_OF_ALL = ("model_type", "id2label", "label2id", "num_labels", "attn_implementation")
_LARGE = re.compile(r"(vocab|token|position|theta|window|length|chunk|context|base|scal|max_|limit|value|eps|size)")


class SNNetConfig(PreTrainedConfig):
    """What a stitched network of transformers' models is made of.

    Args:
        anchors: the configuration of each anchor, a dict with its `model_type`.
        classes: the class of each anchor.
        openings: how each is opened (`Opening.to_dict()`).
        plan: the stitches (`StitchPlan.to_dict()`).
        stitch_id: the stitch of calls that name none.
        only: the one stitch that an extracted network has; None for a whole one.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 as transformers has it

    anchors: list[Any] | None = None
    classes: list[Any] | None = None
    openings: list[Any] | None = None
    plan: dict[str, Any] | None = None
    stitch_id: int | None = None
    only: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.anchors:
            for name, value in _of_largest(self.anchors, self.openings).items():
                kwargs.setdefault(name, value)
        super().__post_init__(**kwargs)


def _of_largest(anchors: list[Any], openings: list[Any] | None) -> dict[str, Any]:
    """What transformers asks of a configuration, from those of the anchors: sizes of the last, bounds of all."""
    last = anchors[-1] if isinstance(anchors[-1], Mapping) else {}
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "pad_token_id", "bos_token_id",
             "eos_token_id", "image_size", "num_channels", "patch_size")  # fmt: skip
    found = {name: last[name] for name in names if last.get(name) is not None}
    forms = openings[-1].get("forms") if openings and isinstance(openings[-1], Mapping) else None
    depth = {"num_hidden_layers": len(forms)} if isinstance(forms, (list, tuple)) and forms else {}
    return {**depth, **found, "tie_word_embeddings": False}


def anchor_dict(config: Any) -> dict[str, Any]:
    """The configuration of an anchor as it is kept: without where it came from, and what its type does not have.

    Raises:
        ValueError: if it could not be read again.
    """
    values = config.to_dict()
    if (values.get("quantization_config") or {}).get("quant_method") == "gguf":  # transformers reads that into floats
        del values["quantization_config"]
    known = _taken(config.model_type) | set(_OF_ALL) | {k for k, v in values.items() if _READING.fullmatch(k) and v}
    kept = {k: v for k, v in values.items() if k not in _NOT_KEPT and k in known}
    check_anchor("the anchor", kept)
    return kept


def check_config(config: SNNetConfig) -> tuple[list[Any], list[Opening], StitchPlan]:
    """The anchors' configurations, their openings and the plan, if a configuration asks for no more than a network.

    Raises:
        ValueError: naming what is strange.
    """
    anchors, classes, openings = config.anchors, config.classes, config.openings
    if not isinstance(anchors, list) or not isinstance(classes, list) or not isinstance(openings, list):
        raise ValueError("config.json lacks its anchors, classes or openings: expected what save_pretrained writes.")
    if not len(anchors) == len(classes) == len(openings) or not 1 <= len(anchors) <= MOST_ANCHORS:
        raise ValueError(
            f"config.json has {len(anchors)} anchors, {len(classes)} classes and {len(openings)} openings: expected "
            f"as many of each, {MOST_ANCHORS} at most."
        )
    if _count([anchors, openings]) > MOST_VALUES:
        raise ValueError(f"config.json has more than {MOST_VALUES:,} values: expected a few.")
    made = []
    for i, anchor in enumerate(anchors):
        check_anchor(f"anchor {i} in config.json", anchor)
        anchor = _decoded(anchor)
        made.append(
            CONFIG_MAPPING[anchor["model_type"]].from_dict({k: v for k, v in anchor.items() if k != "model_type"})
        )
    opened = [_opening(f"opening {i} in config.json", data) for i, data in enumerate(openings)]
    return made, opened, StitchPlan.from_dict(config.plan or {})


def _decoded(value: Any) -> Any:
    """What JSON has no numbers for, as transformers writes it, as numbers."""
    if isinstance(value, Mapping):
        only = value.get("__float__") if len(value) == 1 else None
        return float(only) if only in ("Infinity", "-Infinity") else {k: _decoded(v) for k, v in value.items()}
    return [_decoded(v) for v in value] if isinstance(value, (list, tuple)) else value


def _opening(where: str, data: Any) -> Opening:
    try:
        opening = Opening.from_dict(data)
        counts = (opening.forms, opening.widths, opening.reductions, opening.positions)
        texts = ((opening.row,), opening.layouts, opening.before, opening.after, opening.tables)
        plain = all(isinstance(v, int) and 0 <= v <= MOST_LETTERS for values in counts for v in values) and all(
            isinstance(v, str) and len(v) <= 2 * MOST_NAME for values in texts for v in values
        )
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{where} garbles a field ({error!s:.80}): save the network again.") from None
    if not plain or not 1 <= len(opening.forms) <= MOST_BLOCKS or max(opening.forms) > MOST_LEVELS:
        raise ValueError(f"{where} has strange values: save the network again.")
    if not len(opening.forms) + 1 == len(opening.widths) == len(opening.reductions) == len(opening.layouts):
        raise ValueError(f"{where} has not one value for each boundary: save the network again.")
    return opening


def check_anchor(where: str, anchor: Any) -> None:
    """Refuse an anchor's configuration that says more than how to build it.

    Raises:
        ValueError: naming what.
    """
    kind = anchor.get("model_type") if isinstance(anchor, Mapping) else None
    if not isinstance(kind, str) or kind == SNNetConfig.model_type or kind not in CONFIG_MAPPING:
        raise ValueError(f"{where} has model_type={kind!r:.80}, which transformers does not have here.")
    names = {str(name) for name in anchor}
    reading = sorted(name for name in names if _READING.fullmatch(name) and anchor[name] not in (None, False, {}, []))
    if reading:
        raise ValueError(
            f"{where} has fields that read other files, or run other code ({', '.join(reading)[:160]}): a stitched "
            "network needs none, so this was refused."
        )
    strange = sorted(names - _taken(kind) - set(_OF_ALL))
    if strange:
        raise ValueError(
            f"{where} has {', '.join(strange[:4])!s:.160}, which transformers' configuration of {kind!r} does not "
            "take: remove it from the model's config."
        )
    for name, value in anchor.items():
        _check_value(f"{where}: {name:.64}", str(name), value)


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


def _check_value(where: str, name: str, value: Any, level: int = 0) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, (int, float)):
        most = _most(name)
        if math.isnan(value) or (abs(value) > most and not math.isinf(value)):
            raise ValueError(f"{where} is {value!r:.40}: expected at most {most:,}.")
    elif isinstance(value, str):
        if len(value) > 256 or ("attn_implementation" in name and "/" in value):
            raise ValueError(f"{where} is a text of {len(value):,} letters, or names code elsewhere: {value!r:.60}.")
    elif level > MOST_LEVELS or not isinstance(value, (Mapping, list, tuple)):
        raise ValueError(f"{where} is a {type(value).__name__} too deep or strange for an argument.")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if _READING.fullmatch(str(key)) and inner not in (None, False, {}, []):
                raise ValueError(f"{where} has a field that reads other files ({key!s:.64}): remove it.")
            _check_value(f"{where}.{key!s:.64}", str(key) if not str(key).isdigit() else name, inner, level + 1)
    else:
        for inner in value:
            _check_value(where, name, inner, level + 1)


def _most(name: str) -> int:
    if re.search(r"(num|n)_?(hidden_)?layers?$|depth|num_\w*(block|stage|group|layer)", name):
        return MOST_BLOCKS
    if name in ("label2id", "id2label", "num_labels"):
        return MOST_LABELS
    return 1 << 40 if _LARGE.search(name) and not name.endswith(("hidden_size", "intermediate_size")) else 1 << 20


def _count(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, (list, tuple)) else 1


__all__ = ["MOST_WIDTH", "SNNetConfig", "anchor_dict", "check_anchor", "check_config"]
