"""The fields of a configuration: declared once, with help, range and choices, then checked, read and listed.

A dataclass declares each of its fields with `option`. `check` refuses values outside the declaration, `read` takes
values from YAML and JSON, `read_text` from the command line; `--help` and the docs print `about`.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import WrongTypeError

_LARGEST = 2**63 - 1  # what torch takes as a whole number

Hint = Any  # an annotation, resolved


def option(
    default: object = MISSING,
    help: str = "",
    *,
    group: str,
    range: tuple[float, float] | None = None,
    choices: Hint = None,
    factory: Callable[[], object] | None = None,
) -> Any:
    """Declare a field of a dataclass.

    Args:
        default: the default value; without it the field is required.
        help: the description, in one line.
        group: the heading under which `--help` and the docs list it.
        range: the lowest and the highest value.
        choices: the allowed values, as a tuple or a Literal.
        factory: a function that makes the default, if that is a list or a dict.
    """
    metadata = {"help": help, "group": group, "range": range, "choices": get_args(choices) or choices}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def options(config: type) -> dict[str, Field[Any]]:
    """List the fields of a dataclass that were declared by `option`, by name and in order."""
    return {f.name: f for f in fields(config) if "help" in f.metadata}


def about(declared: Field[Any]) -> str:
    """Describe a field's type, limits and default in a few words: `float, 0 or more, default 0.0001`."""
    choices, limits = declared.metadata["choices"], declared.metadata["range"]
    words = [" or ".join(map(_shown, choices)) if choices else type_name(declared).removesuffix(" | None")]
    if limits:
        words.append(_range_text(*limits))
    if declared.default is not MISSING:
        words.append(f"default {_shown(declared.default)}")
    return ", ".join(words)


def check(config: object) -> None:
    """Check each field of a dataclass against its declaration.

    Raises:
        WrongTypeError: a TypeError, if a value has the wrong type.
        ValueError: if a value is out of range, or is not one of the choices.
    """
    hints = type_hints(type(config))
    for name, declared in options(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hints[name]):
            raise WrongTypeError(f"{name} must be of type {type_name(declared)}, got {value!r}.")
        limits, choices = declared.metadata["range"], declared.metadata["choices"]
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, (int, float))]
        if not all(math.isfinite(n) if isinstance(n, float) else abs(n) <= _LARGEST for n in numbers):
            raise ValueError(f"{name} must be finite, and below 2^63 as a whole number, got {value!r}.")
        if limits and value is not None and not limits[0] <= value <= limits[1]:
            raise ValueError(f"{name} must be {_range_text(*limits)}, got {value!r}.")
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(_shown, choices))}, got {value!r}.")


def read(config: type, values: Mapping[str, object]) -> dict[str, Any]:
    """Turn plain values from YAML or JSON into the values of a dataclass's fields.

    Raises:
        ValueError: naming unknown fields.
    """
    hints = type_hints(config)
    known = options(config)
    unknown = sorted(str(name) for name in values if name not in known)
    if unknown:
        near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.7) for name in unknown}
        names = [f"{name} (did you mean {near[name][0]}?)" if near[name] else name for name in unknown]
        raise ValueError(f"unknown fields {', '.join(names)}: the fields are {', '.join(sorted(known))}.")
    return {name: _read(value, hints[name]) for name, value in values.items()}


def read_text(text: str, value: object, hint: Hint) -> object:
    """Read the value of a field from the command line.

    Args:
        text: the text as typed.
        value: the value that YAML reads from it.
        hint: the type of the field; in a field of text a text stays one, even if it looks like a number.
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
    """Resolve the annotations of a dataclass."""
    return get_type_hints(config)


def _range_text(low: float, high: float) -> str:
    """Write a range in words."""
    return f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"


def type_name(declared: Field[Any]) -> str:
    """Write a field's type for people; of choices, the types of the values."""
    if choices := declared.metadata["choices"]:
        return " | ".join(dict.fromkeys("None" if value is None else type(value).__name__ for value in choices))
    return str(declared.type).replace("Mapping[", "dict[")


def _shown(value: object) -> str:
    """Write a value as in YAML."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _kinds(hint: Hint) -> tuple[Any, ...]:
    """List the types of which one must fit."""
    origin: Any = get_origin(hint)
    if origin is Literal:
        return tuple({type(value) for value in get_args(hint)})
    return get_args(hint) if origin in (Union, types.UnionType) else (hint,)


def _fits(value: object, hint: Hint) -> bool:
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


def _read(value: object, hint: Hint) -> object:
    """Turn lists into tuples, and undo YAML's reading of `1e-4` as text and of `no` as False."""
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
