"""Limits on the size of a plan and of a saved configuration, checked before anything is built from them.

A few arguments, or a file from a stranger, could ask for more stitches than memory holds. Both are counted first, in
time that grows with the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_STITCHES = 10_000  # the largest published plan has 134
MOST_ANCHORS, MOST_BLOCKS, MOST_WIDTH, MOST_NAME = 16, 512, 1 << 16, 128
MOST_LAYERS, MOST_SEGMENTS, MOST_STEPS, MOST_WEIGHTS = 10_000, 60_000, 1_000_000, 1 << 30
MOST_LETTERS = 256  # in a text of a saved configuration

JsonObject = Mapping[str, Any]  # an object as JSON has it, perhaps a stranger's


def too_many(count: int | None = None, advice: str = "nearest=True or a smaller kernel_size") -> ValueError:
    """Make the error for a plan with too many stitches; None for more than were counted."""
    number = f"more than {MOST_STITCHES:,}" if count is None else f"{count:,}"
    return ValueError(
        f"a plan must have at most {MOST_STITCHES:,} stitches, got {number}: give fewer anchors, {advice}."
    )


def check_routes(
    order: Sequence[int], starts: Mapping[int, int], joints: Mapping[tuple[int, int], Sequence[tuple[int, int]]]
) -> None:
    """Refuse a plan of all routes that would have too many stitches; nothing is enumerated.

    Args:
        order: the numbers of the anchors, in the order in which they may follow each other.
        starts: the number of blocks of each anchor.
        joints: the joints of each (front, back): (last block of the front, first block of the back).

    Raises:
        ValueError: naming the number of stitches.
    """
    # Count backwards: for each anchor and each block where it is entered, the ways to go on or end there.
    ways: dict[int, list[int]] = {}
    for at in range(len(order) - 1, -1, -1):
        anchor = order[at]
        leaving = [0] * (starts[anchor] + 1)
        for back in order[at + 1 :]:
            for j, k in joints[anchor, back]:
                leaving[j] += ways[back][k]
        for j in range(len(leaving) - 2, -1, -1):
            leaving[j] += leaving[j + 1]
        ways[anchor] = [count + 1 for count in leaving]
    total = sum(counts[0] for counts in ways.values())
    if total > MOST_STITCHES:
        raise too_many(total)


def check_saved_plan(data: JsonObject) -> None:
    """Refuse a plan in JSON that is larger than any network needs, before it is built.

    Args:
        data: the dict that `StitchPlan.to_dict()` returns, or anything else.

    Raises:
        ValueError: naming the part that is too large.
        TypeError, KeyError: if it is not a plan.
    """
    anchors, layers, stitches = data["anchors"], data["layers"], data["stitches"]
    lists = (("anchors", anchors, MOST_ANCHORS), ("layers", layers, MOST_LAYERS), ("stitches", stitches, MOST_STITCHES))
    for name, values, limit in lists:
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name} is a {type(values).__name__}")
        _check_count(name, len(values), limit)
    for anchor in anchors:
        if not isinstance(anchor["name"], str):
            raise TypeError("a name is not a text")
        _check_count("letters in an anchor's name", len(anchor["name"]), MOST_NAME)
        _check_count("blocks", max(len(anchor["widths"]), len(anchor["reductions"])) - 1, MOST_BLOCKS)
        _check_count("channels", max([0, *anchor["widths"], *anchor["reductions"]]), MOST_WIDTH)
        _check_count("stages", len(anchor.get("stage_starts", ())), MOST_BLOCKS)
    _check_count("channels", max([0, *(v for layer in layers for v in layer.values())]), MOST_WIDTH)
    _check_count("weights of stitching layers", sum(_num_weights(layer) for layer in layers), MOST_WEIGHTS)
    _check_count("segments", sum(len(stitch["segments"]) for stitch in stitches), MOST_SEGMENTS)
    _check_count("ids", max([0, *(stitch["stitch_id"] for stitch in stitches)]), 10 * MOST_STITCHES)
    steps = sum(max(0, stop - start) for stitch in stitches for _, start, stop in stitch["segments"])
    _check_count("blocks in its stitches", steps, MOST_STEPS)


def _num_weights(layer: Mapping[str, int]) -> int:
    widths = layer["in_width"] + layer["out_width"]
    return layer["in_width"] * layer["out_width"] + layer.get("rank", 0) * widths


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise ValueError(f"this stitch plan has {count:,} {what}: expected at most {limit:,}, so it was not read.")


@dataclass(frozen=True)
class ValueLimits:
    """Limits of the plain values in a saved configuration, which may be a stranger's.

    Args:
        largest: a function from the name of a field to the largest number it may hold.
        check_names: a function of a place and the mapping there, which raises ValueError for forbidden names.
        depth: the number of levels that values may be nested.
        infinite: whether a number may be infinite.
    """

    largest: Callable[[str], int]
    check_names: Callable[[str, Mapping[Any, object]], None]
    depth: int
    infinite: bool = False

    def check(self, where: str, name: str, value: object, level: int = 0) -> None:
        """Refuse a value that is too large, too deep or not plain.

        Args:
            where: the place of the value, which errors name.
            name: the name of the field that holds it; an item of a list has the name of its list.
            value: the value as JSON gives it.
            level: the number of lists and mappings around it.

        Raises:
            ValueError: naming the place.
        """
        if isinstance(value, bool) or value is None:
            return
        if isinstance(value, (int, float)):
            largest = self.largest(name)
            if not (abs(value) <= largest or (self.infinite and abs(value) == math.inf)):  # NaN fits nowhere
                raise ValueError(f"{where} is {value!r:.40}: expected at most {largest:,}.")
        elif isinstance(value, str):
            if len(value) > MOST_LETTERS:
                raise ValueError(f"{where} is a text of {len(value):,} letters: expected at most {MOST_LETTERS}.")
        elif level > self.depth or not isinstance(value, (Mapping, list, tuple)):
            raise ValueError(f"{where} is a {type(value).__name__} too deep or strange for an argument.")
        elif isinstance(value, Mapping):
            self.check_names(where, value)
            for key, item in value.items():
                self.check(f"{where}.{key!s:.64}", name if str(key).isdigit() else str(key), item, level + 1)
        else:
            for item in value:
                self.check(where, name, item, level + 1)


def count_values(value: object, without: str | None = None) -> int:
    """Count the plain values in nested lists and mappings, except those under the key `without`."""
    if isinstance(value, Mapping):
        return sum(count_values(item, without) for key, item in value.items() if key != without)
    return sum(count_values(item, without) for item in value) if isinstance(value, (list, tuple)) else 1
