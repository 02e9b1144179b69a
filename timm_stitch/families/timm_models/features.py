"""Feature maps of a stitch: where they are taken, and the module that gives them to a dense head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...anchors.block_view import BlockView, StemOnly
from ...anchors.view import ImageInputs
from ...network.extraction import Network, blocks_of, empty_twin, with_gaps
from ...network.image_executor import ImageExecutor
from ...plan.steps import Block
from ...plan.stitch_plan import Segment, Stitch, StitchPlan
from .timm_compat import FeatureGetterNet

INSIDE_STEM, STEM = 0, 1  # the first places where features are taken, as numbers of steps


class FeaturePoint(NamedTuple):
    """One place along a path where features are taken.

    Args:
        place: the number of steps after which they are taken; `INSIDE_STEM`, `STEM`, or more behind a block.
        anchor: the number of the anchor.
        boundary: the anchor's boundary; a map inside the stem has none.
        module: the name of the module that gives them.
        channels, reduction: the channels and the reduction of the map.
    """

    place: int
    anchor: int
    boundary: int
    module: str
    channels: int
    reduction: int

    @property
    def info(self) -> dict[str, Any]:
        """The point as an entry of timm's `feature_info`."""
        return {"module": f"anchors.{self.anchor}.{self.module}", "num_chs": self.channels, "reduction": self.reduction}


def is_by_level(views: Sequence[BlockView], stitch: Stitch) -> bool:
    """Whether a stitch changes the resolution, so that features are one a level."""
    return len({views[anchor].reductions[block + 1] for anchor, block in blocks_of(stitch)}) > 1


def feature_points(views: Sequence[BlockView], stitch: Stitch, by_level: bool) -> list[FeaturePoint]:
    """List where a stitch gives features: behind every block, or behind the last of each resolution.

    With the latter also what the stem makes at a resolution of its own.
    """
    path = []
    for n, step in enumerate(stitch.steps):
        if isinstance(step, Block):
            view, end = views[step.anchor], step.index + 1
            name = view.block_name(step.index)
            path.append(FeaturePoint(n + 1, step.anchor, end, name, view.widths[end], view.reductions[end]))
    if not by_level:
        return path
    last = len(path) - 1
    points = [point for n, point in enumerate(path) if n == last or path[n + 1].reduction != point.reduction]
    front = views[stitch.front]
    if front.reductions[0] != path[0].reduction:
        stem = front.parameter_groups().stem[-1]
        points.insert(0, FeaturePoint(STEM, stitch.front, 0, stem, front.widths[0], front.reductions[0]))
    if front.early is not None:
        points.insert(0, FeaturePoint(INSIDE_STEM, stitch.front, 0, *front.early))
    return points


def run_to_points(
    executor: ImageExecutor, stitch: Stitch, inputs: ImageInputs, places: Collection[int], end: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run a stitch and keep the activations at some feature points.

    Args:
        executor: the executor that runs it.
        stitch: the stitch.
        inputs: the inputs of the call.
        places: the `place` of each point.
        end: the number of steps to run.

    Returns:
        The activation behind the last step, and those at the points by their places.
    """
    if INSIDE_STEM not in places:
        return executor.advance(stitch, 0, end, None, inputs, places)
    inside, stem = executor.views[stitch.front].stem_in_two(inputs.images)
    h, kept = executor.advance(stitch, STEM, end, stem, inputs, places)
    return h, {INSIDE_STEM: inside, STEM: stem, **kept}


def extract_stem(network: Network, front: int, early: bool) -> Network:
    """A network that ends with the stem of anchor number `front`, or with the map inside it that its view names."""
    view = StemOnly(network.executor.views[front].subset(True, (), False, False), early)
    plan = StitchPlan((view.describe(),), (), (Stitch(0, (Segment(0, 0, 1),)),))
    twin = empty_twin(network, plan)
    twin.anchors, twin.stitching_layers = with_gaps([view.anchor]), with_gaps([])
    twin.executor = type(network.executor)([view], twin.stitching_layers, network.executor.stitched_norm)
    return twin


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
