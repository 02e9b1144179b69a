"""Views: the interface of an anchor of any library. A view describes it, runs it between boundaries, and connects it.

Only views touch the internals of models. A view copies and changes nothing: state-dict keys stay, and from the first
boundary to the output it computes exactly the model's output.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..plan.stitch_plan import Anchor
from .modules import anchor_name, child, find_submodule

Inputs = Any  # the inputs of a network: images (B, C, H, W), or a mapping of tensors with B rows
Output = Any  # an activation, logits, or an output of transformers that holds logits


class CallInputs(Protocol):
    """The inputs of one call, which can be split and joined by rows."""

    @property
    def batch_size(self) -> int:
        """The number of rows."""

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of images."""

    def rows(self, start: int, stop: int) -> Self:
        """Take the rows `start:stop`."""

    def pick(self, index: Tensor) -> Self:
        """Take the rows of these numbers, in their order."""

    def num_labels(self) -> int:
        """Count the labels that enter the loss."""

    def join(self, outputs: Sequence[Output], num_labels: Sequence[int], order: Tensor) -> Output:
        """Join the outputs for parts of the rows; `order` holds the place of each row in these."""


class ImageInputs(NamedTuple):
    """The images of one call.

    Args:
        images: the images, shape (B, C, H, W).
        checkpointed: whether to recompute activations in the backward pass instead of keeping them.
        hooked: whether an anchor has hooks around its parts, so that stitches cannot share work.
    """

    images: Tensor
    checkpointed: bool = False
    hooked: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def batch_size(self) -> int:
        """The number of images."""
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.images.device

    def rows(self, start: int, stop: int) -> Self:
        """Take the images `start:stop`."""
        return self._replace(images=self.images[start:stop])

    def pick(self, index: Tensor) -> Self:
        """Take the images of these numbers, in their order."""
        return self._replace(images=self.images.index_select(0, index))

    def num_labels(self) -> int:
        """Count the labels, one an image."""
        return self.batch_size

    def join(self, outputs: Sequence[Tensor], num_labels: Sequence[int], order: Tensor) -> Tensor:
        """Join the outputs for parts of the images; `order` holds the place of each image in these."""
        return torch.cat(tuple(outputs)).index_select(0, order)


class View(ABC):
    """A model as a sequence of blocks, with boundaries before, between and after them.

    Every family implements the four abstract methods. If its activations are to meet those of another layout, it
    implements `as_map`, `prefix` and `from_map` too.

    Attributes:
        anchor: the model itself.
        depth: the number of blocks.
        widths, reductions: the channels and reductions at the `depth + 1` boundaries, as in `plan.Anchor`.
        stage_starts: the blocks that begin a stage, as there.
        layout: the layout of activations at boundaries: `"NLC"`, `"NHWC"` or `"NCHW"`.
        prefix_tokens: the number of tokens before the patch tokens at boundaries.
        has_head: whether the head was not pruned.
        is_partial: whether the anchor is a shallow copy that shares modules with another.
    """

    anchor: Any
    depth: int
    widths: tuple[int, ...]
    reductions: tuple[int, ...]
    stage_starts: tuple[int, ...] = ()
    layout: str = "NLC"
    prefix_tokens: int = 0
    has_head: bool = True
    is_partial: bool = False

    # ── description ───────────────────────────────────────────────────────────────────────────────

    def describe(self, name: str | None = None) -> Anchor:
        """Describe the anchor for a plan."""
        return Anchor(name or anchor_name(self.anchor), self.widths, self.reductions, self.stage_starts)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The (height, width) that the model requires, or None."""
        return None

    @property
    def tokens(self) -> int | None:
        """The number of tokens at a boundary, or None if it varies."""
        return None

    def form_at(self, boundary: int) -> tuple[str, int]:
        """Get the layout of the activation at a boundary, and the number of tokens before its patch tokens."""
        return self.layout, self.prefix_tokens

    # ── execution ─────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def run_to_boundaries(
        self, h: Tensor | None, start: int, wanted: Collection[int], inputs: Any
    ) -> dict[int, Tensor]:
        """Run from boundary `start` to the last of some boundaries, and return the activations at all of them.

        Args:
            h: the activation at `start`; None begins at the call's inputs, with `start` 0.
            start: the first boundary.
            wanted: the boundaries to run to, none of them before `start`.
            inputs: the inputs of the call, in the form of the family.
        """

    @abstractmethod
    def run_to_output(self, h: Tensor | None, start: int, inputs: Any, normed: bool = True) -> Output:
        """Run from boundary `start` to the model's output.

        Args:
            h, start, inputs: the arguments of `run_to_boundaries`.
            normed: whether the final norm runs.
        """

    # ── meeting other anchors ─────────────────────────────────────────────────────────────────────

    def as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        """Get the spatial part of the activation at a boundary as (B, C, H, W)."""
        raise NotImplementedError

    def prefix(self, h: Tensor, boundary: int) -> Tensor | None:
        """Get the tokens before the patch tokens as (B, prefix_tokens, C), or None."""
        return None

    def from_map(self, spatial: Tensor, prefix: Tensor | None, boundary: int) -> Tensor:
        """Join what `as_map` and `prefix` split; missing prefix tokens are the anchor's own."""
        raise NotImplementedError

    def rows_at(self, h: Tensor, prefixes: int, inputs: Any, boundary: int) -> Tensor:
        """Flatten the activation at a boundary to rows (n, C): for each image its first prefix tokens, then its map."""
        layout, own = self.form_at(boundary)
        if layout == "NCHW":
            return h.flatten(2).transpose(1, 2).flatten(0, 1)
        rows = h.flatten(1, -2)
        return (rows if own == prefixes else torch.cat([rows[:, :prefixes], rows[:, own:]], dim=1)).flatten(0, 1)

    def prefix_names(self) -> tuple[str, ...]:
        """List the names of the children and parameters that the anchor's own prefix tokens need."""
        return ()

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def block_name(self, index: int) -> str:
        """Get the name of a block inside the anchor."""

    @abstractmethod
    def subset(self, stem: bool, blocks: Iterable[int], norm: bool, head: bool, prefix: bool = False) -> View:
        """Make a view of a shallow copy of the anchor that holds, and shares, only these parts."""

    def block(self, index: int) -> nn.Module:
        """Get block number `index`, as it is now: it may have been replaced."""
        return child(self.anchor, self.block_name(index))

    def modules(self, index: int) -> tuple[nn.Module, ...]:
        """List the modules that make up block `index`, in order; a downsampling before it is one of them."""
        return (self.block(index),)

    def block_names(self, index: int) -> tuple[str, ...]:
        """List the names of these modules inside the anchor."""
        return (self.block_name(index),)

    def has_block(self, index: int) -> bool:
        """Whether block `index` was not pruned."""
        return all(find_submodule(self.anchor, name) is not None for name in self.block_names(index))

    def rebind(self, anchor: nn.Module) -> Self:
        """Make the same view of a replica of the anchor."""
        twin = copy.copy(self)
        twin.anchor = anchor
        return twin
