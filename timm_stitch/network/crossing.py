"""Crossings from one segment into the next: where two anchors' activations correspond, and how one becomes the other.

Anchors of one layout meet in that layout, others as maps. Prefix tokens (class, registers) that both anchors have
cross too; the back adds those that only it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..anchors.view import CallInputs, View
from ..plan.stitch_plan import StitchPlan


def cross(layer: nn.Module, h: Tensor, front: View, leave: int, back: View, enter: int, inputs: CallInputs) -> Tensor:
    """Carry an activation from one segment into the next through a stitching layer.

    Args:
        layer: the stitching layer.
        h: the activation at boundary `leave` of the front.
        front, back: the anchors before and after the crossing.
        leave, enter: the boundaries where it leaves the front and enters the back.
        inputs: the inputs of the call.

    Returns:
        The activation at boundary `enter` of the back.
    """
    left, entered = front.form_at(leave), back.form_at(enter)
    if left == entered:
        return map_channels(layer, h, left[0])
    spatial = _apply_to_map(layer, front.as_map(h, inputs.size, leave))
    carried = min(left[1], entered[1])
    prefix = front.prefix(h, leave) if carried else None
    if prefix is not None:
        prefix = _apply_channels_last(layer, prefix[:, :carried])
    return back.from_map(spatial, prefix, enter)


def map_channels(layer: nn.Module, h: Tensor, layout: str) -> Tensor:
    """Apply a layer to the channels of an activation of this layout."""
    return _apply_to_map(layer, h) if layout == "NCHW" else _apply_channels_last(layer, h)


def _apply_channels_last(layer: nn.Module, h: Tensor) -> Tensor:
    """Apply a layer to an activation whose channels are last."""
    mapped: Tensor = layer(h)
    return mapped


def _apply_to_map(layer: nn.Module, h: Tensor) -> Tensor:
    """Apply a layer to a map (B, C, H, W), as (B, H * W, C).

    A 1x1 convolution would save the copy at the end: a third of this layer's time, less than a hundredth of a
    stitch's. But its weight would have four dimensions, where saved files have two.
    """
    height, width = h.shape[-2], h.shape[-1]
    mapped: Tensor = layer(h.flatten(2).transpose(1, 2))
    spatial: Tensor = mapped.transpose(1, 2).unflatten(2, (height, width))
    return spatial.contiguous()


class Join(NamedTuple):
    """A linear map between activations of two anchors, which least squares can fit.

    Args:
        layer: the map.
        front, back: the numbers of the anchors.
        pairs: the boundaries of the two that it joins, each with those of the same images.
    """

    layer: nn.Module
    front: int
    back: int
    pairs: Sequence[tuple[int, int]]


class SharedPositions(NamedTuple):
    """The positions at which the activations of two anchors correspond.

    Args:
        prefixes: the number of leading prefix tokens that both have.
        size: (height, width) of the part that both maps have, or None if the activations are not maps (B, C, H, W).
    """

    prefixes: int
    size: tuple[int, int] | None = None


def shared_positions(
    leaving: Tensor, entering: Tensor, front: View, leave: int, back: View, enter: int, inputs: CallInputs
) -> SharedPositions:
    """Find the positions that the activations of two anchors share.

    Where strided layers pad differently, one map is a row or a column larger: the smaller size counts.

    Args:
        leaving, entering: the activations of the two anchors for the same images.
        front, back: the anchors.
        leave, enter: the boundaries of the activations.
        inputs: the inputs of the call.

    Raises:
        ValueError: if the anchors meet as maps and an activation is not a map.
    """
    (layout, leaving_prefix), (entering_layout, entering_prefix) = front.form_at(leave), back.form_at(enter)
    prefixes = min(leaving_prefix, entering_prefix)
    if layout != entering_layout:  # they meet as maps, as in `cross`
        front.as_map(leaving, inputs.size, leave), back.as_map(entering, inputs.size, enter)
    elif layout == "NCHW":
        height, width = (min(sides) for sides in zip(leaving.shape[2:], entering.shape[2:], strict=True))
        return SharedPositions(prefixes, (height, width))
    return SharedPositions(prefixes)


def rows_at(view: View, h: Tensor, boundary: int, positions: SharedPositions, inputs: CallInputs) -> Tensor:
    """Flatten an activation to one row per shared position, (n, C)."""
    if positions.size is not None:
        height, width = positions.size
        h = h[..., :height, :width]
    return view.rows_at(h, positions.prefixes, inputs, boundary)


def uses_back_prefix_tokens(plan: StitchPlan, views: Sequence[View], number: int) -> bool:
    """Whether the back anchor adds its own prefix tokens after a stitching layer."""
    spec = plan.layers[number]
    front, back = views[spec.front], views[spec.back]
    return any(front.form_at(leave)[1] < back.form_at(enter)[1] for leave, enter in plan.pairs(number))
