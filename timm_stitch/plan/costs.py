"""Costs of stitches: multiply-adds and parameters, summed over their parts.

Each family measures a stem, block, norm, head or stitching layer once (see its `counting`); everything here is a sum.
"macs" are multiply-adds as fvcore counts them; the papers print the same number as FLOPs.

There are two counts. `cost` is everything that the stitch runs and holds. `published` follows the authors' result
files, for comparison with their tables; `PublishedCount` holds the differences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .steps import Block, Cross, Stem, Step
from .stitch_plan import Stitch


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one image, and parameters."""

    macs: int = 0
    params: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params)


@dataclass(frozen=True)
class AnchorCosts:
    """The costs of one anchor, part by part.

    Args:
        stem, blocks, norm, head: the costs of these parts; a downsampling belongs to the block that follows it.
        embeddings: the stem's parameters outside its layers.
        own_prefix: the stem's parameters that the anchor's own class and register tokens need.
        transitions: the parameters of the downsampling in each block.
        entered: the cost of what runs before the blocks even where a stitch enters the anchor at a later one.
    """

    stem: Cost
    embeddings: int
    blocks: tuple[Cost, ...]
    norm: Cost
    head: Cost
    own_prefix: int = 0
    transitions: tuple[int, ...] = ()
    entered: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class PublishedCount:
    """How the authors' result files count a stitch.

    Args:
        stitched_norm: whether stitched paths run the final norm. The released DeiT weights were trained, evaluated
            and counted without it; the reported parameters include it.
        params: whether they report parameters. For stitched rows, those leave out class and position embeddings and
            the front's patch-merging layers.
    """

    stitched_norm: bool = True
    params: bool = False


@dataclass(frozen=True)
class PlanCosts:
    """The costs of all anchors and stitching layers of a plan.

    Args:
        anchors, layers: the costs, by numbers in the plan; None for a part that this network lacks.
        stitched_norm: whether stitched paths run the final norm.
        back_prefix_layers: the stitching layers after which the back anchor adds its own prefix tokens.
        length: the tokens of the text for which they are counted; None for images.
    """

    anchors: tuple[AnchorCosts | None, ...]
    layers: tuple[Cost | None, ...]
    stitched_norm: bool = True
    back_prefix_layers: frozenset[int] = frozenset()
    length: int | None = field(default=None, kw_only=True)

    def _anchor(self, number: int) -> AnchorCosts:
        costs = self.anchors[number]
        if costs is None:
            raise ValueError(f"anchor {number} is not part of this network.")
        return costs

    def _body(self, stitch: Stitch) -> Cost:
        """Sum the costs of stem, blocks, stitching layers and head: all but the final norm."""
        total = self._anchor(stitch.front).stem + self._anchor(stitch.back).head
        # A block or layer that runs twice costs multiply-adds twice, parameters once.
        seen: set[tuple[int, int]] = set()
        for segment in stitch.segments:
            blocks = self._anchor(segment.anchor).blocks
            for i in range(segment.start, segment.stop):
                is_first = (segment.anchor, i) not in seen
                seen.add((segment.anchor, i))
                total += blocks[i] if is_first else Cost(blocks[i].macs)
        for number in dict.fromkeys(segment.anchor for segment in stitch.segments[1:]):
            entered = self._anchor(number).entered
            total += entered if number != stitch.front else Cost(entered.macs)
        for i, number in enumerate(stitch.layers):
            layer = self.layers[number]
            if layer is None:
                raise ValueError(f"stitching layer {number} is not part of this network.")
            total += layer if number not in stitch.layers[:i] else Cost(layer.macs)
        entered_anchors = {after.anchor for number, _, after in stitch.joints if number in self.back_prefix_layers}
        prefixes = (self._anchor(number).own_prefix for number in entered_anchors - {stitch.front})
        return total + Cost(0, sum(prefixes))

    def cost(self, stitch: Stitch) -> Cost:
        """Compute the cost of all that the stitch runs and holds."""
        body = self._body(stitch)
        return body + self._anchor(stitch.back).norm if stitch.is_anchor or self.stitched_norm else body

    def published(self, stitch: Stitch, count: PublishedCount) -> Cost:
        """Compute the cost as the authors' result files count it."""
        front, back = self._anchor(stitch.front), self._anchor(stitch.back)
        body, norm = self._body(stitch), back.norm
        macs = body.macs + (norm.macs if stitch.is_anchor or count.stitched_norm else 0)
        params = body.params + norm.params
        if not stitch.is_anchor:
            params -= front.embeddings + sum(front.transitions[: stitch.segments[0].stop])
        return Cost(macs, params)

    def step(self, step: Step) -> int:
        """Get the multiply-adds of one of `Stitch.steps`."""
        if isinstance(step, Cross):
            layer = self.layers[step.layer]
            return layer.macs if layer else 0
        costs = self._anchor(step.anchor)
        if isinstance(step, Stem):
            return costs.stem.macs
        if isinstance(step, Block):
            return costs.blocks[step.index].macs
        return costs.head.macs + (costs.norm.macs if self.stitched_norm or not step.is_stitched else 0)


def short(count: float) -> str:
    """Format a count for people: 4608338304 as "4.61 G"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
