"""The stitch plan: anchors, stitching layers and every stitch between them, as plain frozen values.

A plan describes a stitchable network without a tensor. It decides alone what the network runs, and it is saved as
JSON. The values of that one format are in this file, with their checks; `enumeration` makes plans, and `bounds` limits
their size.

Source: SN-Net (arXiv:2302.06586), SN-Netv2 (arXiv:2307.00154).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from operator import index
from typing import Any

from .bounds import JsonObject, check_saved_plan
from .steps import Block, Cross, Head, Stem, Step

_FORMAT_VERSION = 1

Level = tuple[int, int]  # a reduction, and the number of earlier stages with that reduction


@dataclass(frozen=True)
class Anchor:
    """The plan's description of a pretrained network: a sequence of blocks with `depth + 1` boundaries.

    Boundary 0 lies between the stem and the first block, boundary `depth` between the last block and the head.

    Args:
        name: the name for people, e.g. `"deit_tiny_patch16_224"`.
        widths: the number of channels at each boundary; length `depth + 1`.
        reductions: the input pixels per spatial position, in each direction, at each boundary; length `depth + 1`.
            Two anchors can be joined only where these are equal.
        stage_starts: the blocks that begin a stage. One begins at every change of the reduction; only those that begin
            without one, as in dilated models, are kept.

    Raises:
        ValueError: if there are no blocks, the two sequences differ in length, or a stage begins at no block.

    Examples:
        >>> timm_stitch.Anchor("deit_tiny_patch16_224", widths=(192,) * 13, reductions=(16,) * 13).depth
        12
    """

    name: str
    widths: tuple[int, ...]
    reductions: tuple[int, ...]
    stage_starts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or len(self.widths) != len(self.reductions):
            raise ValueError(
                f"anchor {self.name!r} has {len(self.widths)} widths and {len(self.reductions)} reductions: "
                "expected one of each for every boundary, that is, its depth + 1 (at least 2)."
            )
        starts = tuple(self.stage_starts)
        if list(starts) != sorted({*starts} & {*range(self.depth)}):
            raise ValueError(
                f"anchor {self.name!r} has stage_starts={starts!r:.80}: expected blocks from 0 to {self.depth - 1}, "
                "ascending."
            )
        unmarked = (block for block in starts if block and self.reductions[block] == self.reductions[block + 1])
        object.__setattr__(self, "stage_starts", tuple(unmarked))

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.widths) - 1

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The level of each block: its output's reduction, and the number of earlier stages with that reduction."""
        reductions = self.reductions[1:]
        return tuple(
            (reduction, sum(reductions[start] == reduction for start in self.stage_starts if start <= block))
            for block, reduction in enumerate(reductions)
        )

    @cached_property
    def stages(self) -> tuple[range, ...]:
        """The blocks of each stage, from fine to coarse; a model of one resolution is one stage."""
        return tuple(self.stage_at.values())

    @cached_property
    def stage_at(self) -> dict[Level, range]:
        """The blocks of the stage at each level; stages of two anchors can be joined where their levels are equal."""
        stages: dict[Level, range] = {}
        for block, level in enumerate(self.levels):
            stages[level] = range(stages[level].start if level in stages else block, block + 1)
        return stages

    def truncate(self, depth: int) -> Anchor:
        """Describe the first `depth` blocks."""
        starts = tuple(start for start in self.stage_starts if start < depth)
        return Anchor(self.name, self.widths[: depth + 1], self.reductions[: depth + 1], starts)


@dataclass(frozen=True, order=True)
class Segment:
    """Blocks `start:stop` (half-open) of anchor number `anchor`.

    Examples:
        >>> timm_stitch.Segment(anchor=1, start=7, stop=12)
        Segment(anchor=1, start=7, stop=12)
    """

    anchor: int
    start: int
    stop: int


