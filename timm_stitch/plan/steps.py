"""The steps of a stitch: the parts of a network that run one after another, as comparable values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Stem:
    """The stem of an anchor."""

    anchor: int


@dataclass(frozen=True, order=True)
class Block:
    """Block `index` of an anchor."""

    anchor: int
    index: int


@dataclass(frozen=True, order=True)
class Cross:
    """Stitching layer `layer`, from the anchor of the step before into block `start` of another."""

    layer: int
    anchor: int
    start: int


@dataclass(frozen=True, order=True)
class Head:
    """The final norm and the head of an anchor; on stitched paths the norm may be left out."""

    anchor: int
    is_stitched: bool


Step = Stem | Block | Cross | Head


def sort_key(steps: tuple[Step, ...]) -> list[tuple[str, Step]]:
    """Make a key that sorts sequences of steps so that those with equal first steps are neighbours."""
    return [(type(step).__name__, step) for step in steps]
