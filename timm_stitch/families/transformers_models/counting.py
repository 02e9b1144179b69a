"""What each part of a stitched network of transformers' models costs.

Every anchor runs once on one text or image, where its weights are, with an eye on what is counted when a boundary is
crossed: on the meta device a quarter of transformers' models do not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...anchors.macs import NORMS, Macs
from ...network.modes import evaluating
from ...plan.costs import AnchorCosts, Cost, PlanCosts
from ...plan.steps import Block, Cross, Head, Stem, Step
from ...plan.stitch_plan import Stitch
from .inputs import TextInputs
from .layer_list import PartialForward, running
from .opening import probe
from .views import TransformersView

_aten = torch.ops.aten


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    """Flops of attention by a fused kernel of the CPU, which torch's registry does not know."""
    rows = query.shape[0] * query.shape[1]
    return 2 * rows * query.shape[2] * key.shape[2] * (query.shape[3] + value.shape[3])


_COUNTED = {**NORMS, _aten._scaled_dot_product_flash_attention_for_cpu: _attention}


class _Marks(dict[int, Tensor]):
    """Activations by their boundary, and what was counted when each was crossed."""

    def __init__(self, counter: Macs) -> None:
        super().__init__()
        self.counter, self.at = counter, dict[int, int]()

    def __setitem__(self, boundary: int, h: Tensor) -> None:
        self.at[boundary] = self.counter.total
        super().__setitem__(boundary, h)


@torch.no_grad()
def measure(network: Any, length: int) -> PlanCosts:
    """The costs of every part that a network holds, for one text of so many tokens or one image.

    Args:
        network: a stitched network of transformers' models; this file is below its class.
        length: in tokens.

    Returns:
        Multiply-adds and parameters by part; what the network does not hold (after `extract`) is None.

    Raises:
        ValueError: if its weights are not here.
    """
    if any(p.is_meta for p in network.parameters()):
        raise ValueError("costs of transformers' models are counted by running them: load the weights first.")
    used = {segment.anchor for stitch in network.plan for segment in stitch.segments}
    first: Any = network.views[min(used)].anchor
    given = probe(first, rows=1, length=length)
    given = {k: v[:1] for k, v in given.items()}
    inputs = TextInputs.of(given, network.shifts_labels)
    found: dict[Step, int] = {}
    positions: dict[tuple[int, int], int] = {}
    with evaluating(network):
        for stitch in sorted(network.plan, key=lambda s: len(s.segments)):
            if not found.keys() >= {step for step in stitch.steps if not isinstance(step, Cross)}:
                _walk(network, stitch, inputs, found, positions)
    anchors = tuple(_anchor(view, found) if view.number in used else None for view in network.views)
    layers: list[Cost | None] = []
    for number, layer in enumerate(network.stitching_layers):
        if layer is None or not network.plan.pairs(number):
            layers.append(None)
            continue
        spec = network.plan.layers[number]
        before = next(a for stitch in network.plan for n, a, _ in stitch.joints if n == number)
        macs = positions[before.anchor, before.stop] * spec.in_width * spec.out_width
        layers.append(Cost(macs, sum(p.numel() for p in layer.parameters())))
    return PlanCosts(anchors, tuple(layers))


def _walk(network: Any, stitch: Stitch, inputs: TextInputs, found: Any, positions: Any) -> None:
    """Run a stitch, and note what each of its steps costs."""
    h: Tensor | None = None
    for i, segment in enumerate(stitch.segments):
        view, last = network.views[segment.anchor], i + 1 == len(stitch.segments)
        if i:
            number, before, after = stitch.joints[i - 1]
            leave, enter = (before.anchor, before.stop), (after.anchor, after.start)
            h = network.executor.cross(number, h, leave, enter, inputs)
        counter = Macs(_COUNTED)
        marks = _Marks(counter)
        boundaries = range(segment.start, segment.stop + 1)
        partial = PartialForward(
            view.row_of_layers, segment.start, None if last else segment.stop, h, boundaries, marks
        )
        with running(partial), counter:
            view.call(inputs, h, ends=not last)
        for boundary in boundaries:
            h = marks[boundary]
            positions[segment.anchor, boundary] = h.numel() // view.widths[boundary]
            if boundary > segment.start:
                found[Block(segment.anchor, boundary - 1)] = marks.at[boundary] - marks.at[boundary - 1]
        found[Stem(segment.anchor)] = marks.at[segment.start]
        if last:
            for is_stitched in (False, True):
                found[Head(segment.anchor, is_stitched)] = counter.total - marks.at[segment.stop]


def _anchor(view: TransformersView, found: Mapping[Step, int]) -> AnchorCosts:
    """What the parts of one anchor cost."""
    own = dict(view.anchor.named_parameters())
    opening, number = view.opening, view.number
    before, after = set(opening.before), set(opening.after)
    row = opening.row + "."
    others = {n for n in own if not n.startswith(row)} - before
    tables = {f"{table}.weight" for table in opening.tables} - after

    def params(names: Iterable[str]) -> int:
        return sum(own[name].numel() for name in names if name in own)

    macs = found.get(Stem(number), 0)
    blocks = tuple(
        Cost(found.get(Block(number, i), 0), params(n for n in own if n.startswith(f"{row}{i}.")))
        for i in range(view.depth)
    )
    return AnchorCosts(
        stem=Cost(macs, params(before)),
        embeddings=0,
        blocks=blocks,
        norm=Cost(),
        head=Cost(found.get(Head(number, False), 0), params(others)),
        entered=Cost(macs, params(before - tables)),
    )
