"""Views of models that consist of a stem, a sequence of blocks, a norm and a head.

A view calls the model's own modules and methods in the model's own order. It reconciles these differences of models:

- the parts of the stem: a patch embedding, and others before the first block;
- the inputs of a block besides the activation (side inputs);
- the layout of an activation: `"NLC"` tokens, some of them no patches, `"NHWC"` or `"NCHW"` maps;
- the place where the resolution changes: a downsampling before a block belongs to that block.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .containers import Containers, Part, holders
from .modules import copy_root, copy_structure, find_submodule, partial_copy, with_hook
from .view import ImageInputs, View

recompute = partial(checkpoint, use_reentrant=False)  # calls a module without keeping its activations


@dataclass(frozen=True)
class ParameterGroups:
    """The children and parameters of the stem and the norm; the rest that no block has is the head's.

    Args:
        stem, norm: the names of children and parameters.
        embeddings: the names of the stem's parameters that the authors' count leaves out of stitched rows.
    """

    stem: tuple[str, ...]
    embeddings: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()


class BlockView(View):
    """A model as stem, blocks, norm and head.

    A model's view implements the abstract methods here and `block_name`; one of tokens also `tokens_as_map`, where
    these meet activations of another form. The head is the model's `forward_head`, as timm names it, where a view has
    none of its own.

    Attributes:
        early: the name, channels and reduction of a map (B, C, H, W) inside the stem, at a resolution of its own.
        containers: the modules that the view does not call, as they were when it was opened.
        is_recorded: whether the view repeats what the model did once, and does not look at its settings again.
        is_whole: whether the anchor is the model with all its parts, so that its own call gives the output.
        has_norm: False where it was pruned; as with the head, the activation then passes on.
    """

    early: tuple[str, int, int] | None = None
    containers: Containers
    is_recorded: bool = False
    is_whole: bool = True
    has_norm: bool = True
    _fixed_size: tuple[int, int] | None = None  # the size of the images, where no module of the model has it
    _subset_size: tuple[int, int] | None = None  # the size of the images, for a subset without a stem

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self._fixed_size

    @abstractmethod
    def stem(self, x: Tensor) -> Tensor:
        """Turn images (B, C, H, W) into the activation at boundary 0."""

    def _norm(self, h: Tensor) -> Tensor:
        """Apply the final norm; none by default."""
        return h

    @abstractmethod
    def parameter_groups(self) -> ParameterGroups:
        """Name the children and parameters of the anchor that are its stem and its norm."""

    def stem_in_two(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the map that `early` names, and the activation at boundary 0."""
        raise NotImplementedError

    def tokens_as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        """Turn tokens (B, N, C) at a boundary into a map (B, C, H, W) without prefix tokens."""
        raise NotImplementedError

    def as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        layout, _ = self.form_at(boundary)
        if layout == "NCHW":
            return h
        if layout == "NHWC":
            return h.permute(0, 3, 1, 2).contiguous()
        return self.tokens_as_map(h, image_size, boundary)

    def prefix(self, h: Tensor, boundary: int) -> Tensor | None:
        _, count = self.form_at(boundary)
        return h[:, :count] if count else None

    def from_map(self, spatial: Tensor, prefix: Tensor | None, boundary: int) -> Tensor:
        layout, _ = self.form_at(boundary)
        if layout == "NCHW":
            return spatial
        if layout == "NHWC":
            return spatial.permute(0, 2, 3, 1).contiguous()
        tokens = spatial.flatten(2).transpose(1, 2)
        return tokens if prefix is None else torch.cat([prefix, tokens], dim=1)

    def run_to_boundaries(
        self, h: Tensor | None, start: int, wanted: Collection[int], inputs: ImageInputs
    ) -> dict[int, Tensor]:
        if h is None:
            h = self.stem(inputs.images)
        activations = {}
        for boundary in sorted(wanted):
            activations[boundary] = h = self.run(h, start, boundary, inputs)
            start = boundary
        return activations

    def run_to_output(self, h: Tensor | None, start: int, inputs: ImageInputs, normed: bool = True) -> Tensor:
        h = self.run_to_boundaries(h, start, (self.depth,), inputs)[self.depth]
        return self.head(self.norm(h) if normed else h)

    def run(self, h: Tensor, start: int, stop: int, inputs: ImageInputs) -> Tensor:
        """Run blocks `start:stop` on the activation at boundary `start`; returns that at boundary `stop`."""
        if inputs.hooked:
            return self.containers.run(self.parts(start, stop, inputs), h)
        checkpointed = inputs.checkpointed
        for module in self.row(start, stop):
            h = recompute(module, h) if checkpointed else module(h)
        return h

    def row(self, start: int, stop: int) -> list[nn.Module]:
        """List the modules of blocks `start:stop` in their order."""
        return [module for index in range(start, stop) for module in self.modules(index)]

    # ── what lies around the blocks ───────────────────────────────────────────────────────────────

    def watch(self) -> None:
        """Remember the modules that the view does not call, as they are now."""
        groups = self.parameter_groups()
        names = {*groups.stem, *groups.norm, *(name for i in range(self.depth) for name in self.block_names(i))}
        self.containers = Containers(self.anchor, self.skipped(names) - names, names, self.is_recorded)

    def skipped(self, names: Collection[str]) -> set[str]:
        """List the names of the modules that the view does not call, from the names of what it calls."""
        return holders(names)

    def reopen(self) -> BlockView:
        """Open the anchor again, as it is now.

        Raises:
            TypeError, ValueError: if it cannot be opened.
        """
        kind: Callable[[nn.Module], BlockView] = type(self)
        return kind(self.anchor)

    def parts(self, start: int, stop: int, inputs: ImageInputs, stem: bool = False, norm: bool = False) -> list[Part]:
        """List the pieces of work of `run`, for the hooks around them, with the stem and the norm on demand."""
        parts = [part for index in range(start, stop) for part in self._parts_of(index, inputs)]
        groups = self.parameter_groups()
        before = [Part(groups.stem, self.stem)] if stem else []
        return [*before, *parts, *([Part(groups.norm, self.norm)] if norm else [])]

    def _parts_of(self, index: int, inputs: ImageInputs) -> list[Part]:
        modules = zip(self.block_names(index), self.modules(index), strict=True)
        return [Part((name,), partial(recompute, m) if inputs.checkpointed else m) for name, m in modules]

    def transition(self, index: int) -> nn.Module | None:
        """The downsampling before block `index`, where it is a module of its own."""
        return None

    def norm(self, h: Tensor) -> Tensor:
        """Apply the final norm to the activation at the last boundary."""
        return self._norm(h) if self.has_norm else h

    def head(self, h: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the normed activation into logits (B, num_classes), or into what enters the classifier."""
        if not self.has_head:
            return h
        if "_hf_hook" in self.anchor.__dict__:
            h = with_hook(self.anchor, self._head, h, pre_logits)
            return h
        return self._head(h, pre_logits)

    def _head(self, h: Tensor, pre_logits: bool) -> Tensor:
        h = self.anchor.forward_head(h, pre_logits=pre_logits)
        return h

    def image_channels(self) -> int | None:
        """The channels that the stem's first layer takes, as it is now; None if that is no convolution."""
        stem = (find_submodule(self.anchor, name) for name in self.parameter_groups().stem)
        leaves = (leaf for module in stem if module is not None for leaf in module.modules() if not leaf._modules)
        first = next(leaves, None)
        return first.in_channels if isinstance(first, nn.Conv2d) else None

    def _embed_size(self) -> tuple[int, int] | None:
        """The image size that timm's patch embedding requires, for `image_size`."""
        embed = self.anchor._modules.get("patch_embed")
        if embed is None:
            return self._subset_size
        return tuple(embed.img_size) if getattr(embed, "strict_img_size", True) and embed.img_size else None

    def subset(self, stem: bool, blocks: Iterable[int], norm: bool, head: bool, prefix: bool = False) -> BlockView:
        groups, blocks = self.parameter_groups(), set(blocks)
        heads: set[str] = set()
        every_block = {name for i in range(self.depth) for name in self.block_names(i)}
        keep = {name for i in blocks for name in self.block_names(i)}
        if prefix:
            keep.update(self.prefix_names())
        if stem:
            keep.update(groups.stem)
        if norm:
            keep.update(groups.norm)
        if head:
            others = {*groups.stem, *groups.norm, *(block.split(".")[0] for block in every_block)}
            own = {*self.anchor._modules, *self.anchor._parameters, *self.anchor._buffers}
            heads = own - others
            keep.update(heads)
        twin = copy.copy(self)
        twin._subset_size, twin.is_partial = self.image_size, True
        twin.is_whole = self.keeps_all(stem, blocks, norm, head)
        twin.anchor = copy_root(self.anchor) if twin.is_whole else partial_copy(self.anchor, keep)
        for name in heads & set(twin.anchor._modules):  # reset_classifier changes Swin's head in place
            twin.anchor._modules[name] = copy_structure(twin.anchor._modules[name])
        twin.has_norm, twin.has_head = norm and self.has_norm, head and self.has_head
        return twin

    def keeps_all(self, stem: bool, blocks: Collection[int], norm: bool, head: bool) -> bool:
        """Whether a subset with these parts is the whole model."""
        return self.is_whole and stem and head and (norm or not self.has_norm) and len(blocks) == self.depth

    def has_final_shape(self, index: int) -> bool:
        """Whether the output of block `index` has the channels and the resolution of the last block."""
        end = self.widths[-1], self.reductions[-1]
        return (self.widths[index + 1], self.reductions[index + 1]) == end

    def was_resized(self) -> bool:
        """Whether the image size of the anchor was set since it was opened, and the view does not follow."""
        return False

    def refresh(self) -> None:
        """Update the view after the input size of the anchor was changed."""

    def truncate(self, depth: int) -> None:
        """Leave out all blocks behind the first `depth`."""
        short = self.describe("").truncate(depth)
        self.depth, self.is_whole = depth, False
        self.widths, self.reductions, self.stage_starts = short.widths, short.reductions, short.stage_starts


class StemOnly(BlockView):
    """A view that ends with the stem, or with the map inside it that `early` names; its one block does nothing.

    Args:
        whole: the view of the model, or of a subset that has the stem.
        early: whether to end inside the stem.
    """

    def __init__(self, whole: BlockView, early: bool) -> None:
        inner = whole.early if early else None
        self._whole, self._ends_early, self.anchor, self.depth = whole, inner is not None, whole.anchor, 1
        self.early = None if inner else whole.early
        last = whole.parameter_groups().stem[-1], whole.widths[0], whole.reductions[0]
        self._name, width, reduction = inner or last
        self.widths, self.reductions = (width, width), (reduction, reduction)
        self.layout, self.prefix_tokens = ("NCHW", 0) if inner else whole.form_at(0)
        self.has_norm, self.has_head, self.is_partial, self.is_whole = False, False, True, False

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self._whole.image_size

    def stem(self, x: Tensor) -> Tensor:
        return self._whole.stem_in_two(x)[0] if self._ends_early else self._whole.stem(x)

    def stem_in_two(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._whole.stem_in_two(x)

    def run(self, h: Tensor, start: int, stop: int, inputs: ImageInputs) -> Tensor:
        return h

    def _parts_of(self, index: int, inputs: ImageInputs) -> list[Part]:
        return []

    def block(self, index: int) -> nn.Module:
        return nn.Identity()

    def block_name(self, index: int) -> str:
        return self._name

    def parameter_groups(self) -> ParameterGroups:
        return replace(self._whole.parameter_groups(), norm=())

    def tokens_as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        return self._whole.tokens_as_map(h, image_size, 0)
