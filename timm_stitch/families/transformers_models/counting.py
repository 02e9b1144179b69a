"""What each part of a stitched network of transformers' models costs.

Every anchor runs once on one text or image, on the device of its weights: a quarter of transformers' models do not run
on the meta device. The operations between two boundaries are counted as their layer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from ...anchors.macs import NORMS, Macs
from ...network.extraction import by_number
from ...network.modes import evaluating
from ...network.stitchable import StitchableNetwork
from ...plan.costs import AnchorCosts, Cost, PlanCosts
from ...plan.steps import Block, Cross, Head, Stem, Step
from ...plan.stitch_plan import Segment, Stitch
from .inputs import TextInputs
from .layer_list import PartialForward, running
from .task_names import UNSUPPORTED
from .views import TransformersView


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    """Count the flops of attention by a fused kernel of the CPU, which torch's registry does not know."""
    rows = query.shape[0] * query.shape[1]
    return 2 * rows * query.shape[2] * key.shape[2] * (query.shape[3] + value.shape[3])


_COUNTED = {**NORMS, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class _CountedActivations(dict[int, Tensor]):
    """Activations by their boundary, and the multiply-adds counted until each boundary."""

    def __init__(self, counter: Macs) -> None:
        super().__init__()
        self.counter, self.macs = counter, dict[int, int]()

    def __setitem__(self, boundary: int, h: Tensor) -> None:
        self.macs[boundary] = self.counter.total
        super().__setitem__(boundary, h)


@torch.no_grad()
def measure(network: StitchableNetwork, inputs: TextInputs) -> PlanCosts:
    """Measure the costs of every part that a network holds.

    Args:
        network: the network.
        inputs: one text or image.

    Returns:
        Multiply-adds and parameters by part; None for parts that the network does not hold (after `extract`).

    Raises:
        ValueError: if it is on the meta device.
    """
    if any(p.is_meta for p in network.parameters()):
        raise ValueError(UNSUPPORTED["plan_without_weights"])
    macs: dict[Step, int] = {}
    positions: dict[tuple[int, int], int] = {}  # by anchor and boundary
    with evaluating(network):
        for stitch in sorted(network.plan, key=lambda s: len(s.segments)):
            if not macs.keys() >= {step for step in stitch.steps if not isinstance(step, Cross)}:
                _count_stitch(network, stitch, inputs, macs, positions)
    used = {segment.anchor for stitch in network.plan for segment in stitch.segments}
    views = cast("Sequence[TransformersView]", network.views)
    anchors = tuple(_anchor_costs(view, macs) if view.number in used else None for view in views)
    fronts: dict[int, Segment] = {}  # the segment before each stitching layer
    for stitch in network.plan:
        for number, front, _ in stitch.joints:
            fronts.setdefault(number, front)
    layers: list[Cost | None] = [None] * len(network.plan.layers)
    for number, layer in by_number(network.stitching_layers).items():
        if number not in fronts:
            continue
        spec, front = network.plan.layers[number], fronts[number]
        count = positions[front.anchor, front.stop] * spec.in_width * spec.out_width
        layers[number] = Cost(count, sum(p.numel() for p in layer.parameters()))
    return PlanCosts(anchors, tuple(layers))


def _count_stitch(
    network: StitchableNetwork,
    stitch: Stitch,
    inputs: TextInputs,
    macs: dict[Step, int],
    positions: dict[tuple[int, int], int],
) -> None:
    """Run a stitch, and add the multiply-adds of its steps and the positions at its boundaries."""
    h: Tensor | None = None
    for i, segment in enumerate(stitch.segments):
        view, is_last = cast("TransformersView", network.views[segment.anchor]), segment is stitch.segments[-1]
        if h is not None:
            number, front, back = stitch.joints[i - 1]
            h = network.executor.cross(number, h, (front.anchor, front.stop), (back.anchor, back.start), inputs)
        counter = Macs(_COUNTED)
        activations = _CountedActivations(counter)
        boundaries, stop = range(segment.start, segment.stop + 1), None if is_last else segment.stop
        partial = PartialForward(view.layers, segment.start, stop, h, boundaries, activations)
        with running(partial), counter:
            view.call(inputs, h, ending=None if is_last else partial)
        for boundary in boundaries:
            h = activations[boundary]
            positions[segment.anchor, boundary] = h.numel() // view.widths[boundary]
            if boundary > segment.start:
                count = activations.macs[boundary] - activations.macs[boundary - 1]
                macs[Block(segment.anchor, boundary - 1)] = count
        macs[Stem(segment.anchor)] = activations.macs[segment.start]
        if is_last:
            for is_stitched in (False, True):
                macs[Head(segment.anchor, is_stitched)] = counter.total - activations.macs[segment.stop]


def _anchor_costs(view: TransformersView, macs: dict[Step, int]) -> AnchorCosts:
    """The costs of the parts of one anchor."""
    own = dict(view.anchor.named_parameters())
    spec, number = view.spec, view.number
    before, layers = set(spec.before), spec.layers_path + "."
    embeddings = {f"{name}.weight" for name in spec.droppable_embeddings} - set(spec.after)

    def params(names: Iterable[str]) -> int:
        return sum(own[name].numel() for name in names if name in own)

    stem = macs.get(Stem(number), 0)
    blocks = (
        Cost(macs.get(Block(number, i), 0), params(name for name in own if name.startswith(f"{layers}{i}.")))
        for i in range(view.depth)
    )
    behind = params(name for name in own if not name.startswith(layers) and name not in before)
    return AnchorCosts(
        stem=Cost(stem, params(before)),
        embeddings=0,
        blocks=tuple(blocks),
        norm=Cost(),
        head=Cost(macs.get(Head(number, False), 0), behind),
        entered=Cost(stem, params(before - embeddings)),
    )