@dataclass(frozen=True)
class LayerSpec:
    """A stitching layer: a linear map from the channels of a front anchor to those of a back anchor.

    Args:
        front, back: the numbers of the two anchors.
        in_width, out_width: the numbers of channels before and after the map.
        rank: the rank of the update to a frozen matrix (SN-Netv2's LoSA); 0 for a plain layer.

    Examples:
        >>> small, large = (timm_stitch.Anchor(name, (n,) * 3, (16,) * 3) for name, n in (("small", 32), ("large", 64)))
        >>> timm_stitch.enumerate_stitches([small, large], kernel_size=1).layers[0]
        LayerSpec(front=0, back=1, in_width=32, out_width=64, rank=0)
    """

    front: int
    back: int
    in_width: int
    out_width: int
    rank: int = 0


@dataclass(frozen=True)
class Stitch:
    """One network in the plan: segments of anchors, joined by stitching layers.

    Args:
        stitch_id: the id, stable across releases and equal to the published one.
        segments: the segments that run, in order; an anchor alone is one whole segment.
        layers: the stitching layer between each two segments, by its number in the plan.
        name: a name for people; default the plan's, e.g. `"deit_tiny_patch16_224[0:8] +
            deit_small_patch16_224[7:12]"`. Other names are not saved.

    Examples:
        >>> from timm_stitch import Segment, Stitch
        >>> stitch = Stitch(2, segments=(Segment(0, 0, 8), Segment(1, 7, 12)), layers=(0,))
        >>> stitch.front, stitch.back, len(stitch.steps)
        (0, 1, 16)
    """

    stitch_id: int
    segments: tuple[Segment, ...]
    layers: tuple[int, ...] = ()
    name: str = ""

    @cached_property
    def front(self) -> int:
        """The number of the anchor whose stem and first blocks run."""
        return self.segments[0].anchor

    @cached_property
    def back(self) -> int:
        """The number of the anchor whose last blocks and head run."""
        return self.segments[-1].anchor

    @cached_property
    def anchors(self) -> tuple[int, ...]:
        """The numbers of the anchors that run, without repetition."""
        return tuple(dict.fromkeys(segment.anchor for segment in self.segments))

    @cached_property
    def is_anchor(self) -> bool:
        """Whether this is an anchor alone."""
        return len(self.segments) == 1

    @cached_property
    def joints(self) -> tuple[tuple[int, Segment, Segment], ...]:
        """Each crossing as (stitching layer, segment before, segment after)."""
        return tuple(zip(self.layers, self.segments[:-1], self.segments[1:], strict=True))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The parts that run, in order; stitches with equal first steps can share that work."""
        steps: list[Step] = [Stem(self.front)]
        for i, segment in enumerate(self.segments):
            if i:
                steps.append(Cross(self.layers[i - 1], segment.anchor, segment.start))
            steps.extend(Block(segment.anchor, block) for block in range(segment.start, segment.stop))
        return (*steps, Head(self.back, is_stitched=not self.is_anchor))

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The (anchor, boundary) that each step but the last leads to."""
        places = [(self.front, 0)]
        for i, segment in enumerate(self.segments):
            first = segment.start if i else segment.start + 1
            places.extend((segment.anchor, boundary) for boundary in range(first, segment.stop + 1))
        return tuple(places)


