"""Feature maps of a stitch: the places where they are taken, and the module that gives them to a dense head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import compress, pairwise
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from ...anchors.block_view import BlockView, StemOnly
from ...anchors.view import ImageInputs
from ...network.extraction import Network, NumberedModules, empty_twin, extract
from ...network.image_executor import ImageExecutor
from ...plan.levels import INSIDE_STEM, STEM
from ...plan.steps import Block
from ...plan.stitch_plan import Anchor, Segment, Stitch, StitchPlan
from .timm_compat import FeatureGetterNet, feature_take_indices


class FeatureEntry(TypedDict):
    """An entry of timm's `feature_info`."""

    module: str
    num_chs: int
    reduction: int


class FeaturePoint(NamedTuple):
    """One place along a path where features are taken.

    Args:
        place: the number of steps before it: `INSIDE_STEM`, `STEM`, or more behind a block.
        anchor: the number of the anchor.
        boundary: the anchor's boundary; a map inside the stem has none.
        module: the name of the module whose output is taken.
        channels, reduction: the channels and the reduction of the map.
    """

    place: int
    anchor: int
    boundary: int
    module: str
    channels: int
    reduction: int

    @property
    def info(self) -> FeatureEntry:
        """The point as an entry of timm's `feature_info`."""
        return {"module": f"anchors.{self.anchor}.{self.module}", "num_chs": self.channels, "reduction": self.reduction}


def feature_points(
    views: Sequence[BlockView], anchors: Sequence[Anchor], stitch: Stitch, by_level: bool
) -> list[FeaturePoint]:
    """List the feature points of a stitch: behind every block, or behind the last of each stage.

    The latter include maps of the stem at a resolution of its own.

    Args:
        views: the views of the anchors.
        anchors: the anchors as the plan describes them.
        stitch: the stitch.
        by_level: whether to take the last block of each stage.
    """
    path, levels = [], []
    for n, step in enumerate(stitch.steps):
        if isinstance(step, Block):
            view, end = views[step.anchor], step.index + 1
            name = view.block_name(step.index)
            path.append(FeaturePoint(n + 1, step.anchor, end, name, view.widths[end], view.reductions[end]))
            levels.append(anchors[step.anchor].levels[step.index])
    if not by_level:
        return path
    ends = [*(before != after for before, after in pairwise(levels)), True]
    points = list(compress(path, ends))
    front = views[stitch.front]
    if front.reductions[0] != path[0].reduction:
        stem = front.parameter_groups().stem[-1]
        points.insert(0, FeaturePoint(STEM, stitch.front, 0, stem, front.widths[0], front.reductions[0]))
    if front.early is not None:
        points.insert(0, FeaturePoint(INSIDE_STEM, stitch.front, 0, *front.early))
    return points


def take_points(
    points: Sequence[FeaturePoint], indices: int | Sequence[int] | None, stitch: Stitch, by_level: bool
) -> tuple[list[int], int]:
    """Choose among the feature points of a stitch as timm's models do.

    Args:
        points: the feature points.
        indices: the numbers of points, the number of the last, or None for all.
        stitch: the stitch.
        by_level: whether there is a point for each stage.

    Returns:
        The numbers of the points, and the largest of them.

    Raises:
        ValueError: if there are no such points.
    """
    whole = (
        f"stitch {stitch.stitch_id} has {len(points)} {'levels' if by_level else 'blocks'}. With stitches='all' they "
        "count in the largest anchor, and mean the same depth in every stitch."
    )
    return take_indices(len(points), indices, whole)


def take_indices(count: int, indices: int | Sequence[int] | None, whole: str) -> tuple[list[int], int]:
    """Turn timm's `out_indices` into numbers from 0.

    Args:
        count: the number of things to choose from.
        indices: the numbers of some, negative ones from the end; the number of the last; or None for all.
        whole: the sentence of an error about all that there is to choose from.

    Returns:
        The numbers, and the largest of them.

    Raises:
        ValueError: if there are no such numbers.
    """
    wanted = indices if indices is None or isinstance(indices, int) else list(indices)
    if isinstance(wanted, int):
        fits = 0 < wanted <= count
    else:
        fits = wanted is None or (bool(wanted) and all(-count <= i < count for i in wanted))
    if not fits:
        raise ValueError(
            f"indices must be from {-count} to {count - 1}, or the number of the last, got {indices}: {whole}"
        )
    return feature_take_indices(count, wanted)


def run_to_points(
    executor: ImageExecutor,
    stitch: Stitch,
    inputs: ImageInputs,
    places: Collection[int],
    end: int,
    start: int = 0,
    h: Tensor | None = None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run a stitch and keep the activations at some feature points.

    Args:
        executor: the executor that runs the stitch.
        stitch: the stitch to run.
        inputs: the inputs of the call.
        places: the `place` of each point.
        end: the number of steps to run.
        start: the number of steps that have run already.
        h: the activation behind these.

    Returns:
        The activation behind the last step, and those at the points by their places.
    """
    if INSIDE_STEM not in places or start:
        return executor.advance(stitch, start, end, h, inputs, places)
    inside, stem = executor.views[stitch.front].stem_in_two(inputs.images)
    h, kept = executor.advance(stitch, STEM, end, stem, inputs, places)
    return h, {INSIDE_STEM: inside, STEM: stem, **kept}


def extract_stem(network: Network, front: int, early: bool) -> Network:
    """Extract a network that ends with the stem of anchor number `front`, or with the `early` map inside it."""
    view = StemOnly(network.executor.views[front].subset(True, (), False, False), early)
    plan = StitchPlan((view.describe(),), (), (Stitch(0, (Segment(0, 0, 1),)),))
    twin = empty_twin(network, plan)
    twin.anchors, twin.stitching_layers = NumberedModules({0: view.anchor}), NumberedModules({})
    twin.executor = type(network.executor)([view], twin.stitching_layers, network.executor.stitched_norm)
    return twin


def extract_until(network: Network, stitch: Stitch, steps: int, norm: bool, head: bool) -> Network:
    """Extract a network of one stitch that ends after some of its steps, the last of which is a block.

    Args:
        network: the whole network.
        stitch: the stitch.
        steps: the number of steps to keep.
        norm, head: whether to keep those.
    """
    segments, left = [], sum(isinstance(step, Block) for step in stitch.steps[:steps])
    for segment in stitch.segments:
        if left:
            segments.append(replace(segment, stop=min(segment.stop, segment.start + left)))
            left -= segments[-1].stop - segment.start
    end, anchors = segments[-1], list(network.plan.anchors)
    anchors[end.anchor] = anchors[end.anchor].truncate(end.stop)
    short = replace(stitch, segments=tuple(segments), layers=stitch.layers[: len(segments) - 1])
    pruned = extract(network, StitchPlan(tuple(anchors), network.plan.layers, (short,)), norm=norm, head=head)
    pruned.views[end.anchor].truncate(end.stop)
    return pruned


class Features(FeatureGetterNet):
    """timm's module that gives the feature maps of a model, with a default for stitchable networks.

    Args:
        model: the network.
        out_indices: timm's argument; None for every level of a staged network, and the last three blocks of others.
        **kwargs: further arguments of timm's module.
    """

    def __init__(self, model: Any, out_indices: int | Sequence[int] | None = None, **kwargs: Any) -> None:
        levels = [info["reduction"] for info in model.feature_info]
        default = len(levels) if len(set(levels)) > 1 else 3
        wanted = default if out_indices is None else out_indices
        super().__init__(model, wanted if isinstance(wanted, int) else tuple(wanted), **kwargs)
