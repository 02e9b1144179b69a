"""The fields of a configuration: declared once, with help, range and choices, then checked, read and listed.

A dataclass declares each of its fields with `option`. `check` refuses values by what is declared, `read` takes
values as YAML and JSON give them, `read_text` as the command line does; `--help` and the docs print `about`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import WrongTypeError

Hint = Any  # an annotation, resolved


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    group: str,
    range: tuple[float, float] | None = None,
    choices: tuple[Any, ...] | None = None,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare a field of a dataclass.

    Args:
        default: its value if none is given; left out, the field must be given.
        help: what it is, in one line.
        group: the heading under which `--help` and the docs list it.
        range: the lowest and the highest value.
        choices: the values there are.
        factory: makes the default, where that is a list or a dict.
    """
    metadata = {"help": help, "group": group, "range": range, "choices": choices}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def options(config: type) -> dict[str, Field[Any]]:
    """The fields of a dataclass that were declared by `option`, by name and in their order."""
    return {f.name: f for f in fields(config) if "help" in f.metadata}


def about(declared: Field[Any]) -> str:
    """A field's type, limits and default in a few words: `float, 0 or more, default 0.0001`."""
    choices, limits = declared.metadata["choices"], declared.metadata["range"]
    words = [" or ".join(map(_shown, choices)) if choices else _type_name(declared).removesuffix(" | None")]
    if limits:
        low, high = limits
        words.append(f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}")
    if declared.default is not MISSING:
        words.append(f"default {_shown(declared.default)}")
    return ", ".join(words)


def check(config: Any) -> None:
    """Check each field of a dataclass by what is declared of it.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if it is out of range, or is not one of the choices.
    """
    hints = type_hints(type(config))
    for name, declared in options(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hints[name]):
            raise WrongTypeError(f"{name}={value!r} is a {type(value).__name__}: expected {_type_name(declared)}.")
        limits, choices = declared.metadata["range"], declared.metadata["choices"]
        if limits and value is not None and not limits[0] <= value <= limits[1]:
            raise ValueError(f"{name}={value!r} is out of range: expected {limits[0]} <= {name} <= {limits[1]}.")
        if choices and value not in choices:
            raise ValueError(f"{name}={value!r} is unknown: expected one of {choices}.")


def read(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values, as YAML or JSON give them, as the values of a dataclass's fields.

    Raises:
        ValueError: naming the fields that are unknown.
    """
    hints = type_hints(config)
    known = options(config)
    unknown = sorted(str(name) for name in values if name not in known)
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}: the fields are {', '.join(sorted(known))}.")
    return {name: _read(value, hints[name]) for name, value in values.items()}


def read_text(text: str, value: Any, hint: Hint) -> Any:
    """What a text on the command line stands for in a field.

    Args:
        text: as it was typed.
        value: as YAML reads it.
        hint: the field's type: what is text there stays text, even where it looks like a number.
    """
    if value is not None and all(kind in (str, types.NoneType) for kind in _kinds(hint)):
        return text
    if isinstance(value, str):
        try:
            return float(text)  # YAML reads 1e-4 as text
        except ValueError:
            return value
    return value


def type_hints(config: type) -> dict[str, Hint]:
    """The resolved annotations of a dataclass."""
    return get_type_hints(config)


def _type_name(declared: Field[Any]) -> str:
    """A field's type as one would write it."""
    return str(declared.type).replace("Mapping[", "dict[")


def _shown(value: Any) -> str:
    """A value as one would write it in YAML."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _kinds(hint: Hint) -> tuple[Any, ...]:
    """The types of which one must fit."""
    origin: Any = get_origin(hint)
    return get_args(hint) if origin in (Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Hint) -> bool:
    for kind in _kinds(hint):
        origin = get_origin(kind)
        if kind is Any:
            fits = True
        elif origin is tuple:
            fits = isinstance(value, tuple) and all(_fits(v, get_args(kind)[0]) for v in value)
        elif origin is Mapping:
            key, item = get_args(kind)
            fits = isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
        elif kind is float:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
        elif kind is int:
            fits = isinstance(value, int) and not isinstance(value, bool)
        else:
            fits = isinstance(value, kind)
        if fits:
            return True
    return False


def _read(value: Any, hint: Hint) -> Any:
    """A list as a tuple; for YAML `1e-4` is text, which becomes a number, and `no` is False, which becomes text."""
    if value is False and str in _kinds(hint) and bool not in _kinds(hint):
        return "no"
    if isinstance(value, list):
        return tuple(_read(v, float) if float in get_args(_kinds(hint)[0]) else v for v in value)
    if isinstance(value, str) and float in _kinds(hint):
        try:
            return float(value)
        except ValueError:
            return value
    return value
