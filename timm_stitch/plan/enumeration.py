"""Enumeration of stitches: fast-to-slow, slow-to-fast, two-way, windows, nearest and all routes.

Follows Figure 3 of SN-Net (arXiv:2302.06586) and of SN-Netv2 (arXiv:2307.00154). A joint `(j, k)` means: the front
runs its blocks 0 … j, the back its blocks k … last. Joints in one sliding window share one stitching layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from ..choices import DIRECTIONS, Direction
from .bounds import MOST_STITCHES, check_routes, too_many
from .stitch_plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan

Joint = tuple[int, int]
Joints = dict[tuple[int, int], list[tuple[Joint, int]]]  # by (front, back): joints with the numbers of their layers
Route = tuple[tuple[Segment, ...], tuple[int, ...]]  # segments, and the layers between them


@dataclass(frozen=True)
class PlanOptions:
    """The choice of stitches between anchors.

    Args:
        direction, nearest, kernel_size, stride, rank: the arguments of `enumerate_stitches`.
        plan: a plan to use instead of these five, or a function that makes one from the anchors.
    """

    direction: Direction = "fast_to_slow"
    nearest: bool = True
    kernel_size: int = 2
    stride: int = 1
    rank: int = 0
    plan: StitchPlan | Callable[[Sequence[Anchor]], StitchPlan] | None = None

    def make(self, anchors: Sequence[Anchor]) -> StitchPlan:
        """Make the plan of these anchors, from the fastest to the slowest.

        Raises:
            ValueError: for the reasons of `enumerate_stitches`.
        """
        if self.plan is None:
            return enumerate_stitches(anchors, self.direction, self.nearest, self.kernel_size, self.stride, self.rank)
        return self.plan if isinstance(self.plan, StitchPlan) else self.plan(anchors)


def enumerate_stitches(
    anchors: Sequence[Anchor],
    direction: Direction = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    rank: int = 0,
) -> StitchPlan:
    """Make the plan of SN-Net or SN-Netv2: every anchor alone, then every stitch between anchors.

    `stitch` and `create_snnet` call it with the same options. It needs descriptions of the anchors only, no weights, so
    it answers at once which stitches a choice of options gives. docs/choose_stitches.md draws each option.

    Args:
        anchors: two or more anchors, from the fastest to the slowest.
        direction: `"fast_to_slow"` puts the faster anchor in front (the paper's choice), `"slow_to_fast"` the slower.
            `"two_way"` is SN-Netv2: two anchors meet at equal shares of their depth, in either direction, and a
            stitch may return to its first anchor.
        nearest: whether to join only neighbours in size (the paper's choice). False joins all pairs, and adds the
            routes through three or more anchors.
        kernel_size: the number of blocks in the sliding window, for anchors of equal depth; the paper uses 2. Every
            block of a window is joined to every block of it, and all these stitches share one stitching layer. 1
            joins equal positions only. It has no effect on `"two_way"`, or where depths differ: there each block of
            the deeper anchor is joined to the nearest block of the other.
        stride: the number of blocks between two windows, at most `kernel_size`; the paper uses 1. A larger stride
            gives fewer stitches and fewer stitching layers. It has no effect where `kernel_size` has none.
        rank: the rank of the stitching layers' low-rank updates (SN-Netv2 uses 64); 0 for plain layers. It changes
            what a stitching layer learns, not which stitches there are.

    Returns:
        A plan whose ids ascend from 0: the anchors first, then pair by pair in the order of the authors' tables.
        With `"two_way"` one id per pair stays unused, as in those tables (13): a stitch after the faster anchor's last
        block would only swap the head.

    Raises:
        ValueError: if there is nothing to join, the window does not fit, or there would be too many stitches.

    Examples:
        The plan of the paper, from three DeiTs of 12 blocks:

        >>> from timm_stitch import Anchor, enumerate_stitches
        >>> anchors = [Anchor(f"deit_{size}", (width,) * 13, (16,) * 13)
        ...            for size, width in [("tiny", 192), ("small", 384), ("base", 768)]]
        >>> plan = enumerate_stitches(anchors)
        >>> len(plan), plan[24].name
        (71, 'deit_tiny[0:8] + deit_small[7:12]')

        Each option changes how many stitches and stitching layers there are:

        >>> def size(**options):
        ...     plan = enumerate_stitches(anchors, **options)
        ...     return len(plan), len(plan.layers)
        >>> size(kernel_size=1), size(kernel_size=3), size(kernel_size=2, stride=2)
        ((27, 24), (111, 20), (51, 12))
        >>> size(nearest=False), size(direction="two_way")
        ((732, 33), (267, 44))
        >>> enumerate_stitches(anchors, direction="slow_to_fast")[24].name
        'deit_small[0:8] + deit_tiny[7:12]'
        >>> enumerate_stitches(anchors, direction="two_way", rank=64).layers[0]
        LayerSpec(front=0, back=1, in_width=192, out_width=384, rank=64)
    """
    anchors = tuple(anchors)
    _check_arguments(anchors, direction, kernel_size, stride, rank)
    if direction == "two_way":
        numbers = range(len(anchors))
        return _two_way(anchors, list(pairwise(numbers) if nearest else combinations(numbers, 2)), rank)
    order = range(len(anchors)) if direction == "fast_to_slow" else range(len(anchors) - 1, -1, -1)
    if nearest:
        routes: list[tuple[int, ...]] = sorted(pairwise(order), key=min)
    else:
        if 2 ** len(anchors) > MOST_STITCHES:
            raise too_many()
        routes = [route for n in range(2, len(anchors) + 1) for route in combinations(order, n)]

    # 1. The joints of every pair of anchors on a route, and their stitching layers.
    layers: list[LayerSpec] = []
    joints: Joints = {}
    for front, back in sorted({pair for route in routes for pair in pairwise(route)}, key=lambda p: (min(p), max(p))):
        joints[front, back] = _join(anchors, front, back, kernel_size, stride, layers, rank)
        if not joints[front, back]:
            raise _meet_nowhere(anchors[front], anchors[back])
        if len(anchors) + sum(map(len, joints.values())) > MOST_STITCHES:
            raise too_many()
    if not nearest:
        depths = {i: anchor.depth for i, anchor in enumerate(anchors)}
        check_routes(order, depths, {pair: [joint for joint, _ in numbered] for pair, numbered in joints.items()})

    # 2. The stitches: every anchor alone, then every choice of joints along every route.
    alone: list[Route] = [((Segment(i, 0, anchor.depth),), ()) for i, anchor in enumerate(anchors)]
    joined = [walk for route in routes for walk in _routes(anchors, route, joints)]
    stitches = (Stitch(i, segments, used) for i, (segments, used) in enumerate([*alone, *joined]))
    return StitchPlan(anchors, tuple(layers), tuple(stitches))


def _check_arguments(
    anchors: tuple[Anchor, ...], direction: Direction, kernel_size: int, stride: int, rank: int
) -> None:
    if len(anchors) < 2:
        raise ValueError(f"stitching needs two or more anchors, got {len(anchors)}.")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, DIRECTIONS))}, got {direction!r}.")
    depth = max(len(stage) for anchor in anchors for stage in anchor.stages)
    if not 1 <= kernel_size <= depth:
        raise ValueError(
            f"kernel_size must be from 1 to the anchors' depth {depth}, got {kernel_size}. SN-Net uses kernel_size=2, "
            "stride=1."
        )
    if not 1 <= stride <= kernel_size:
        raise ValueError(
            f"stride must be from 1 to kernel_size={kernel_size}, so that no block is skipped, got {stride}. SN-Net "
            "uses kernel_size=2, stride=1."
        )
    narrowest = min(min(anchor.widths) for anchor in anchors)
    if not 0 <= rank <= narrowest:
        raise ValueError(
            f"rank must be from 0 (plain layers) to the anchors' smallest width {narrowest}, got {rank}. SN-Netv2 "
            "uses rank=64."
        )


def _meet_nowhere(front: Anchor, back: Anchor) -> ValueError:
    return ValueError(
        f"{front.name!r} and {back.name!r} meet nowhere: their blocks give 1/{sorted(set(front.reductions))} and "
        f"1/{sorted(set(back.reductions))} of the image. Use anchors with equal patch or stage sizes."
    )


def windows(depth: int, kernel_size: int, stride: int) -> Iterator[list[Joint]]:
    """Yield the joints that each position of the window adds, for two anchors of one depth.

    All ordered pairs of blocks inside the window count, also those with `j > k`. Windows that reach past the last
    block are cut off there; a position without a new joint is skipped.
    """
    seen: set[Joint] = set()
    for first in range(0, depth, stride):
        blocks = range(first, min(first + kernel_size, depth))
        new = [(j, k) for j in blocks for k in blocks if (j, k) not in seen]
        seen.update(new)
        if new:
            yield new


def nearest_blocks(front_depth: int, back_depth: int) -> Iterator[list[Joint]]:
    """Yield the joints of anchors of unequal depth: each block of the deeper one meets its nearest.

    Joints with the same block of the shallower anchor share a stitching layer. The joint of the two first blocks is
    left out, as the authors do.
    """
    shallow, deep = sorted((front_depth, back_depth))
    for block in range(shallow):
        partners = [d for d in range(deep) if d * shallow // deep == block and d > 0]
        joints = [(block, d) if front_depth == shallow else (d, block) for d in partners]
        if joints:
            yield joints


def _join(
    anchors: tuple[Anchor, ...],
    front: int,
    back: int,
    kernel_size: int,
    stride: int,
    layers: list[LayerSpec],
    rank: int,
) -> list[tuple[Joint, int]]:
    """List all joints of a front and a back, stage by stage, with the numbers of their layers.

    New layers are appended to `layers`. A window needs several layers where the channels change inside it. Blocks of
    different spatial sizes are not joined, and nothing enters a stage's first block, which takes the map of the stage
    before.
    """
    joints: list[tuple[Joint, int]] = []
    a, b = anchors[front], anchors[back]
    for level, a_blocks in a.stage_at.items():
        if level not in b.stage_at:
            continue
        b_blocks = b.stage_at[level]
        equal = len(a_blocks) == len(b_blocks)
        groups = windows(len(a_blocks), kernel_size, stride) if equal else nearest_blocks(len(a_blocks), len(b_blocks))
        for group in groups:
            shared: dict[tuple[int, int], int] = {}
            for j, k in ((a_blocks[j], b_blocks[k]) for j, k in group):
                if a.reductions[j + 1] != b.reductions[k] or k in b.stage_starts:
                    continue
                widths = a.widths[j + 1], b.widths[k]
                if widths not in shared:
                    shared[widths] = len(layers)
                    layers.append(LayerSpec(front, back, *widths, rank))
                joints.append(((j, k), shared[widths]))
            if len(joints) > MOST_STITCHES:
                raise too_many()
    return joints


def _routes(anchors: tuple[Anchor, ...], route: tuple[int, ...], joints: Joints) -> Iterator[Route]:
    """Yield every way through the anchors of `route` in which each runs at least one block."""

    def walk(position: int, start: int) -> Iterator[Route]:
        anchor = route[position]
        if position == len(route) - 1:
            yield (Segment(anchor, start, anchors[anchor].depth),), ()
            return
        for (j, k), layer in joints[anchor, route[position + 1]]:
            if j >= start:
                for segments, numbers in walk(position + 1, k):
                    yield (Segment(anchor, start, j + 1), *segments), (layer, *numbers)

    return walk(0, 0)


def shared_boundaries(a: Anchor, b: Anchor) -> list[tuple[int, int]]:
    """List the boundaries at equal shares of the depth of each stage, from the first to the last.

    A boundary of the shallower anchor after n blocks meets that of the deeper one after the same share of its blocks
    (rounded down): after 1, 2, 3 … of 12 and after 2, 4, 6 … of 24.
    """
    pairs = []
    for level, a_blocks in a.stage_at.items():
        b_blocks = b.stage_at.get(level, range(0))
        shallow = min(len(a_blocks), len(b_blocks))
        for n in range(1, shallow + 1):
            pairs.append((a_blocks.start + n * len(a_blocks) // shallow, b_blocks.start + n * len(b_blocks) // shallow))
    return pairs


def _two_way(anchors: tuple[Anchor, ...], pairs: Sequence[tuple[int, int]], rank: int) -> StitchPlan:
    """Make SN-Netv2's plan: stitches between each two anchors, in either direction, or there and back.

    Order for a faster `a` and a slower `b`: the anchors, a→b, one unused id, b→a, b→a→b, a→b→a.
    """
    layers: list[LayerSpec] = []
    stitches = [Stitch(i, (Segment(i, 0, a.depth),)) for i, a in enumerate(anchors)]
    next_id = len(anchors)
    meet = [min(anchors[a].depth, anchors[b].depth) for a, b in pairs]
    if sum(n * (n + 1) for n in meet) > MOST_STITCHES:  # n once each way, and n (n - 1) / 2 there and back
        raise too_many(advice="shallower ones, or nearest=True")
    for a, b in pairs:
        first, second = anchors[a], anchors[b]
        meeting = shared_boundaries(first, second)
        meeting = [(p, q) for p, q in meeting if p < first.depth and q < second.depth]
        if not meeting:
            raise _meet_nowhere(first, second)
        # One layer for each direction and meeting point.
        layer: dict[tuple[int, int], int] = {}
        for front, back in ((a, b), (b, a)):
            for n, at in enumerate(meeting):
                p, q = at if front == a else at[::-1]
                layer[front, n] = len(layers)
                layers.append(LayerSpec(front, back, anchors[front].widths[p], anchors[back].widths[q], rank))
        # Crossings of a stitch as (front, meeting point): one, or two of which the second leads back.
        once = [[(front, n)] for front in (a, b) for n in range(len(meeting))]
        twice = [[(f, n), (a + b - f, m)] for f in (b, a) for n, m in combinations(range(len(meeting)), 2)]
        for crossings in once + twice:
            if crossings == [(b, 0)]:
                next_id += 1  # the unused id: after the last block of `a`
            segments, start = [], 0
            for front, n in crossings:
                leave, enter = meeting[n] if front == a else meeting[n][::-1]
                segments.append(Segment(front, start, leave))
                start = enter
            end = a + b - crossings[-1][0]
            segments.append(Segment(end, start, anchors[end].depth))
            numbers = tuple(layer[crossing] for crossing in crossings)
            stitches.append(Stitch(next_id, tuple(segments), numbers))
            next_id += 1
    return StitchPlan(anchors, tuple(layers), tuple(stitches))
