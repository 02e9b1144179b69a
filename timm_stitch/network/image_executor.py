"""The execution of stitches of models that take images: to the features before the head, and on to logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, fx, nn

from ..anchors.block_view import BlockView
from ..anchors.modules import call_with_hooks
from ..anchors.view import ImageInputs
from ..plan.stitch_plan import Stitch
from .crossing import cross
from .executor import Executor


class ImageExecutor(Executor):
    """Runs stitches of views that have a stem, a norm and a head of their own."""

    views: Sequence[BlockView]

    def features(self, stitch: Stitch, inputs: ImageInputs) -> Tensor:
        """Run a stitch from images to the input of the head."""
        views, first = self.views, stitch.segments[0]
        view = views[first.anchor]
        h = view.run(view.stem(inputs.images), first.start, first.stop, inputs)
        for number, before, after in stitch.joints:
            front, view = view, views[after.anchor]
            h = cross(self.layers._modules[str(number)], h, front, before.stop, view, after.start, inputs)
            h = view.run(h, after.start, after.stop, inputs)
        return view.norm(h) if self.stitched_norm or stitch.is_anchor else h

    def hooked(self, stitch: Stitch, inputs: ImageInputs) -> Tensor:
        """Run a stitch from images to logits by calls of the anchors, so that hooks on the anchors run.

        Hooks of the front see the images, those of the back see the logits, and others see activations.
        """
        h, segments = inputs.images, stitch.segments
        for i, segment in enumerate(segments):
            if i:
                number, before, after = stitch.joints[i - 1]
                h = self.cross(number, h, (before.anchor, before.stop), (after.anchor, after.start), inputs)
            h = call_with_hooks(self.views[segment.anchor].anchor, partial(self._segment, stitch, i, inputs), h)
        return h

    def _segment(self, stitch: Stitch, i: int, inputs: ImageInputs, h: Tensor) -> Tensor:
        segment = stitch.segments[i]
        view = self.views[segment.anchor]
        h = view.run(h if i else view.stem(h), segment.start, segment.stop, inputs)
        return h if i + 1 < len(stitch.segments) else view.head(self.norm(h, stitch))

    def norm(self, h: Tensor, stitch: Stitch) -> Tensor:
        """Apply the final norm, where a stitch has one."""
        return self.views[stitch.back].norm(h) if self.runs_norm(stitch) else h

    def check(self, x: Tensor, stitch: Stitch, in_chans: int, anchors: nn.Module | None) -> bool:
        """Refuse images that a stitch does not take, and an anchor that was replaced after stitching.

        Args:
            x: the images.
            stitch: the stitch that is to run.
            in_chans: the number of channels of the images.
            anchors: the list of anchors that the network has now.

        Returns:
            Whether an anchor has hooks.

        Raises:
            TypeError: if the images are not a tensor.
            ValueError: if they have another shape, or an anchor is not the one that was stitched.
        """
        hooks, size = self.check_anchors(stitch, anchors)
        if isinstance(x, Tensor):
            shape = x.shape
            if len(shape) == 4 and shape[1] == in_chans and (size is None or shape[2:] == size):
                return hooks
        elif isinstance(x, fx.Proxy):
            return False
        else:
            raise TypeError(
                f"images must be a tensor of shape (B, C, H, W), got {type(x).__name__}: use torch.from_numpy."
            )
        wanted = f"{size[0]}, {size[1]}" if size else "H, W"
        advice = " Resize the images, or call model.set_input_size((H, W))." if size else ""
        raise ValueError(f"images of shape {tuple(shape)} do not fit: expected (B, {in_chans}, {wanted}).{advice}")
