"""The execution of stitches: one stitch, many stitches on one batch, or a stitch for each image.

Source: SN-Net (arXiv:2302.06586). Every stitch begins with the stem of its front anchor and ends with the head of its
back anchor. The executor changes no state and draws no random numbers: the caller chooses a stitch of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..anchors.view import CallInputs, Output, View
from ..plan.prefix_sharing import ScheduledRun, common_steps
from ..plan.steps import Cross, Head, sort_key
from ..plan.stitch_plan import Stitch
from .crossing import cross

Notify = Callable[[Stitch, int], None]
Place = tuple[int, int]  # an anchor and one of its boundaries


def run_stitch(views: Sequence[View], layers: nn.ModuleList, stitch: Stitch, inputs: CallInputs, norm: bool) -> Output:
    """Run one stitch from the inputs of a call to its output; the reference for every other way to run it.

    Args:
        views: the anchors.
        layers: the stitching layers.
        stitch: the stitch.
        inputs: the inputs of the call.
        norm: whether the back anchor's final norm runs.
    """
    first, last = stitch.segments[0], stitch.segments[-1]
    front, h = views[first.anchor], None
    for number, before, after in stitch.joints:
        h = front.run_to_boundaries(h, before.start, (before.stop,), inputs)[before.stop]  # stem and blocks
        back = views[after.anchor]
        h = cross(layers[number], h, front, before.stop, back, after.start, inputs)
        front = back
    return front.run_to_output(h, last.start, inputs, norm)  # blocks, norm and head


class Executor:
    """Runs stitches on anchors and stitching layers.

    Args:
        views: the anchors.
        layers: the stitching layers, by their numbers in the plan; None where no stitch needs one.
        stitched_norm: whether stitched paths run the back anchor's final norm.
    """

    def __init__(self, views: Sequence[View], layers: nn.ModuleList, stitched_norm: bool) -> None:
        self.views: Sequence[View] = list(views)
        self.layers, self.stitched_norm = layers, stitched_norm

    # ── one stitch ────────────────────────────────────────────────────────────────────────────────

    def run(self, stitch: Stitch, inputs: CallInputs) -> Output:
        """Run a stitch from the inputs of a call to its output."""
        return run_stitch(self.views, self.layers, stitch, inputs, self.runs_norm(stitch))

    def cross(self, layer: int, h: Tensor, leave: Place, enter: Place, inputs: CallInputs) -> Tensor:
        """Carry an activation from a boundary of one anchor to a boundary of another through a stitching layer."""
        front, back = self.views[leave[0]], self.views[enter[0]]
        return cross(self.layers[layer], h, front, leave[1], back, enter[1], inputs)

    def runs_norm(self, stitch: Stitch) -> bool:
        """Whether a stitch runs its back anchor's final norm."""
        return self.stitched_norm or stitch.is_anchor

    # ── a part of a stitch ────────────────────────────────────────────────────────────────────────

    def step(self, stitch: Stitch, n: int, h: Output, inputs: CallInputs) -> Output:
        """Run step `n` of a stitch on the output of the step before; step 0 begins at the call's inputs."""
        return self.advance(stitch, n, n + 1, h, inputs)[0]

    def advance(
        self, stitch: Stitch, n: int, end: int, h: Output, inputs: CallInputs, keep: Collection[int] = ()
    ) -> tuple[Output, dict[int, Output]]:
        """Run steps `n:end` of a stitch.

        Args:
            stitch: the stitch.
            n, end: the range of steps, half-open.
            h: the output of the step before; None at the beginning.
            inputs: the inputs of the call.
            keep: the numbers of steps after which to keep the activation.

        Returns:
            The output of the last step, and the activations to keep, by the number of steps that led to them.
        """
        saved: dict[int, Output] = {}
        steps, places = stitch.steps, stitch.places
        while n < end:
            first, step = n, steps[n]
            if isinstance(step, Cross):
                h, n = self.cross(step.layer, h, places[n - 1], places[n], inputs), n + 1
                if n in keep:
                    saved[n] = h
                continue
            # All steps within one anchor are one call of its view, since each call of a model of transformers runs
            # its own forward. The view returns the activations to keep, and the last unless the head follows.
            view = self.views[step.anchor]
            while n < end and not isinstance(steps[n], (Cross, Head)):
                n += 1
            ends = n < end and isinstance(steps[n], Head)
            wanted = {i: places[i - 1][1] for i in range(first + 1, n + 1) if i in keep or (i == n and not ends)}
            start = places[first - 1][1] if first else 0
            if wanted:
                activations = view.run_to_boundaries(h, start, set(wanted.values()), inputs)
                start = max(activations)
                h = activations[start]
                saved |= {i: activations[boundary] for i, boundary in wanted.items() if i in keep}
            if ends:
                h, n = view.run_to_output(h, start, inputs, self.runs_norm(stitch)), n + 1
                if n in keep:
                    saved[n] = h
        return h, saved

    def shares_work(self, inputs: CallInputs) -> bool:
        """Whether stitches with equal first steps may share these."""
        return True

    # ── many stitches ─────────────────────────────────────────────────────────────────────────────

    def each(
        self, schedule: Iterable[ScheduledRun], inputs: CallInputs, notify: Notify
    ) -> Iterator[tuple[int, Output]]:
        """Run many stitches on one batch, sharing the work of equal first steps.

        Args:
            schedule: the runs of distinct stitches, from `plan.prefix_sharing.schedule`.
            inputs: the inputs of the call.
            notify: a function that is called with each stitch before it runs, and the number of images.

        Yields:
            (stitch_id, output), in the order of the schedule.
        """
        saved: dict[int, Output] = {}
        shares_work = self.shares_work(inputs)
        for run in schedule:
            stitch = run.stitch
            notify(stitch, inputs.batch_size)
            if not shares_work:
                yield stitch.stitch_id, self.run(stitch, inputs)
                continue
            h = saved[run.resume] if run.resume else None
            saved = {n: saved[n] for n in saved if n <= run.drop}
            h, new = self.advance(stitch, run.resume, len(stitch.steps), h, inputs, run.keep)
            saved |= new
            del new  # no name may keep alive what a later run does not need
            yield stitch.stitch_id, h
            del h

    def mixed(self, stitches: Sequence[Stitch], inputs: CallInputs, notify: Notify) -> Output:
        """Run one stitch for each row; rows run together as long as their stitches have equal steps.

        Args:
            stitches: the stitch of each row.
            inputs: the inputs of the call.
            notify: a function that is called with each stitch that ran, and the number of its rows.

        Returns:
            The output, in the order of the rows.
        """
        # 1. Sort rows by their steps, so that rows with equal first steps are neighbours.
        distinct = sorted({s.stitch_id: s for s in stitches}.values(), key=lambda stitch: sort_key(stitch.steps))
        rank = {stitch.stitch_id: n for n, stitch in enumerate(distinct)}
        order = sorted(range(len(stitches)), key=lambda row: rank[stitches[row].stitch_id])
        index = torch.tensor(order, device=inputs.device)
        inputs, stitches = inputs.pick(index), [stitches[row] for row in order]
        # 2. Walk the tree of common first steps, depth first: a group of rows runs up to the step where its stitches
        #    part (in sorted rows the first and the last part earliest), and is split there.
        shares_work = self.shares_work(inputs)
        outputs: list[Output] = []
        num_labels: list[int] = []
        pending: list[tuple[int, int, int, Output]] = [(0, 0, len(stitches), None)]
        while pending:
            n, start, stop, h = pending.pop()
            first, part = stitches[start], inputs.rows(start, stop)
            end = common_steps(first, stitches[stop - 1])
            if shares_work:
                h, _ = self.advance(first, n, end, h, part)
            elif first == stitches[stop - 1]:
                h = self.run(first, part)
            if end == len(first.steps):
                notify(first, stop - start)
                outputs.append(h)
                num_labels.append(part.num_labels())
                continue
            borders = [
                row for row in range(start + 1, stop) if stitches[row].steps[end] != stitches[row - 1].steps[end]
            ]
            for a, b in reversed(list(pairwise([start, *borders, stop]))):
                pending.append((end, a, b, None if h is None else h[a - start : b - start]))
        # 3. Put the outputs back into the order of the rows.
        return inputs.join(outputs, num_labels, torch.argsort(index))

    # ── checks before a call ──────────────────────────────────────────────────────────────────────

    def check_anchors(self, stitch: Stitch, anchors: Any) -> tuple[int, int] | None:
        """Refuse a stitch of which an anchor was replaced after stitching.

        Args:
            stitch: the stitch that is to run.
            anchors: the list of anchors that the network has now.

        Returns:
            The (height, width) that images must have, if any.

        Raises:
            ValueError: if an anchor is not the one that was stitched.
        """
        size, views, now = None, self.views, anchors._modules
        for number in stitch.anchors:
            view = views[number]
            anchor: nn.Module = view.anchor
            if now[str(number)] is not anchor:
                raise ValueError(_replaced(number, anchor, now[str(number)]))
            size = size or view.image_size
        return size

    def look(self, stitch: Stitch) -> bool:
        """Whether hooks on the anchors of a stitch keep it from sharing work; refuse anchors that cannot run in parts.

        Raises:
            ValueError: if the stitch runs a part of an anchor that has changed around it.
        """
        return False


def _replaced(number: int, opened: nn.Module, now: nn.Module | None) -> str:
    return (
        f"anchors.{number} was a {type(opened).__name__} when stitched and is now a {type(now).__name__}, which would "
        "not run: stitch again with it, or replace modules inside."
    )
