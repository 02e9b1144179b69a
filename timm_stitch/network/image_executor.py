"""The execution of stitches of models that take images: to the features before the head, and on to logits.

An anchor's own stitch is a call of the anchor. Other stitches run parts of anchors; before they do, what lies around
the parts is compared with what it was (`anchors.containers`). An anchor that has changed there is opened again. If it
can still be cut at the same places, it runs as it is now; if not, its stitches are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor, fx, nn

from ..anchors.block_view import BlockView, recompute
from ..anchors.containers import AS_OPENED, BROKEN, CHANGED, Part
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

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def run(self, stitch: Stitch, inputs: ImageInputs) -> Tensor:
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

            def run_segment(h: Tensor, view: BlockView = view, parts: list[Part] = parts, ends: bool = head and i == last) -> Tensor:
                h = view.containers.run(parts, h)
                return view.head(h) if ends else h

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
        self, x: Tensor, stitches: Iterable[Stitch], in_chans: int | None, anchors: nn.Module, checkpointed: bool
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

    def check(self, x: Tensor, stitch: Stitch, in_chans: int | None, anchors: nn.Module) -> bool:
        """Do what `prepare` does for one stitch; returns whether its anchors have hooks around their parts."""
        _, size = self.check_anchors(stitch, anchors)
        hooked = self.look(stitch)
        if isinstance(x, Tensor):
            shape = x.shape
            if len(shape) == 4 and in_chans in (None, shape[1]) and (size is None or shape[2:] == size):
                return hooked
        elif isinstance(x, fx.Proxy):
            return False
        else:
            raise TypeError(
                f"images must be a tensor of shape (B, C, H, W), got {type(x).__name__}: use torch.from_numpy."
            )
        channels = "C" if in_chans is None else in_chans
        wanted = f"{size[0]}, {size[1]}" if size else "H, W"
        advice = " Resize the images, or call model.set_input_size((H, W))." if size else ""
        raise ValueError(f"images of shape {tuple(shape)} do not fit: expected (B, {channels}, {wanted}).{advice}")

    def look(self, stitch: Stitch) -> bool:
        """Whether the anchors of a stitch have hooks around their parts, or cannot run in parts.

        Raises:
            ValueError: if an anchor that the stitch runs in part has changed so that it cannot.
        """
        hooked = False
        for number in stitch.anchors:
            containers = self.views[number].containers
            state = containers.state()
            if state == CHANGED:
                self._reopen(number)
                containers = self.views[number].containers
                state = containers.state()
            hooked = hooked or state != AS_OPENED
            if state == BROKEN and not (stitch.is_anchor and self.views[number].is_whole):
                self._check_parts(stitch)
        return hooked

    def _check_parts(self, stitch: Stitch) -> None:
        """Refuse to run parts of an anchor that has changed around them."""
        for number in stitch.anchors:
            problem = self.views[number].containers.problem
            if problem:
                raise ValueError(
                    f"anchors.{number} has changed since it was stitched ({problem}), and {stitch.name} cannot run a "
                    "part of it: undo the change, or stitch again."
                )

    def _reopen(self, number: int) -> None:
        """Open an anchor again after it was changed; if it is cut elsewhere then, keep the view with the problem."""
        view = self.views[number]
        changes = view.containers.changes()
        if not changes:  # in nothing that counts
            view.containers.remember(view.containers.problem)
            return
        problem = "; ".join(changes[:3])
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


def _is_cut_alike(a: BlockView, b: BlockView) -> bool:
    """Whether two views have the same boundaries."""
    forms = [[view.form_at(boundary) for boundary in range(view.depth + 1)] for view in (a, b)]
    return (a.widths, a.reductions) == (b.widths, b.reductions) and forms[0] == forms[1]
