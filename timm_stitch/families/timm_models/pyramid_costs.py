"""The costs of a pyramid's stitches: their paths as far as the last level, their projections, and what lies on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...plan.costs import Cost, PlanCosts
from ...plan.levels import EARLY, INSIDE_STEM, Ends, tap_places
from ...plan.stitch_plan import Stitch

LevelOfAnchor = tuple[int, int]  # the numbers of an anchor and a level


@dataclass(frozen=True)
class PyramidCosts(PlanCosts):
    """The costs of a plan's parts, and of what follows the levels of its stitches.

    Args:
        ends: the levels.
        levels: the numbers of those that are computed.
        projections: the cost of each projection.
        tied: the stitching layers that are projections as well.
        on_top: the cost of the head on the levels.
    """

    ends: Ends = ()
    levels: tuple[int, ...] = ()
    projections: Mapping[LevelOfAnchor, Cost] = field(default_factory=dict)
    tied: Mapping[LevelOfAnchor, int] = field(default_factory=dict)
    on_top: Cost = field(default_factory=Cost)

    def cost(self, stitch: Stitch) -> Cost:
        return self.path(stitch) + self.used_projections(stitch) + self.on_top

    def path(self, stitch: Stitch) -> Cost:
        """Compute the cost of the blocks and stitching layers up to the last level that is computed."""
        places = tap_places(stitch, self.ends)
        behind = stitch.steps[max(places[level] for level in self.levels) :]
        return super().cost(stitch) + Cost(-sum(map(self.step, behind)))

    def used_projections(self, stitch: Stitch) -> Cost:
        """Compute the cost of the projections that a stitch uses."""
        total, held = Cost(), set(stitch.layers)
        for key in levels_of(stitch, self.ends):
            if key[1] not in self.levels:
                continue
            cost, layer = self.projections.get(key, Cost()), self.tied.get(key)
            total += Cost(cost.macs, 0 if layer in held else cost.params)
            held.update(() if layer is None else (layer,))
        return total


def levels_of(stitch: Stitch, ends: Ends) -> list[LevelOfAnchor]:
    """List the anchor from which a stitch takes each level."""
    places = tap_places(stitch, ends)
    return [(boundary_at(stitch, place)[0], level) for level, place in enumerate(places)]


def boundary_at(stitch: Stitch, place: int) -> tuple[int, int]:
    """Return the anchor and the boundary of a place along a stitch."""
    return (stitch.front, EARLY) if place == INSIDE_STEM else stitch.places[place - 1]
