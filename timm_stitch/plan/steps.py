"""The steps of a stitch: the parts of a network that run one after another, as values that stitches can share."""

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
    """The final norm and the head of an anchor; after stitching the norm may be left out, so the two are told apart."""

    anchor: int
    is_stitched: bool


Step = Stem | Block | Cross | Head


def sort_key(steps: tuple[Step, ...]) -> list[tuple[str, Step]]:
    """A key that sorts sequences of steps so that those with equal first steps lie side by side."""
    return [(type(step).__name__, step) for step in steps]
