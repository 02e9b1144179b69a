"""What every view of a timm model can do: stem, blocks and head, with the activations between them.

A view calls the model's own modules and methods in the model's own order, so that stem, all blocks,
norm and head in a row give exactly the model's output. It copies nothing and changes nothing; state-dict
keys stay as they are. Views are the only code that touches timm's internals. Families differ in these
points, each of which a view reconciles:

- what the stem is made of, and what comes before the first block besides a patch embedding;
- what a block needs besides the activation (side inputs);
- how an activation is laid out: `"NLC"` tokens, some of them no patches, `"NHWC"` or `"NCHW"` maps;
- where the resolution changes: a downsampling that comes before a block belongs to that block.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..plan.stitch_plan import Anchor
from .modules import anchor_name, inner, own_shell, shallow, with_hook


class Context(NamedTuple):
    """What one call gives to all that runs in it, beside the activation.

    Args:
        images: of the call, shape (B, C, H, W); side inputs of blocks depend on their size.
        checkpointed: recompute activations in the backward pass instead of keeping them.
    """

    images: Tensor
    checkpointed: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def batch_size(self) -> int:
        """How many images there are."""
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.images.device

    def rows(self, start: int, stop: int) -> Context:
        """The same for some of the images."""
        return self._replace(images=self.images[start:stop])

    def pick(self, index: Tensor) -> Context:
        """The same for the images of these numbers, in their order."""
        return self._replace(images=self.images.index_select(0, index))

    def counted(self) -> int:
        """How many labels there are."""
        return self.batch_size

    def join(self, outputs: Sequence[Tensor], counted: Sequence[int], order: Tensor) -> Tensor:
        """What calls on parts of the images gave as what one call gives: `order` says where each image is."""
        return torch.cat(tuple(outputs)).index_select(0, order)


class View:
    """A model as stem, blocks, norm and head.

    Attributes:
        anchor: the model itself.
        depth: the number of blocks.
        widths, reductions: at each of the `depth + 1` boundaries, as in `plan.Anchor`.
        layout: of the activation at every boundary: `"NLC"`, `"NHWC"` or `"NCHW"`.
        prefix_tokens: tokens before the patch tokens at every boundary.
        early: name, channels and reduction of a map (B, C, H, W) inside the stem, of a resolution that no block has.
        has_norm, has_head: False where they were pruned; then they pass the activation on.
        is_partial: whether the anchor is a shallow copy that shares modules with another.
    """

    anchor: Any
    depth: int
    widths: tuple[int, ...]
    reductions: tuple[int, ...]
    layout: str = "NLC"
    prefix_tokens: int = 0
    early: tuple[str, int, int] | None = None
    has_norm: bool = True
    has_head: bool = True
    is_partial: bool = False
    _fixed_size: tuple[int, int] | None = None  # of the images, where the model's modules do not tell
    _kept_size: tuple[int, int] | None = None  # of the images, for a subset without the stem that knows it

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) that the model insists on, or None."""
        return self._fixed_size

    @property
    def tokens(self) -> int | None:
        """How many tokens cross a boundary, where that is fixed."""
        return None

    def stem(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the activation at boundary 0."""
        raise NotImplementedError

    def stem_in_two(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map that `early` names, and the activation at boundary 0."""
        raise NotImplementedError

    def carry_on(self, h: Tensor | None, start: int, wanted: Collection[int], context: Any) -> dict[int, Tensor]:
        """What crosses some boundaries, from the activation at boundary `start`; it runs no further than the last.

        Args:
            h: the activation; None begins at the call's inputs, with `start` 0.
            start: its boundary.
            wanted: the boundaries, none of them before `start`.
            context: of the call.
        """
        at = start
        if h is None:
            h = self.stem(context.images)
        found = {}
        for boundary in sorted(wanted):
            h = self.run(h, at, boundary, context)
            found[boundary], at = h, boundary
        return found

    def finish(self, h: Tensor | None, start: int, context: Any, normed: bool = True) -> Any:
        """What the model gives, from the activation at boundary `start`.

        Args:
            h, start, context: as of `carry_on`.
            normed: with the final norm.
        """
        h = self.carry_on(h, start, (self.depth,), context)[self.depth]
        return self.head(self.norm(h) if normed else h)

    def block(self, index: int) -> nn.Module:
        """Block number `index`: a module from boundary `index` to boundary `index + 1`."""
        raise NotImplementedError

    def run(self, h: Tensor, start: int, stop: int, context: Context) -> Tensor:
        """Run blocks `start:stop` on the activation at boundary `start`; gives that at boundary `stop`."""
        for module in self.row(start, stop):
            h = checkpoint(module, h, use_reentrant=False) if context.checkpointed else module(h)
        return h

    def row(self, start: int, stop: int) -> list[nn.Module]:
        """The modules that are blocks `start:stop` one after another."""
        return [module for index in range(start, stop) for module in self.modules(index)]

    def modules(self, index: int) -> tuple[nn.Module, ...]:
        """The modules that are block `index` one after another; a downsampling before it is one of them."""
        return (self.block(index),)

    def block_names(self, index: int) -> tuple[str, ...]:
        """The names of these modules inside the anchor."""
        return (self.block_name(index),)

    def transition(self, index: int) -> nn.Module | None:
        """What changes the resolution before block `index`, where the model has a module of its own for it."""
        return None

    def norm(self, h: Tensor) -> Tensor:
        """The final norm, on the activation at the last boundary."""
        return self._norm(h) if self.has_norm else h

    def head(self, h: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed activation to logits (B, num_classes), or to what enters the classifier."""
        if not self.has_head:
            return h
        if "_hf_hook" in self.anchor.__dict__:
            h = with_hook(self.anchor, self._head, h, pre_logits)
            return h
        return self._head(h, pre_logits)

    def _norm(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def _head(self, h: Tensor, pre_logits: bool) -> Tensor:
        raise NotImplementedError

    def layout_at(self, boundary: int) -> str:
        """How the activation at one boundary is laid out."""
        return self.layout

    def prefix_at(self, boundary: int) -> int:
        """Tokens before the patch tokens at one boundary."""
        return self.prefix_tokens

    def as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        """The spatial part of the activation at a boundary as (B, C, H, W)."""
        raise NotImplementedError

    def prefix(self, h: Tensor, boundary: int) -> Tensor | None:
        """The tokens before the patch tokens as (B, prefix_tokens, C), or None."""
        raise NotImplementedError

    def from_map(self, spatial: Tensor, prefix: Tensor | None, boundary: int) -> Tensor:
        """What `as_map` and `prefix` took apart, put together again; missing prefix tokens are the anchor's own."""
        raise NotImplementedError

    def rows_at(self, h: Tensor, prefixes: int, context: Any, boundary: int) -> Tensor:
        """The activation at a boundary position by position, (n, C): of each image its first prefix tokens, its map."""
        if self.layout_at(boundary) == "NCHW":
            return h.flatten(2).transpose(1, 2).flatten(0, 1)
        rows, own = h.flatten(1, -2), self.prefix_at(boundary)
        return (rows if own == prefixes else torch.cat([rows[:, :prefixes], rows[:, own:]], dim=1)).flatten(0, 1)

    def prefix_names(self) -> tuple[str, ...]:
        """The names of children and parameters that the anchor's own prefix tokens need."""
        return ()

    def block_name(self, index: int) -> str:
        """The name of a block inside the anchor."""
        raise NotImplementedError

    def names(self) -> dict[str, tuple[str, ...]]:
        """The names of children and parameters that `"stem"`, `"embeddings"` and `"norm"` need.

        Embeddings are the stem's parameters that the authors' count leaves out of stitched rows.
        What is neither there nor a block belongs to the head.
        """
        raise NotImplementedError

    def _embed_size(self) -> tuple[int, int] | None:
        """The image size that timm's patch embedding insists on."""
        embed: Any = self.anchor._modules.get("patch_embed")
        if embed is None:
            return self._kept_size
        return tuple(embed.img_size) if getattr(embed, "strict_img_size", True) and embed.img_size else None

    def describe(self, name: str | None = None) -> Anchor:
        """The anchor as the plan sees it."""
        return Anchor(name or anchor_name(self.anchor), self.widths, self.reductions)

    def subset(self, stem: bool, blocks: Iterable[int], norm: bool, head: bool, prefix: bool = False) -> View:
        """A view of a shallow copy of the anchor that holds, and shares, only what is asked for."""
        names = self.names()
        heads: set[str] = set()
        every_block = {name for i in range(self.depth) for name in self.block_names(i)}
        keep = {name for i in blocks for name in self.block_names(i)}
        if prefix:
            keep.update(self.prefix_names())
        if stem:
            keep.update(names["stem"])
        if norm:
            keep.update(names["norm"])
        if head:
            apart = {*names["stem"], *names["norm"], *(block.split(".")[0] for block in every_block)}
            own = {*self.anchor._modules, *self.anchor._parameters, *self.anchor._buffers}
            heads = own - apart
            keep.update(heads)
        twin = copy.copy(self)
        twin._kept_size, twin.is_partial = self.image_size, True
        twin.anchor = shallow(self.anchor, keep)
        for name in heads & set(twin.anchor._modules):  # heads are changed in place: Swin's, by reset_classifier
            twin.anchor._modules[name] = own_shell(twin.anchor._modules[name])
        twin.has_norm, twin.has_head = norm and self.has_norm, head and self.has_head
        return twin

    def on(self, anchor: nn.Module) -> View:
        """The same view of a replica of the anchor."""
        twin = copy.copy(self)
        twin.anchor = anchor
        return twin

    def like_last(self, index: int) -> bool:
        """Whether what leaves block `index` has the channels and the resolution of the last block."""
        end = self.widths[-1], self.reductions[-1]
        return (self.widths[index + 1], self.reductions[index + 1]) == end

    def refresh(self) -> None:
        """Look at the anchor again, after its input size was changed."""

    def cut_off(self, depth: int) -> None:
        """End after `depth` blocks."""
        self.depth = depth
        self.widths, self.reductions = self.widths[: depth + 1], self.reductions[: depth + 1]

    def holds(self, index: int) -> bool:
        """Whether block `index` is there, not pruned."""
        return all(inner(self.anchor, name) is not None for name in self.block_names(index))


class StemOnly(View):
    """A view that ends with the stem, or with the map inside it that `early` names; its one block does nothing.

    Args:
        whole: the view of the model, or of a subset that has the stem.
        early: whether to end inside the stem.
    """

    def __init__(self, whole: View, early: bool) -> None:
        tap = whole.early if early else None
        self._whole, self._ends_early, self.anchor, self.depth = whole, tap is not None, whole.anchor, 1
        self.early = None if tap else whole.early
        self._name, width, reduction = tap or (whole.names()["stem"][-1], whole.widths[0], whole.reductions[0])
        self.widths, self.reductions = (width, width), (reduction, reduction)
        self.layout, self.prefix_tokens = ("NCHW", 0) if tap else (whole.layout_at(0), whole.prefix_at(0))
        self.has_norm, self.has_head, self.is_partial = False, False, True

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self._whole.image_size

    def stem(self, x: Tensor) -> Tensor:
        return self._whole.stem_in_two(x)[0] if self._ends_early else self._whole.stem(x)

    def stem_in_two(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._whole.stem_in_two(x)

    def run(self, h: Tensor, start: int, stop: int, context: Context) -> Tensor:
        return h

    def block(self, index: int) -> nn.Module:
        return nn.Identity()

    def block_name(self, index: int) -> str:
        return self._name

    def names(self) -> dict[str, tuple[str, ...]]:
        return {**self._whole.names(), "norm": ()}

    def as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        return h if self._ends_early else self._whole.as_map(h, image_size, 0)

    def prefix(self, h: Tensor, boundary: int) -> Tensor | None:
        return None if self._ends_early else self._whole.prefix(h, 0)
