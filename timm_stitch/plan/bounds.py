"""How large a plan may be, asked before there is any of it.

A plan is enumerated from a few words, or read from a file that may be a stranger's: either could ask for more stitches
than memory holds. Both are counted first, in time that grows with what was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_STITCHES = 10_000  # the largest published plan has 134
MOST_ANCHORS, MOST_BLOCKS, MOST_WIDTH, MOST_NAME = 16, 512, 1 << 16, 128
MOST_LAYERS, MOST_SEGMENTS, MOST_STEPS, MOST_WEIGHTS = 10_000, 60_000, 1_000_000, 1 << 30


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
