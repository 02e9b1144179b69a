"""Reads the options of a request from its query or its parameters; what is not understood is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from .config import RequestOptions

_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NAMES = ("latency_ms", "stitch_id", "macs")
MOST_TOP = 20  # classes in an answer


def read_options(values: Mapping[str, object], more: Iterable[str] = ()) -> RequestOptions:
    """Read the options of a request.

    Args:
        values: the options by name, as numbers or texts.
        more: further names that the caller reads itself.

    Raises:
        ValueError: if a value is not a number, or an option is unknown.
    """
    names = (*NAMES, *more)
    for name in values:
        if name not in names:
            raise ValueError(f"there is no option {name!r:.60}: expected {', '.join(names)}.")
    return RequestOptions(
        read_number(values, "latency_ms"), read_whole_number(values, "stitch_id"), read_number(values, "macs"),
        read_choice(values, "truncate"),
    )  # fmt: skip


def read_query(items: Iterable[tuple[str, str]]) -> dict[str, object]:
    """Read the items of a query.

    Raises:
        ValueError: if a name is there twice.
    """
    values: dict[str, object] = {}
    for name, value in items:
        if name in values:
            raise ValueError(f"{name:.60} is given twice: give it once.")
        values[name] = value
    return values


def read_top(values: Mapping[str, object]) -> int:
    """Read how many classes an answer is to name; 5 by default.

    Raises:
        ValueError: if it is not a whole number from 1 to `MOST_TOP`.
    """
    most = read_whole_number({"top": 5, **values}, "top") or 0
    if not 1 <= most <= MOST_TOP:
        raise ValueError(f"top must be 1 to {MOST_TOP}, got {most}.")
    return most


def read_whole_number(values: Mapping[str, object], name: str) -> int | None:
    """Read a whole number, None if it is absent.

    Raises:
        ValueError: if it is no whole number.
    """
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= 20 and _WHOLE.fullmatch(value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{name} must be a whole number, got {value!r:.40}.")


def read_number(values: Mapping[str, object], name: str) -> float | None:
    """Read a finite number, None if it is absent.

    Raises:
        ValueError: if it is no finite number.
    """
    value = values.get(name)
    if value is None:
        return None
    is_text = isinstance(value, str) and len(value) <= 400 and _NUMBER.fullmatch(value)
    if is_text or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        try:
            number = float(str(value) if is_text else value)  # type: ignore[arg-type]
        except OverflowError:  # a JSON number of hundreds of digits
            number = math.inf
        if math.isfinite(number):
            return number
    raise ValueError(f"{name} must be a number, got {value!r:.40}.")


def read_choice(values: Mapping[str, object], name: str) -> bool:
    """Read true or false, false if it is absent.

    Raises:
        ValueError: if it is neither.
    """
    value = values.get(name, False)
    if value in ("true", "false"):
        return value == "true"
    if isinstance(value, bool):
        return value
    raise ValueError(f"{name} must be true or false, got {value!r:.40}.")
