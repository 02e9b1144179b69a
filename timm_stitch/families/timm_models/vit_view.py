"""The view of timm's vision transformers: one width, one token count, blocks in a row."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, fx, nn

from ...anchors.block_view import ParameterGroups
from ...anchors.modules import anchor_name, partial_copy, with_hook
from .written_view import WrittenView


class TransformerView(WrittenView):
    """timm's `VisionTransformer` and its relatives: one width, one token count, blocks in a row."""

    _STEM = ("patch_embed", "cls_token", "reg_token", "dist_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre")

    def __init__(self, anchor: nn.Module) -> None:
        self.anchor = anchor
        model = self.anchor
        self.depth = sum(1 for _ in model.blocks.children())
        patch = model.patch_embed.patch_size
        if patch[0] != patch[1]:
            raise ValueError(
                f"cannot stitch {anchor_name(anchor)!r}: its patches of {patch[0]}x{patch[1]} pixels are not square."
            )
        self.widths = (model.embed_dim,) * (self.depth + 1)
        self.reductions = (model.feature_info[0]["reduction"],) * (self.depth + 1)  # not the patch size in hybrids
        self.prefix_tokens = model.num_prefix_tokens
        self._pads = bool(getattr(model.patch_embed, "dynamic_img_pad", False))
        self._numbers = tuple(model.blocks._modules)

    @staticmethod
    def fits(model: nn.Module) -> bool:
        same = getattr(type(model), "forward_features", None) is VisionTransformer.forward_features
        return same and hasattr(model.patch_embed, "patch_size") and hasattr(model.patch_embed, "dynamic_feat_size")

    image_size = property(WrittenView._embed_size)

    def stem(self, x: Tensor) -> Tensor:
        model = self.anchor
        if isinstance(x, fx.Proxy) and self.image_size is None:
            h: Tensor = self._stem_module()(x)  # torch.fx cannot follow what depends on the size
            return h
        h = model.patch_embed(x)
        h = with_hook(model, model._pos_embed, h) if "_hf_hook" in model.__dict__ else model._pos_embed(h)
        h = model.norm_pre(model.patch_drop(h))
        return h

    def _stem_module(self) -> nn.Module:
        """Make the stem a module of its own, which TorchScript compiles as it does the model."""
        twin = partial_copy(self.anchor, set(self.parameter_groups().stem))
        twin.__class__ = type("Stem", (type(self.anchor),), {"forward": _stem_of})
        return twin

    @property
    def tokens(self) -> int | None:
        count = getattr(self.anchor.patch_embed, "num_patches", None)
        return count + self.prefix_tokens if count else None

    def row(self, start: int, stop: int) -> list[nn.Module]:
        try:
            blocks = self.anchor._modules["blocks"]._modules  # looked up once: this is in every forward pass
            return list(map(blocks.__getitem__, self._numbers[start:stop]))
        except KeyError:
            return [self.block(index) for index in range(start, stop)]  # raises, naming the missing block

    def _norm(self, h: Tensor) -> Tensor:
        h = self.anchor.norm(h)
        return h

    def tokens_as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        height, width = (
            -(-side // self.reductions[0]) if self._pads else side // self.reductions[0] for side in image_size
        )
        h = h[:, self.prefix_tokens :]
        return h.reshape(h.shape[0], height, width, h.shape[-1]).permute(0, 3, 1, 2).contiguous()

    def from_map(self, spatial: Tensor, prefix: Tensor | None, boundary: int) -> Tensor:
        parts = [] if prefix is None else [prefix]
        carried = 0 if prefix is None else prefix.shape[1]
        if carried < self.prefix_tokens:
            parts.append(self._own_prefix()[:, carried:].expand(spatial.shape[0], -1, -1))
        return torch.cat([*parts, spatial.flatten(2).transpose(1, 2)], dim=1)

    def _own_prefix(self) -> Tensor:
        """The tokens that the stem puts before the patch tokens, (1, prefix_tokens, C)."""
        normed: Tensor = self.anchor.norm_pre(with_hook(self.anchor, self._unnormed_prefix))
        return normed

    def _unnormed_prefix(self) -> Tensor:
        model = self.anchor
        names = ("cls_token", "dist_token", "reg_token")
        own = torch.cat([t for t in (getattr(model, name, None) for name in names) if t is not None], dim=1)
        # An extracted back without embedded class tokens has no position embedding: look at the flag first.
        if not getattr(model, "no_embed_class", False) and model.pos_embed is not None:
            own = own + model.pos_embed[:, : self.prefix_tokens]
        return own

    def prefix_names(self) -> tuple[str, ...]:
        embedded = () if getattr(self.anchor, "no_embed_class", False) else ("pos_embed",)
        return ("cls_token", "dist_token", "reg_token", "norm_pre", *embedded)

    def block_name(self, index: int) -> str:
        return f"blocks.{self._numbers[index]}"

    def parameter_groups(self) -> ParameterGroups:
        embeddings = ("cls_token", "reg_token", "dist_token", "pos_embed")
        return ParameterGroups(self._STEM, embeddings, ("norm",))


def _stem_of(self: VisionTransformer, x: Tensor) -> Tensor:
    h: Tensor = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
    return h
