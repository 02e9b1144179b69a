"""How paths run: one stitch, many stitches on one batch, or one stitch an image.

Source: SN-Net (arXiv:2302.06586). Every stitch begins with the stem of its front anchor and ends with the head of
its back anchor. The executor decides nothing and changes no state: which stitches there are is in the plan, which
one runs is the caller's word. It draws no random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..anchors.modules import called, has_hooks
from ..anchors.view import Context, View
from ..plan.prefix_sharing import common_steps, schedule
from ..plan.stitch_plan import Segment, Stitch
from .crossing import cross

Notify = Callable[[Stitch, int], None]


class Executor:
    """Runs stitches on anchors and stitching layers.

    Args:
        views: the anchors.
        layers: the stitching layers, by their numbers in the plan; those that no stitch needs may be None.
        stitched_norm: whether stitched paths run the back anchor's final norm.
    """

    def __init__(self, views: Sequence[View], layers: nn.ModuleList, stitched_norm: bool) -> None:
        self.views, self.layers, self.stitched_norm = list(views), layers, stitched_norm

    def features(self, stitch: Stitch, context: Context) -> Tensor:
        """From images to what enters the head."""
        views, segments = self.views, stitch.segments
        h = views[stitch.front].stem(context.images)
        for i, segment in enumerate(segments):
            if i:
                h = self.cross(stitch.layers[i - 1], h, segments[i - 1], segment, context)
            h = views[segment.anchor].run(h, segment.start, segment.stop, context)
        return self.norm(h, stitch)

    def hooked(self, stitch: Stitch, context: Context) -> Tensor:
        """From images to logits as calls of the anchors, so that the hooks that hang on these fire.

        The hooks of the front get the images, those of the back give the logits, and others see activations.
        """
        h, segments = context.images, stitch.segments
        for i, segment in enumerate(segments):
            view = self.views[segment.anchor]
            h = self.cross(stitch.layers[i - 1], h, segments[i - 1], segment, context) if i else h
            h = called(view.anchor, partial(self._segment, stitch, i, context), h)
        return h

    def _segment(self, stitch: Stitch, i: int, context: Context, h: Tensor) -> Tensor:
        segment = stitch.segments[i]
        view = self.views[segment.anchor]
        h = view.run(h if i else view.stem(h), segment.start, segment.stop, context)
        return h if i + 1 < len(stitch.segments) else view.head(self.norm(h, stitch))

    def cross(self, number: int, h: Tensor, before: Segment, after: Segment, context: Context) -> Tensor:
        """Carry what leaves one segment into the next through stitching layer `number`."""
        front, back = self.views[before.anchor], self.views[after.anchor]
        layer: Any = self.layers[number]
        return cross(layer, h, front, before.stop, back, after.start, context)

    def norm(self, h: Tensor, stitch: Stitch) -> Tensor:
        """The final norm, where a stitch has one."""
        return self.views[stitch.back].norm(h) if stitch.is_anchor or self.stitched_norm else h

    def step(self, stitch: Stitch, n: int, h: Any, context: Any) -> Any:
        """Run step `n` of a stitch on what the step before gave; step 0 begins at the call's inputs."""
        return self.advance(stitch, n, n + 1, h, context)[0]

    def run(self, stitch: Stitch, context: Any) -> Any:
        """From the inputs of a call to what the stitch gives."""
        return self.advance(stitch, 0, len(stitch.steps), None, context)[0]

    def advance(
        self, stitch: Stitch, n: int, end: int, h: Any, context: Any, keep: Collection[int] = ()
    ) -> tuple[Any, dict[int, Any]]:
        """Run steps `n:end` of a stitch; those within one anchor run in one go.

        Args:
            stitch: of what.
            n, end: the steps.
            h: what the step before gave; at the beginning nothing is needed.
            context: of the call.
            keep: after how many steps to keep what they gave.

        Returns:
            What the last of them gave, and what was to be kept, by the number of steps.
        """
        kept: dict[int, Any] = {}
        steps = stitch.steps
        while n < end:
            kind, number, which = steps[n]
            if kind == "layer":
                _, before, after = stitch.joints[sum(step[0] == "layer" for step in steps[:n])]
                h, n = self.cross(number, h, before, after, context), n + 1
                if n in keep:
                    kept[n] = h
                continue
            view, at = self.views[number], n
            while n < end and steps[n][0] in ("stem", "block"):
                n += 1
            ends = n < end and steps[n][0] == "head"
            # The boundary behind step i is that of its block, or 0 behind a stem.
            behind = {i + 1: steps[i][2] + (steps[i][0] == "block") for i in range(at, n)}
            wanted = {i: b for i, b in behind.items() if i in keep or (i == n and not ends)}
            h, start = (None, 0) if kind == "stem" else (h, which if kind == "block" else view.depth)
            if wanted:
                found = view.carry_on(h, start, set(wanted.values()), context)
                start = max(found)
                h = found[start]
                kept |= {i: found[b] for i, b in wanted.items() if i in keep}
            if ends:
                h, n = view.finish(h, start, context, stitch.is_anchor or self.stitched_norm), n + 1
                if n in keep:
                    kept[n] = h
        return h, kept

    def each(self, stitches: Sequence[Stitch], context: Any, notify: Notify) -> Iterator[tuple[int, Any]]:
        """Run many stitches on one batch, sharing the work of equal first steps.

        Args:
            stitches: distinct ones.
            context: of the call.
            notify: told of each stitch before it runs, with the number of images.

        Yields:
            (stitch_id, what it gives), in the order that shares most.
        """
        kept: dict[int, Any] = {}
        for turn in schedule(stitches):
            stitch = turn.stitch
            notify(stitch, context.batch_size)
            h = kept[turn.resume] if turn.resume else None
            kept = {n: kept[n] for n in kept if n <= turn.drop}
            h, more = self.advance(stitch, turn.resume, len(stitch.steps), h, context, turn.keep)
            kept |= more
            del more
            yield stitch.stitch_id, h
            del h

    def mixed(self, stitches: Sequence[Stitch], context: Any, notify: Notify) -> Any:
        """One stitch a row: rows whose stitches begin alike run together for as long as they are alike.

        Args:
            stitches: of each row.
            context: of the call.
            notify: told of each stitch that ran, with the number of its rows.

        Returns:
            What they give, in the order of the rows.
        """
        # In the order of their steps, rows whose stitches begin alike lie side by side.
        order = sorted(range(len(stitches)), key=lambda row: stitches[row].steps)
        index = torch.tensor(order, device=context.device)
        context = context.pick(index)
        stitches = [stitches[row] for row in order]
        found: list[Any] = []
        counted: list[int] = []
        pending: list[tuple[int, int, int, Any]] = [(0, 0, len(stitches), None)]
        while pending:
            n, start, stop, h = pending.pop()
            first, last = stitches[start], stitches[stop - 1]
            alike, part = common_steps(first, last), context.rows(start, stop)
            h, _ = self.advance(first, n, alike, h, part)
            if alike == len(first.steps):
                notify(first, stop - start)
                found.append(h)
                counted.append(part.counted())
                continue
            borders = [r for r in range(start + 1, stop) if stitches[r].steps[alike] != stitches[r - 1].steps[alike]]
            for a, b in reversed(list(pairwise([start, *borders, stop]))):
                pending.append((alike, a, b, None if h is None else h[a - start : b - start]))
        return context.join(found, counted, torch.argsort(index))

    def check_anchors(self, stitch: Stitch, anchors: Any) -> tuple[bool, tuple[int, int] | None]:
        """Refuse to run past an anchor that was put in another's place.

        Args:
            stitch: what is to run.
            anchors: the anchors that the network has now.

        Returns:
            Whether hooks hang on the call of an anchor, and the (height, width) that images must have, if any.

        Raises:
            ValueError: if an anchor is not the one that was stitched.
        """
        hooks, size = False, None
        for segment in stitch.segments:
            view = self.views[segment.anchor]
            hooks = hooks or has_hooks(view.anchor)
            if anchors._modules[str(segment.anchor)] is not view.anchor:
                raise ValueError(_replaced(segment.anchor, view.anchor, anchors[segment.anchor]))
            size = size or view.image_size
        return hooks, size

    def check(self, x: Tensor, stitch: Stitch, in_chans: int, anchors: Any) -> bool:
        """Refuse images that a stitch does not take, and to run past an anchor that was put in another's place.

        Args:
            x: the images.
            stitch: what is to run.
            in_chans: channels of the images.
            anchors: the anchors that the network has now.

        Returns:
            Whether hooks hang on the call of an anchor.

        Raises:
            TypeError: if the images are not a tensor.
            ValueError: if they have another shape, or an anchor is not the one that was stitched.
        """
        hooks, size = self.check_anchors(stitch, anchors)
        if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == in_chans:
            if size is None or (x.shape[2], x.shape[3]) == size:
                return hooks
        elif isinstance(x, fx.Proxy):
            return False
        if not isinstance(x, Tensor):
            raise TypeError(
                f"images must be a tensor of shape (B, C, H, W), got {type(x).__name__}: use torch.from_numpy."
            )
        wanted = f"{size[0]}, {size[1]}" if size else "H, W"
        advice = " Resize the images, or call model.set_input_size((H, W))." if size else ""
        raise ValueError(f"images of shape {tuple(x.shape)} do not fit: expected (B, {in_chans}, {wanted}).{advice}")


def _replaced(number: int, opened: nn.Module, now: nn.Module) -> str:
    return (
        f"anchors.{number} was a {type(opened).__name__} when stitched and is now a {type(now).__name__}, which would "
        "not run: stitch again with it, or replace modules inside."
    )
