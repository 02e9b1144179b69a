"""What a stitch costs: multiply-adds and parameters, summed from what is known of its parts.

Costs are additive. They are measured once per stem, block, norm, head and stitching layer (see
`counting`), and everything here is a sum. "macs" are multiply-adds as fvcore counts them; the papers
print the same number as FLOPs.

Two counts are kept apart. The honest count is everything the stitch really runs and holds. The
published count is that of the authors' result files, for comparing with their tables; what they left out
or counted besides is in `PublishedCount`.
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
    """The parts of one anchor.

    Args:
        stem, blocks, norm, head: what they cost; a downsampling belongs to the block that follows it.
        embeddings: the part of the stem's parameters that no layer holds.
        own_prefix: the part that the anchor's own class and register tokens need.
        transitions: the part of each block's parameters that a downsampling before it holds.
        entered: what runs and is held before the blocks also where a stitch enters the anchor at a later one.
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
    """How the authors' result files count a stitch, where that is not all it runs and holds.

    Args:
        stitched_norm: whether stitched paths run the final norm. The released DeiT weights were
            trained, evaluated and counted without; their parameters include it all the same.
        params: whether they report parameters. Class and position embeddings of stitched rows are
            not among them, nor are the front's patch-merging layers.
    """

    stitched_norm: bool = True
    params: bool = False


@dataclass(frozen=True)
class PlanCosts:
    """The parts of all anchors and stitching layers of a plan; None for a part that is not there.

    Args:
        anchors, layers: by their numbers in the plan.
        stitched_norm: whether stitched paths run the final norm.
        back_prefix_layers: the stitching layers after which the back anchor's own prefix tokens join.
    """

    anchors: tuple[AnchorCosts | None, ...]
    layers: tuple[Cost | None, ...]
    stitched_norm: bool = True
    back_prefix_layers: frozenset[int] = frozenset()

    def _anchor(self, number: int) -> AnchorCosts:
        costs = self.anchors[number]
        if costs is None:
            raise ValueError(f"anchor {number} is not part of this network.")
        return costs

    def _body(self, stitch: Stitch) -> Cost:
        """Stem, blocks, stitching layers and head: all but the final norm."""
        total = self._anchor(stitch.front).stem + self._anchor(stitch.back).head
        seen: set[tuple[int, int]] = set()
        for segment in stitch.segments:
            blocks = self._anchor(segment.anchor).blocks
            for i in range(segment.start, segment.stop):
                fresh = (segment.anchor, i) not in seen
                seen.add((segment.anchor, i))
                total += blocks[i] if fresh else Cost(blocks[i].macs)
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
        """Everything that the stitch runs, and every parameter that this needs."""
        body = self._body(stitch)
        return body + self._anchor(stitch.back).norm if stitch.is_anchor or self.stitched_norm else body

    def published(self, stitch: Stitch, count: PublishedCount) -> Cost:
        """The same in the count of the authors' result files."""
        front, back = self._anchor(stitch.front), self._anchor(stitch.back)
        body, norm = self._body(stitch), back.norm
        macs = body.macs + (norm.macs if stitch.is_anchor or count.stitched_norm else 0)
        params = body.params + norm.params
        if not stitch.is_anchor:
            params -= front.embeddings + sum(front.transitions[: stitch.segments[0].stop])
        return Cost(macs, params)

    def step(self, step: Step) -> int:
        """The macs of one of `Stitch.steps`."""
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
    """A count for people: 4608338304 as 4.61 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
