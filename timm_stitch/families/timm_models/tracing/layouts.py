"""The layout, width and reduction of an activation, from its shape."""

from __future__ import annotations

import math
from collections.abc import Sequence


def map_layout(shape: Sequence[int], size: tuple[int, int]) -> str | None:
    """The layout of a map of this shape, where only one is possible."""
    layouts = _possible_layouts(shape, size)
    return layouts[0] if len(layouts) == 1 else None


def _possible_layouts(shape: Sequence[int], size: tuple[int, int]) -> list[str]:
    _, a, b, c = shape
    fits = {"NHWC": (a, b), "NCHW": (b, c)}
    small = {k: (h, w) for k, (h, w) in fits.items() if h <= size[0] and w <= size[1]}
    return [k for k, (h, w) in small.items() if abs(size[0] * w - size[1] * h) <= max(size)]


def describe(shape: Sequence[int], size: tuple[int, int], hint: int, default: str) -> tuple[str, int, int, int, int]:
    """Derive the layout, width, reduction, prefix tokens and all tokens of an activation from its shape.

    Args:
        shape: the shape of the activation, (B, …).
        size: the (height, width) of the image.
        hint: the number of prefix tokens by the model's own attribute.
        default: the layout of maps whose shape fits both.

    Returns:
        The layout is `"NLC"`, `"NHWC"`, `"NCHW"`, or `"N*C"`: channels last, the rest in an order of its own.
    """
    if len(shape) == 4:
        _, a, b, c = shape
        layouts = _possible_layouts(shape, size)
        layout = layouts[0] if len(layouts) == 1 else default
        if not layouts and default == "NCHW" and b != c:
            layout = "N*C"
        if layout == "NCHW":
            return layout, a, _reduction(size[0], b), 0, b * c
        if layout == "NHWC":
            return layout, c, _reduction(size[0], a), 0, a * b
    if len(shape) == 3:
        _, n, c = shape
        for prefix in dict.fromkeys((hint, 0, 1, 2, 3, 4, 5, 8)):
            r = round(math.sqrt(size[0] * size[1] / (n - prefix))) if n > prefix else 0
            if r and n - prefix in (math.ceil(size[0] / r) * math.ceil(size[1] / r), (size[0] // r) * (size[1] // r)):
                return "NLC", c, r, prefix, n
        return "NLC", c, max(1, round(math.sqrt(size[0] * size[1] / n))), 0, n
    n = math.prod(shape[1:-1])
    return "N*C", shape[-1], max(1, round(math.sqrt(size[0] * size[1] / n))), 0, n


def _reduction(side: int, cells: int) -> int:
    """The pixels for each position; strided layers round up or down where they do not divide."""
    for power in (1, 2, 4, 8, 16, 32, 64):
        if cells in (-(-side // power), side // power):
            return power
    return max(1, round(side / cells))
