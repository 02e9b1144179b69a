"""Models of timm inside a configuration of transformers (`timm_wrapper`), which hands its arguments to timm.

Nothing of timm's family is used here: what a wrapped model may have is a few sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WRAPPERS = ("timm_wrapper", "timm_backbone")
# The sizes of a model, as timm's own constructors name them, which hold numbers.
_SIZES = re.compile(
    r"(img|patch|window|stem|kernel)_size|embed_dims?|dims?|depths?|num_heads|mlp_ratios?|channels|layers|in_chans|"
    r"num_classes|reg_tokens|class_token|qkv_bias|(\w+_)?drop(_path)?_rate|init_values|width|head_dim|groups|inference_mode"
)


def check_wrapped(where: str, kind: str, values: Mapping[Any, Any]) -> None:
    """Refuse a wrapped model that is not one that timm makes by its name and a few sizes.

    Args:
        where: the place, which errors name.
        kind: the type of the configuration; only wrappers are looked at.
        values: the configuration.

    Raises:
        ValueError: naming what it asks for.
    """
    if kind not in WRAPPERS:
        return
    name, arguments = values.get("architecture"), values.get("model_args") or {}
    if kind != "timm_wrapper" or not isinstance(name, str) or not _is_model(name):
        raise ValueError(f"{where} wraps {name!r:.80}, which is no model that timm makes by name here.")
    strange = sorted(str(k) for k in arguments if _SIZES.fullmatch(str(k)) is None) if _is_mapping(arguments) else ["?"]
    if strange or not all(map(_is_number, arguments.values())):
        raise ValueError(
            f"{where} has model_args of timm's ({', '.join(strange)[:160] or 'values that are no numbers'}) that are "
            "more than its sizes, so this was refused."
        )


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_model(name: str) -> bool:
    """Whether timm itself registers a model, by a name with no address in it."""
    import timm

    base = name.partition(".")[0]
    return (
        re.fullmatch(r"[\w.]{1,128}", name) is not None
        and timm.is_model(base)
        and timm.model_entrypoint(base).__module__.startswith("timm.")
    )


def _is_number(value: object) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(item is None or isinstance(item, (bool, int, float)) for item in items)
