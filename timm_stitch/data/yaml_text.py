"""YAML whose size is checked before it is built: a few bytes of aliases can expand to more than memory holds."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_LETTERS, _MOST_VALUES = 256 << 10, 100_000


def load_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Read YAML of plain values.

    Args:
        text: the YAML, at most 256 KiB.
        loader: a subclass of `SafeLoader`.

    Raises:
        yaml.YAMLError: if it is not YAML.
        ValueError: if it is too long, nested too deep, or its aliases stand for too many values.
    """
    if len(text) > _MOST_LETTERS:
        raise ValueError(f"YAML must have at most {_MOST_LETTERS:,} letters, got {len(text):,}.")
    try:
        if _values(yaml.compose(text, loader), {}) > _MOST_VALUES:
            raise ValueError(f"the aliases in this YAML stand for more than {_MOST_VALUES:,} values: write fewer.")
        return yaml.load(text, loader)
    except RecursionError:
        raise ValueError("this YAML is nested too deep, or holds itself: expected plain fields and values.") from None


def read_argument(text: str) -> Any:
    """Read a value as YAML from the command line.

    Raises:
        ValueError: if it is not YAML, or a mapping without a space after a colon, which YAML reads as a name.
    """
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r:.120} is not readable as YAML ({str(error).splitlines()[0]:.80}).") from None
    glued = [key for key, one in value.items() if one is None and ":" in str(key)] if isinstance(value, dict) else []
    if glued:
        name, _, rest = str(glued[0]).partition(":")
        raise ValueError(f"{text!r:.120} has no space after a colon: write '{{{name}: {rest}}}'.")
    return value


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Count the values that a node expands to, each alias counted again."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # a node that contains itself never ends
        inner = [n for pair in node.value for n in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_values(n, known) for n in inner)
    return known[id(node)]
