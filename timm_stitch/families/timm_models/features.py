"""Feature maps of a stitch: where they are taken, and the module that gives them to heads of dense tasks."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...anchors.view import Context, View
from ...network.executor import Executor
from ...network.extraction import blocks_of
from ...plan.stitch_plan import Stitch
from .timm_compat import FeatureGetterNet


class Tap(NamedTuple):
    """One place along a path where features are taken.

    Args:
        after: the block that gives them, counted along the path; -1 for the stem, -2 for a map inside the stem.
        anchor: whose boundary it is.
        boundary: behind the block or the stem; what is inside the stem has none.
        module: the name of what gives them.
        channels, reduction: of the map.
    """

    after: int
    anchor: int
    boundary: int
    module: str
    channels: int
    reduction: int

    @property
    def info(self) -> dict[str, Any]:
        """As timm's `feature_info` has it."""
        return {"module": f"anchors.{self.anchor}.{self.module}", "num_chs": self.channels, "reduction": self.reduction}


def is_by_level(views: Sequence[View], stitch: Stitch) -> bool:
    """Whether a stitch changes the resolution, so that features are one a level."""
    return len({views[anchor].reductions[block + 1] for anchor, block in blocks_of(stitch)}) > 1


def taps_of(views: Sequence[View], stitch: Stitch, by_level: bool) -> list[Tap]:
    """Where a stitch gives features: behind every block, or behind the last of each resolution.

    With the latter also what the stem makes at a resolution of its own.
    """
    path = []
    for n, (anchor, block) in enumerate(blocks_of(stitch)):
        view, end = views[anchor], block + 1
        path.append(Tap(n, anchor, end, view.block_name(block), view.widths[end], view.reductions[end]))
    if not by_level:
        return path
    last = len(path) - 1
    taps = [tap for n, tap in enumerate(path) if n == last or path[n + 1].reduction != tap.reduction]
    front = views[stitch.front]
    if front.reductions[0] != path[0].reduction:
        stem = front.names()["stem"][-1]
        taps.insert(0, Tap(-1, stitch.front, 0, stem, front.widths[0], front.reductions[0]))
    if front.early is not None:
        taps.insert(0, Tap(-2, stitch.front, 0, *front.early))
    return taps


def run_to(
    executor: Executor, stitch: Stitch, context: Context, wanted: Container[int], last: int | None
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run the blocks of a stitch and keep what leaves some of them.

    Args:
        executor: runs.
        stitch: what.
        context: of the call.
        wanted: the `after` of the taps.
        last: after which to stop; None for all.

    Returns:
        What left the last block that ran, and what was wanted.
    """
    front, n = executor.views[stitch.front], 0
    found: dict[int, Tensor] = {}
    if -2 in wanted:
        found[-2], h = front.stem_in_two(context.images)
    else:
        h = front.stem(context.images)
    if -1 in wanted:
        found[-1] = h
    for i, segment in enumerate(stitch.segments):
        if last is not None and n > last:
            break
        if i:
            h = executor.cross(stitch.layers[i - 1], h, stitch.segments[i - 1], segment, context)
        for block in range(segment.start, segment.stop):
            if last is not None and n > last:
                break
            h = executor.views[segment.anchor].run(h, block, block + 1, context)
            if n in wanted:
                found[n] = h
            n += 1
    return h, found


class Features(FeatureGetterNet):
    """timm's module around a model for its feature maps, with a default that looks at the network.

    Args:
        model: the network.
        out_indices: as timm's; None for every level of a staged network, and the last three blocks of others.
        **kwargs: as timm's.
    """

    def __init__(self, model: Any, out_indices: int | Sequence[int] | None = None, **kwargs: Any) -> None:
        levels = [info["reduction"] for info in model.feature_info]
        default = len(levels) if len(set(levels)) > 1 else 3
        wanted = default if out_indices is None else out_indices
        super().__init__(model, wanted if isinstance(wanted, int) else tuple(wanted), **kwargs)