@dataclass(frozen=True)
class StitchPlan:
    """The anchors and all stitches between them, in the published order.

    `len(plan)` is the number of stitches, iteration is in id order, and `plan[24]` is the stitch whose id is 24 (an
    id, not a position).

    Args:
        anchors: the anchors, from the fastest to the slowest.
        layers: the stitching layers; a layer may serve several stitches (a window).
        stitches: the stitches, in ascending order of `stitch_id`.

    Raises:
        ValueError: if a stitch names blocks, anchors or layers that do not exist, crosses where widths or spatial
            sizes differ, or an id appears twice.

    Examples:
        >>> from timm_stitch import Anchor, enumerate_stitches
        >>> plan = enumerate_stitches([Anchor(name, (width,) * 4, (16,) * 4) for name, width in [("s", 8), ("m", 16)]])
        >>> len(plan), plan[3].name
        (9, 's[0:1] + m[1:3]')
        >>> timm_stitch.StitchPlan.from_dict(plan.to_dict()) == plan
        True
    """

    anchors: tuple[Anchor, ...]
    layers: tuple[LayerSpec, ...]
    stitches: tuple[Stitch, ...]
    _by_id: dict[int, Stitch] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("anchors", "layers", "stitches"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists would make equal plans unequal
        ids = [stitch.stitch_id for stitch in self.stitches]
        if not ids or ids != sorted(set(ids)) or ids[0] < 0:
            raise ValueError(f"stitch ids must ascend without repetition, and there must be one; got {ids[:12]} ….")
        for stitch in self.stitches:
            self._check(stitch)
        named = (s if s.name else replace(s, name=self._name(s)) for s in self.stitches)
        object.__setattr__(self, "stitches", tuple(named))
        for stitch in self.stitches:  # torch.compile cannot trace a cached property: compute those that calls need
            stitch.front, stitch.back, stitch.anchors, stitch.is_anchor, stitch.joints  # noqa: B018
        object.__setattr__(self, "_by_id", {stitch.stitch_id: stitch for stitch in self.stitches})

    def _name(self, stitch: Stitch) -> str:
        """Name a stitch by its anchors, with the blocks that run unless it is a whole anchor."""
        if stitch.is_anchor:
            return self.anchors[stitch.front].name
        return " + ".join(f"{self.anchors[s.anchor].name}[{s.start}:{s.stop}]" for s in stitch.segments)

    def _check(self, stitch: Stitch) -> None:
        name = f"stitch {stitch.stitch_id}"
        if not stitch.segments or len(stitch.layers) != len(stitch.segments) - 1:
            raise ValueError(
                f"{name} has {len(stitch.segments)} segments and {len(stitch.layers)} stitching layers: "
                "expected one layer between each two segments."
            )
        for segment in stitch.segments:
            if not 0 <= segment.anchor < len(self.anchors):
                raise ValueError(
                    f"{name} uses anchor {segment.anchor}: the plan has anchors 0 to {len(self.anchors) - 1}."
                )
            depth = self.anchors[segment.anchor].depth
            if not 0 <= segment.start < segment.stop <= depth:
                raise ValueError(
                    f"{name} runs blocks {segment.start}:{segment.stop} of {self.anchors[segment.anchor].name!r}: "
                    f"expected 0 <= start < stop <= {depth}."
                )
        if stitch.segments[0].start != 0 or stitch.segments[-1].stop != self.anchors[stitch.back].depth:
            raise ValueError(f"{name} must begin at a front's first block and end at a back's last: {stitch.segments}.")
        for number, before, after in stitch.joints:
            if not 0 <= number < len(self.layers):
                raise ValueError(f"{name} uses stitching layer {number}: the plan has {len(self.layers)} layers.")
            layer, front, back = self.layers[number], self.anchors[before.anchor], self.anchors[after.anchor]
            if (layer.front, layer.back) != (before.anchor, after.anchor):
                raise ValueError(
                    f"{name} joins anchors {before.anchor} and {after.anchor} with layer {number}, "
                    f"which joins {layer.front} and {layer.back}."
                )
            if (layer.in_width, layer.out_width) != (front.widths[before.stop], back.widths[after.start]):
                raise ValueError(
                    f"{name} needs a map from {front.widths[before.stop]} to {back.widths[after.start]} channels; "
                    f"layer {number} maps {layer.in_width} to {layer.out_width}."
                )
            if front.reductions[before.stop] != back.reductions[after.start]:
                raise ValueError(
                    f"{name} cannot join {front.name!r} after block {before.stop - 1} "
                    f"(1/{front.reductions[before.stop]} of the image) to {back.name!r} "
                    f"before block {after.start} (1/{back.reductions[after.start]}): "
                    "join blocks of equal spatial size."
                )

    def __len__(self) -> int:
        return len(self.stitches)

    def __iter__(self) -> Iterator[Stitch]:
        return iter(self.stitches)

    def __getitem__(self, stitch_id: int) -> Stitch:
        try:
            if isinstance(stitch_id, bool):
                raise TypeError
            return self._by_id[index(stitch_id)]
        except (KeyError, TypeError):
            raise ValueError(self._unknown(stitch_id)) from None

    def __contains__(self, stitch_id: object) -> bool:
        try:
            return stitch_id in self._by_id
        except TypeError:
            return False  # not hashable

    def _unknown(self, stitch_id: object) -> str:
        first, last = self.stitches[0].stitch_id, self.stitches[-1].stitch_id
        gaps = sorted(set(range(first, last + 1)) - set(self.stitch_ids))
        without = f" without {', '.join(map(str, gaps[:8]))}" if gaps else ""
        return f"stitch_id={stitch_id!r} is not in this plan: expected an int from {first} to {last}{without}."

    @property
    def stitch_ids(self) -> tuple[int, ...]:
        """The valid ids, ascending."""
        return tuple(stitch.stitch_id for stitch in self.stitches)

    def anchor_id(self, anchor: int) -> int:
        """Find the id of the stitch that is anchor number `anchor` alone.

        Raises:
            ValueError: if the plan has no such stitch.
        """
        for stitch in self.stitches:
            if stitch.is_anchor and stitch.front == anchor:
                return stitch.stitch_id
        raise ValueError(f"anchor {anchor} alone is not a stitch of this plan; its anchors are {self.anchor_names}.")

    @property
    def anchor_names(self) -> list[str]:
        """The anchors' names, fastest first."""
        return [anchor.name for anchor in self.anchors]

    def pairs(self, layer: int) -> list[tuple[int, int]]:
        """List the distinct (front boundary, back boundary) pairs that a stitching layer joins, ascending."""
        return sorted(
            {(a.stop, b.start) for stitch in self.stitches for number, a, b in stitch.joints if number == layer}
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert the plan to JSON-serialisable values, which `StitchPlan.from_dict` reads back."""
        return {
            "version": _FORMAT_VERSION,
            "anchors": [
                {"name": a.name, "widths": list(a.widths), "reductions": list(a.reductions)}
                | ({"stage_starts": list(a.stage_starts)} if a.stage_starts else {})
                for a in self.anchors
            ],
            "layers": [asdict(layer) for layer in self.layers],
            "stitches": [
                {
                    "stitch_id": s.stitch_id,
                    "segments": [[g.anchor, g.start, g.stop] for g in s.segments],
                    "layers": list(s.layers),
                }
                for s in self.stitches
            ],
        }

    @classmethod
    def from_dict(cls, data: JsonObject) -> StitchPlan:
        """Build a plan from the dict that `to_dict` returned.

        Raises:
            ValueError: if it is not a plan, has a newer format, or is larger than any network needs.
        """
        version = data.get("version") if isinstance(data, Mapping) else None
        if version != _FORMAT_VERSION:
            raise ValueError(
                f"this is no stitch plan of format {_FORMAT_VERSION} (its version is {version!r}): "
                "expected what StitchPlan.to_dict() writes; a newer file needs a newer timm_stitch."
            )
        try:
            check_saved_plan(data)
            anchors = tuple(
                Anchor(str(a["name"]), _ints(a["widths"]), _ints(a["reductions"]), _ints(a.get("stage_starts", ())))
                for a in data["anchors"]
            )
            layers = tuple(LayerSpec(**{k: _int(v) for k, v in layer.items()}) for layer in data["layers"])
            stitches = []
            for s in data["stitches"]:
                segments = tuple(Segment(*_ints(g)) for g in s["segments"])
                stitches.append(Stitch(_int(s["stitch_id"]), segments, _ints(s["layers"])))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"this stitch plan lacks or garbles a field ({error!r:.160}): expected what StitchPlan.to_dict() "
                "writes."
            ) from None
        return cls(anchors, layers, tuple(stitches))


def _int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not an int")
    return value


def _ints(values: Iterable[object]) -> tuple[int, ...]:
    return tuple(_int(value) for value in values)
