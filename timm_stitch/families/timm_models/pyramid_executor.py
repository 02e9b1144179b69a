"""How the stitches of a pyramid run: to the last level that is read, keeping the activations that are levels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...anchors.view import CallInputs, ImageInputs, Output
from ...network.executor import Executor
from ...network.image_executor import ImageExecutor
from ...plan.levels import INSIDE_STEM, Ends, tap_places
from ...plan.stitch_plan import Stitch
from .features import run_to_points

Finish = Callable[[Stitch, Sequence[tuple[int, Tensor]], ImageInputs], Any]


class MapInputs(ImageInputs):
    """The images of a call whose output is one map for each level."""

    def join(self, outputs: Sequence[Any], num_labels: Sequence[int], order: Tensor) -> Any:
        if isinstance(outputs[0], Tensor):
            return super().join(outputs, num_labels, order)
        return [torch.cat(maps).index_select(0, order) for maps in zip(*outputs, strict=True)]


@dataclass(frozen=True)
class _Maps:
    """The last activation of a part of a path, and the activations that are levels so far, by their places."""

    h: Output
    kept: Mapping[int, Tensor]

    def __getitem__(self, rows: slice) -> _Maps:
        return _Maps(self.h[rows], {place: h[rows] for place, h in self.kept.items()})


class PyramidExecutor(Executor):
    """Runs stitches of a network to the levels of a pyramid, and then what lies on top.

    Args:
        inner: the executor of the network.
        ends: the levels that a call reads now.
        finish: a function that makes the output of a stitch from the places and activations of these levels.
    """

    def __init__(self, inner: ImageExecutor, ends: Ends, finish: Finish) -> None:
        self.inner, self.ends, self.finish = inner, ends, finish
        self.views, self.layers, self.stitched_norm = inner.views, inner.layers, True

    def run(self, stitch: Stitch, inputs: CallInputs) -> Output:
        return self.advance(stitch, 0, len(stitch.steps), None, inputs)[0]

    def shares_work(self, inputs: CallInputs) -> bool:
        return self.inner.shares_work(inputs)

    def look(self, stitch: Stitch) -> bool:
        return self.inner.look(stitch)

    def advance(
        self, stitch: Stitch, n: int, end: int, h: Output, inputs: Any, keep: Collection[int] = ()
    ) -> tuple[Output, dict[int, Output]]:
        if n == end:
            return h, {}
        before_head, ends = len(stitch.places), self.ends
        before = h if isinstance(h, _Maps) else _Maps(None, {})
        to_head = end > before_head
        taps = {place: tap_places(stitch, ends, place) for place in keep if place <= before_head}
        last = tap_places(stitch, ends, min(end, before_head))
        stop = max(n, *last) if to_head and not taps else min(end, before_head)  # no level is behind the last one
        wanted = {place for places in (last, *taps.values()) for place in places if place > n or not n} | taps.keys()
        reached = before.h
        new: dict[int, Tensor] = {}
        if n < stop or (n == 0 and INSIDE_STEM in wanted):
            reached, new = run_to_points(self.inner, stitch, inputs, wanted, stop, n, before.h)
        activations = {**before.kept, **new}
        saved: dict[int, Output] = {
            place: _Maps(activations[place], {at: activations[at] for at in places}) for place, places in taps.items()
        }
        if to_head:
            return self.finish(stitch, [(place, activations[place]) for place in last], inputs), saved
        return _Maps(reached, {place: activations[place] for place in last}), saved
