"""The execution of stitches of models that take images: to the features before the head, and on to logits.

An anchor's own stitch is a call of the anchor. Other stitches run parts of anchors; before they do, what lies around
the parts is compared with what it was (`anchors.containers`). An anchor that has changed there is opened again. If it
can still be cut at the same places, it runs as it is now; if not, its stitches are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn

from ..anchors.block_view import BlockView, recompute
from ..anchors.containers import Part, Watch
from ..anchors.modules import call_with_hooks, has_hooks
from ..anchors.view import CallInputs, ImageInputs, Output
from ..plan.stitch_plan import Stitch
from .crossing import cross
from .executor import Executor


class ImageExecutor(Executor):
    """Runs stitches of views that have a stem, a norm and a head of their own."""

    views: list[BlockView]

    def __init__(self, views: Sequence[BlockView], layers: nn.ModuleList, stitched_norm: bool) -> None:
        super().__init__(views, layers, stitched_norm)
        for view in views:
            view.watch()
        self._watches: dict[tuple[int, ...], Watch] = {}  # by the anchors of a stitch

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_watches": {}}  # a watch knows the dicts of these very modules

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update({"_watches": {}} | state)
        for view in self.views:  # of a network that an earlier version pickled
            if "containers" not in view.__dict__:
                view.watch()

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def run(self, stitch: Stitch, inputs: ImageInputs) -> Tensor:  # type: ignore[override] # of images alone
        view = self.views[stitch.back]
        if stitch.is_anchor and view.is_whole and not isinstance(inputs.images, fx.Proxy):
            return self.call_anchor(view, inputs)
        if inputs.hooked:
            return self._run_hooked(stitch, inputs)
        return view.head(self.features(stitch, inputs))

    def call_anchor(self, view: BlockView, inputs: ImageInputs) -> Tensor:
        """Call an anchor as its owner does."""
        if not inputs.checkpointed:
            out: Tensor = view.anchor(inputs.images)
        elif inputs.hooked:
            out = recompute(view.anchor, inputs.images)
        else:
            out = view.run_to_output(None, 0, inputs)
        return out

    def features(self, stitch: Stitch, inputs: ImageInputs) -> Tensor:
        """Run a stitch from images to the input of the head."""
        if inputs.hooked:
            return self._run_hooked(stitch, inputs, head=False)
        views, first = self.views, stitch.segments[0]
        view = views[first.anchor]
        h = view.run(view.stem(inputs.images), first.start, first.stop, inputs)
        for number, before, after in stitch.joints:
            front, view = view, views[after.anchor]
            h = cross(self.layers._modules[str(number)], h, front, before.stop, view, after.start, inputs)
            h = view.run(h, after.start, after.stop, inputs)
        return view.norm(h) if self.stitched_norm or stitch.is_anchor else h

    def _run_hooked(self, stitch: Stitch, inputs: ImageInputs, head: bool = True) -> Tensor:
        """Run a stitch with the hooks on anchors and on modules inside them that hold its blocks.

        Hooks of the front anchor see the images, those of the back anchor see the logits, and others see activations.
        """
        self._check_parts(stitch)
        h, last = inputs.images, len(stitch.segments) - 1
        for i, segment in enumerate(stitch.segments):
            view = self.views[segment.anchor]
            if i:
                number, before, after = stitch.joints[i - 1]
                h = self.cross(number, h, (before.anchor, before.stop), (after.anchor, after.start), inputs)
            norm = i == last and self.runs_norm(stitch)
            parts = view.parts(segment.start, segment.stop, inputs, stem=not i, norm=norm)
            run_segment = partial(_run_parts, view, parts, head and i == last)
            h = call_with_hooks(view.anchor, run_segment, h) if head and has_hooks(view.anchor) else run_segment(h)
        return h

    def advance(
        self, stitch: Stitch, n: int, end: int, h: Output, inputs: CallInputs, keep: Collection[int] = ()
    ) -> tuple[Output, dict[int, Output]]:
        self._check_parts(stitch)
        return super().advance(stitch, n, end, h, inputs, keep)

    def norm(self, h: Tensor, stitch: Stitch) -> Tensor:
        """Apply the final norm, where a stitch has one."""
        return self.views[stitch.back].norm(h) if self.runs_norm(stitch) else h

    def shares_work(self, inputs: CallInputs) -> bool:
        return not (isinstance(inputs, ImageInputs) and inputs.hooked)

    # ── before a call ─────────────────────────────────────────────────────────────────────────────

    def prepare(
        self, x: Tensor, stitches: Iterable[Stitch], in_chans: int | None, anchors: nn.Module | None, checkpointed: bool
    ) -> ImageInputs:
        """Refuse images that stitches do not take, and anchors that cannot run in parts as they are now.

        Args:
            x: the images.
            stitches: the stitches that are to run.
            in_chans: the number of channels of the images; None for any.
            anchors: the list of anchors that the network has now.
            checkpointed: whether to recompute activations in the backward pass.

        Raises:
            TypeError: if the images are not a tensor.
            ValueError: if they have another shape, or an anchor is not the one that was stitched.
        """
        hooked = False
        for stitch in stitches:
            hooked = self.check(x, stitch, in_chans, anchors) or hooked
        return ImageInputs(x, checkpointed, hooked)

    def check(
        self, x: Tensor, stitch: Stitch, in_chans: int | None, anchors: nn.Module | None, alone: bool = False
    ) -> bool:
        """Do what `prepare` does for one stitch; returns whether its anchors have hooks around their parts.

        Where only this stitch runs, and is an anchor, its parts do not matter.
        """
        size = self.check_anchors(stitch, anchors)
        hooked = False
        if not (alone and stitch.is_anchor and self.views[stitch.back].is_whole):
            watch = self._watches.get(stitch.anchors)
            hooked = (watch is None or not watch.holds()) and self.look(stitch)
        if isinstance(x, Tensor):
            shape = x.shape
            if len(shape) == 4 and (size is None or shape[2:] == size):
                if in_chans in (None, shape[1]) or self.views[stitch.front].image_channels() == shape[1]:
                    return hooked
            elif len(shape) == 4 and self._were_resized(stitch):
                return self.check(x, stitch, in_chans, anchors, alone)
        elif isinstance(x, fx.Proxy):
            return False
        else:
            raise TypeError(
                f"images must be a tensor of shape (B, C, H, W), got {type(x).__name__}: use torch.from_numpy."
            )
        channels = "C" if in_chans is None else in_chans
        wanted = f"{size[0]}, {size[1]}" if size else "H, W"
        advice = " Resize the images, or call model.set_input_size((H, W))." if size else ""
        if len(shape) == 4 and in_chans not in (None, shape[1]):
            advice = f" For {shape[1]} channels create the anchors with in_chans={shape[1]}."
        raise ValueError(f"images of shape {tuple(shape)} do not fit: expected (B, {channels}, {wanted}).{advice}")

    def look(self, stitch: Stitch) -> bool:
        if self._as_opened(stitch.anchors):
            return False
        if not (stitch.is_anchor and self.views[stitch.back].is_whole):
            self._check_parts(stitch)
        return True

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch gives it no types
    def _as_opened(self, anchors: tuple[int, ...]) -> bool:
        """Whether what lies around the parts of anchors is as it was, without hooks; open those again that changed."""
        watch = self._watches.get(anchors)
        if watch is not None and watch.holds():
            return True
        for number in anchors:
            if self.views[number].containers.has_changed():
                self._reopen(number)
        all_containers = [self.views[number].containers for number in anchors]
        watch = Watch([entry for containers in all_containers for entry in containers.entries.values()])
        if not watch.holds() or any(containers.problem for containers in all_containers):
            return False
        self._watches[anchors] = watch
        return True

    def _were_resized(self, stitch: Stitch) -> bool:
        """Open recorded anchors again whose own image size was set since; whether there were any."""
        resized = [n for n in stitch.anchors if self.views[n].was_resized()]
        for number in resized:
            self._reopen(number, "its image size")
        return any(not self.views[n].was_resized() for n in resized)

    def _check_parts(self, stitch: Stitch) -> None:
        """Refuse to run parts of an anchor that has changed around them."""
        for number in stitch.anchors:
            problem = self.views[number].containers.problem
            if problem:
                raise ValueError(
                    f"anchors.{number} has changed since it was stitched ({problem}), and {stitch.name} cannot run a "
                    "part of it: undo the change, or stitch again."
                )

    def _reopen(self, number: int, change: str = "") -> None:
        """Open an anchor again after it was changed; if it is cut elsewhere then, keep the view with the problem."""
        self._watches = {}
        view = self.views[number]
        problem = change or "; ".join(view.containers.changes()[:3])
        if not problem:  # the change does not count
            view.containers.remember(view.containers.problem)
            return
        try:
            if view.is_partial:
                raise ValueError("a part of a network")
            opened = view.reopen()
        except (TypeError, ValueError):
            view.containers.remember(problem)
            return
        if _is_cut_alike(opened, view):
            opened.watch()
            self.views[number] = opened
        else:
            view.containers.remember(problem)


def _run_parts(view: BlockView, parts: Sequence[Part], head: bool, h: Tensor) -> Tensor:
    h = view.containers.run(parts, h)
    return view.head(h) if head else h


def _is_cut_alike(a: BlockView, b: BlockView) -> bool:
    """Whether two views have the same boundaries."""
    forms = [[view.form_at(boundary) for boundary in range(view.depth + 1)] for view in (a, b)]
    return (a.widths, a.reductions) == (b.widths, b.reductions) and forms[0] == forms[1]
