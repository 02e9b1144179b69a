"""How large a plan and the fields of a saved configuration may be, checked before anything is built from them.

A plan is enumerated from a few words, or read from a file that may be a stranger's: either could ask for more stitches
than memory holds. Both are counted first, in time that grows with the input.
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


def too_many(count: int | str, advice: str = "give fewer anchors, nearest=True or a smaller kernel_size") -> ValueError:
    """What to raise for a plan of so many stitches."""
    given = f"{count:,}" if isinstance(count, int) else count
    return ValueError(f"this plan would have {given} stitches: expected at most {MOST_STITCHES:,}; {advice}.")


def check_routes(
    order: Sequence[int], starts: Mapping[int, int], joints: Mapping[tuple[int, int], Sequence[tuple[int, int]]]
) -> None:
    """Refuse a plan of all routes that would have too many stitches; nothing is enumerated.

    Args:
        order: the anchors as they may follow each other.
        starts: the number of blocks of each.
        joints: of a front and a back, where they meet: (last block in front, first block behind).

    Raises:
        ValueError: naming how many there would be.
    """
    ways: dict[int, list[int]] = {}  # of each anchor, by the block where it is entered: how it can go on, or end
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


def check_saved(data: Mapping[str, Any]) -> None:
    """Refuse a plan as JSON has it that is larger than any network needs, before it is made.

    Args:
        data: what `StitchPlan.to_dict()` writes, or anything else.

    Raises:
        ValueError: naming what there is too much of.
        TypeError, KeyError: if it is not a plan.
    """
    anchors, layers, stitches = data["anchors"], data["layers"], data["stitches"]
    lists = (("anchors", anchors, MOST_ANCHORS), ("layers", layers, MOST_LAYERS), ("stitches", stitches, MOST_STITCHES))
    for what, given, most in lists:
        if not isinstance(given, (list, tuple)):
            raise TypeError(f"{what} is a {type(given).__name__}")
        _at_most(what, len(given), most)
    for anchor in anchors:
        if not isinstance(anchor["name"], str):
            raise TypeError("a name is not a text")
        _at_most("letters in an anchor's name", len(anchor["name"]), MOST_NAME)
        _at_most("blocks", max(len(anchor["widths"]), len(anchor["reductions"])) - 1, MOST_BLOCKS)
        _at_most("channels", max([0, *anchor["widths"], *anchor["reductions"]]), MOST_WIDTH)
    _at_most("channels", max([0, *(v for layer in layers for v in layer.values())]), MOST_WIDTH)
    _at_most("weights of stitching layers", sum(_weights(layer) for layer in layers), MOST_WEIGHTS)
    _at_most("segments", sum(len(stitch["segments"]) for stitch in stitches), MOST_SEGMENTS)
    _at_most("ids", max([0, *(stitch["stitch_id"] for stitch in stitches)]), 10 * MOST_STITCHES)
    steps = sum(max(0, stop - start) for stitch in stitches for _, start, stop in stitch["segments"])
    _at_most("blocks in its stitches", steps, MOST_STEPS)


def _weights(layer: Mapping[str, int]) -> int:
    wide = layer["in_width"] + layer["out_width"]
    return layer["in_width"] * layer["out_width"] + layer.get("rank", 0) * wide


def _at_most(what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"this stitch plan has {count:,} {what}: expected at most {most:,}, so it was not read.")


@dataclass(frozen=True)
class ValueLimits:
    """Limits of the plain values in a saved configuration, which may be a stranger's.

    Args:
        largest: gives the largest number that a field of some name may hold.
        check_names: called with the place and the mapping, raises ValueError for names that may not stand in it.
        depth: the number of levels that values may be nested.
        infinite: whether a number may be infinite.
    """

    largest: Callable[[str], int]
    check_names: Callable[[str, Mapping[Any, Any]], None]
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
    """Count the plain values in nested lists and mappings, but for those under the key `without`."""
    if isinstance(value, Mapping):
        return sum(count_values(item, without) for key, item in value.items() if key != without)
    return sum(count_values(item, without) for item in value) if isinstance(value, (list, tuple)) else 1
