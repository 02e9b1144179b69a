"""A timm model seen as stem, blocks and head; the only code that touches timm's internals.

A view calls the model's own modules and methods in the model's own order, so that stem, all blocks,
norm and head in a row give exactly the model's output. It copies nothing and changes nothing; state-dict
keys stay as they are. Families differ in these points, each of which a view reconciles:

- what the stem is made of, and what comes before the first block besides a patch embedding;
- what a block needs besides the activation (side inputs);
- how an activation is laid out: `"NLC"` tokens, some of them no patches, `"NHWC"` or `"NCHW"` maps.

Imports torch and timm.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from timm.models import checkpoint
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .plan import Anchor


class View:
    """A model as stem, blocks, norm and head.

    Attributes:
        anchor: the model itself.
        depth: the number of blocks.
        widths, reductions: at each of the `depth + 1` boundaries, as in `plan.Anchor`.
        layout: of the activation at every boundary: `"NLC"`, `"NHWC"` or `"NCHW"`.
        prefix_tokens: tokens before the patch tokens at every boundary.
        image_size: (height, width) that the model insists on, or None.
        has_norm, has_head: False where they were pruned; then they pass the activation on.
    """

    anchor: nn.Module
    depth: int
    widths: tuple[int, ...]
    reductions: tuple[int, ...]
    layout: str = "NLC"
    prefix_tokens: int = 0
    image_size: tuple[int, int] | None = None
    has_norm: bool = True
    has_head: bool = True

    @property
    def tokens(self) -> int | None:
        """How many tokens cross a boundary, where that is fixed."""
        return None

    def stem(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the activation at boundary 0."""
        raise NotImplementedError

    def block(self, index: int) -> nn.Module:
        """Block number `index`: a module from boundary `index` to boundary `index + 1`."""
        raise NotImplementedError

    def run(self, h: Tensor, start: int, stop: int, image: Tensor, checkpointed: bool = False) -> Tensor:
        """Run blocks `start:stop`, from boundary `start` to boundary `stop`.

        Args:
            h: the activation at boundary `start`.
            image: the images (B, C, H, W) that it comes from, for side inputs that depend on their size.
            checkpointed: recompute activations in the backward pass instead of keeping them.
        """
        for index in range(start, stop):
            block = self.block(index)
            h = checkpoint(block, h) if checkpointed else block(h)
        return h

    def norm(self, h: Tensor) -> Tensor:
        """The final norm, on the activation at the last boundary."""
        return self._norm(h) if self.has_norm else h

    def head(self, h: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed activation to logits (B, num_classes), or to what enters the classifier."""
        return self._head(h, pre_logits) if self.has_head else h

    def _norm(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def _head(self, h: Tensor, pre_logits: bool) -> Tensor:
        raise NotImplementedError

    def as_map(self, h: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The spatial part of an activation as (B, C, H, W)."""
        raise NotImplementedError

    def prefix(self, h: Tensor) -> Tensor | None:
        """The tokens before the patch tokens as (B, prefix_tokens, C), or None."""
        raise NotImplementedError

    def from_map(self, spatial: Tensor, prefix: Tensor | None) -> Tensor:
        """What `as_map` and `prefix` took apart, put together again; a missing prefix is the anchor's own."""
        raise NotImplementedError

    def block_name(self, index: int) -> str:
        """The name of a block inside the anchor."""
        raise NotImplementedError

    def names(self) -> dict[str, tuple[str, ...]]:
        """The names of children and parameters that `"stem"`, `"embeddings"` and `"norm"` need.

        Embeddings are the stem's parameters that the authors' count leaves out of stitched rows.
        What is neither there nor a block belongs to the head.
        """
        raise NotImplementedError

    def layout_at(self, boundary: int) -> str:
        """How the activation at one boundary is laid out, where that is not the same at all of them."""
        return self.layout

    def block_names(self, index: int) -> tuple[str, ...]:
        """The names of everything that block `index` uses inside the anchor."""
        return (self.block_name(index),)

    def describe(self, name: str | None = None) -> Anchor:
        """The anchor as the plan sees it."""
        return Anchor(name or anchor_name(self.anchor), self.widths, self.reductions)

    def part(self, stem: bool, blocks: Iterable[int], norm: bool, head: bool) -> View:
        """A view of a shallow copy of the anchor that holds, and shares, only what is asked for."""
        names = self.names()
        every_block = {self.block_name(i) for i in range(self.depth)}
        keep = {self.block_name(i) for i in blocks}
        if stem:
            keep.update(names["stem"])
        if norm:
            keep.update(names["norm"])
        if head:
            apart = {*names["stem"], *names["norm"], *(block.split(".")[0] for block in every_block)}
            own = {*self.anchor._modules, *self.anchor._parameters, *self.anchor._buffers}
            keep.update(own - apart)
        twin = copy.copy(self)
        twin.anchor = shallow(self.anchor, keep)
        twin.has_norm, twin.has_head = norm and self.has_norm, head and self.has_head
        return twin

    def refresh(self) -> None:
        """Look at the anchor again, after its input size was changed."""

    def cut_off(self, depth: int) -> None:
        """End after `depth` blocks."""
        self.depth = depth
        self.widths, self.reductions = self.widths[: depth + 1], self.reductions[: depth + 1]

    def holds(self, index: int) -> bool:
        """Whether block `index` is there, not pruned."""
        module: nn.Module | None = self.anchor
        for name in self.block_name(index).split("."):
            module = module._modules.get(name) if module is not None else None
        return module is not None


class TransformerView(View):
    """timm's `VisionTransformer` and its relatives: one width, one token count, blocks in a row."""

    _STEM = ("patch_embed", "cls_token", "reg_token", "dist_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre")

    def __init__(self, anchor: nn.Module) -> None:
        self.anchor = anchor
        self.depth = sum(1 for _ in anchor.blocks.children())
        patch = anchor.patch_embed.patch_size
        if patch[0] != patch[1]:
            raise ValueError(
                f"cannot stitch {anchor_name(anchor)!r}: its patches of {patch[0]}x{patch[1]} pixels are not square."
            )
        self.widths = (anchor.embed_dim,) * (self.depth + 1)
        self.reductions = (patch[0],) * (self.depth + 1)
        self.prefix_tokens = anchor.num_prefix_tokens
        self._blocks = tuple(f"blocks.{name}" for name in anchor.blocks._modules)

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model has the shape that this view needs."""
        same = getattr(type(model), "forward_features", None) is VisionTransformer.forward_features
        return same and hasattr(model.patch_embed, "patch_size") and hasattr(model.patch_embed, "dynamic_feat_size")

    @property
    def image_size(self) -> tuple[int, int] | None:  # type: ignore[override]
        embed = self.anchor.patch_embed
        return tuple(embed.img_size) if getattr(embed, "strict_img_size", True) and embed.img_size else None

    def stem(self, x: Tensor) -> Tensor:
        model = self.anchor
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))

    @property
    def tokens(self) -> int | None:
        count = getattr(self.anchor.patch_embed, "num_patches", None)
        return count + self.prefix_tokens if count else None

    def block(self, index: int) -> nn.Module:
        return self.anchor.blocks._modules[str(index)]  # type: ignore[return-value]

    def _norm(self, h: Tensor) -> Tensor:
        return self.anchor.norm(h)

    def _head(self, h: Tensor, pre_logits: bool) -> Tensor:
        return self.anchor.forward_head(h, pre_logits=pre_logits)

    def as_map(self, h: Tensor, image_size: tuple[int, int]) -> Tensor:
        height, width = self.anchor.patch_embed.dynamic_feat_size(image_size)
        h = h[:, self.prefix_tokens :]
        return h.reshape(h.shape[0], height, width, h.shape[-1]).permute(0, 3, 1, 2).contiguous()

    def prefix(self, h: Tensor) -> Tensor | None:
        return h[:, : self.prefix_tokens] if self.prefix_tokens else None

    def from_map(self, spatial: Tensor, prefix: Tensor | None) -> Tensor:
        tokens = spatial.flatten(2).transpose(1, 2)
        return torch.cat([prefix, tokens], dim=1) if prefix is not None else tokens

    def block_name(self, index: int) -> str:
        return self._blocks[index]

    def names(self) -> dict[str, tuple[str, ...]]:
        embeddings = ("cls_token", "reg_token", "dist_token", "pos_embed")
        return {"stem": self._STEM, "embeddings": embeddings, "norm": ("norm",)}


def view(model: nn.Module) -> View:
    """The view of a timm model.

    Raises:
        TypeError: if the model is not a module, or one that has no view.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"an anchor must be a timm model, got {type(model).__name__} {model!r:.60}. "
            "Create it first: timm.create_model('deit_tiny_patch16_224', pretrained=True)."
        )
    if TransformerView.fits(model):
        return TransformerView(model)
    from .views_graph import GraphView  # which extends this file

    return GraphView(model)


def anchor_name(model: nn.Module) -> str:
    """What people call a model: timm's architecture name, or else its class."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


def shallow(module: nn.Module, keep: set[str]) -> nn.Module:
    """Copy a module without what is not kept; kept parameters and submodules are the same objects."""
    twin = copy.copy(module)
    twin._parameters = {k: v for k, v in module._parameters.items() if v is None or k in keep}
    twin._buffers = {k: v for k, v in module._buffers.items() if v is None or k in keep}
    twin._modules = {}
    for name, child in module._modules.items():
        inner = {k[len(name) + 1 :] for k in keep if k.startswith(name + ".")}
        if child is None or name in keep:
            twin._modules[name] = child
        elif inner:
            twin._modules[name] = shallow(child, inner)
    return twin
