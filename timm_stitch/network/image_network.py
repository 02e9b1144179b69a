"""A stitchable network of models from images to one tensor, for families that need no more."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..anchors.block_view import BlockView
from ..anchors.view import ImageInputs
from ..plan.stitch_plan import Stitch, StitchPlan
from .image_executor import ImageExecutor
from .modes import evaluating
from .stitchable import StitchableNetwork, StitchIds, is_sequence_of_ids


class ImageNetwork(StitchableNetwork):
    """A stitchable network from images to logits.

    Args:
        views: the views of the anchors, in the order of the plan.
        plan: the stitches between them.
        stitch_id: the stitch of every call that names none; default the largest anchor alone.

    Raises:
        ValueError: if the anchors do not fit each other or the plan.
    """

    executor: ImageExecutor
    _executor_class = ImageExecutor
    example_size = (64, 64)  # the size of example images, where no anchor requires one

    def __init__(self, views: Sequence[BlockView], plan: StitchPlan, stitch_id: int | None = None) -> None:
        super().__init__()
        self._assemble(views, plan, True, stitch_id)

    def forward(self, x: Tensor, stitch_id: StitchIds | None = None) -> Tensor:
        """Classify images through one stitch, or each image through its own.

        Args:
            x: the images, shape (B, C, H, W).
            stitch_id: an id for this call only, or one id per image; default the current stitch.

        Raises:
            ValueError: if an id is not in the plan, or there is not one per image.
        """
        if not is_sequence_of_ids(stitch_id):
            stitches = [self._stitch(stitch_id)]
        else:
            stitches = self._stitch_per_sample(stitch_id, len(x), "images")
        distinct = tuple(dict.fromkeys(stitches))
        inputs = self.prepare_inputs(x, distinct)
        if len(distinct) > 1:
            out: Tensor = self.executor.mixed(stitches, inputs, self._notify)
            return out
        if self._stitch_hooks:  # len(x) would fix the number of images in a traced program
            self._notify(distinct[0], len(x))
        return self.executor.run(distinct[0], inputs)

    @property
    def num_classes(self) -> int:
        """The number of classes, by the width of the output."""
        with torch.no_grad(), evaluating(self):
            return int(self.forward(self.example(1)).shape[-1])

    def prepare_inputs(self, x: Tensor, stitches: Iterable[Stitch]) -> ImageInputs:
        return self.executor.prepare(x, stitches, None, self._modules["anchors"], self.grad_checkpointing)

    def example(self, count: int) -> Tensor:
        sizes = [view.image_size for view in self.views if view.image_size]
        like = next(self.parameters())
        return torch.randn(count, 3, *(sizes[0] if sizes else self.example_size), device=like.device, dtype=like.dtype)
