"""The interface of timm's models besides `forward`: features, classifier, sizes, parameter groups."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, fx, nn

from ...anchors.block_view import BlockView
from ...anchors.modules import anchor_name
from ...anchors.view import ImageInputs
from ...network.extraction import blocks_of, by_number
from ...network.image_executor import ImageExecutor
from ...network.stitchable import StitchableNetwork
from ...plan.levels import INSIDE_STEM, STEM, make_ends
from ...plan.stitch_plan import Stitch
from .classifiers import Classifiers
from .features import (
    FeatureEntry,
    FeaturePoint,
    Features,
    extract_stem,
    extract_until,
    feature_points,
    run_to_points,
    take_points,
)
from .pyramid import Pyramid
from .timm_compat import update_model_input_size


class TimmModel(StitchableNetwork):
    """The half of `SNNet` that timm's users know from every model; all of it follows the current stitch."""

    executor: ImageExecutor
    num_classes: int
    in_chans: int
    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]

    _executor_class = ImageExecutor
    _by_level: bool | None = None

    @property
    def views(self) -> Sequence[BlockView]:
        return self.executor.views

    @property
    def _current(self) -> tuple[Stitch, BlockView]:
        stitch = self.plan[self.stitch_id]
        return stitch, self.views[stitch.back]

    @property
    def num_features(self) -> int:
        """Channels that enter the head of the current stitch."""
        view = self._current[1]
        return int(view.anchor.num_features if view.has_head else view.widths[-1])

    @property
    def head_hidden_size(self) -> int:
        """Channels of the current stitch's pre-logits."""
        view = self._current[1]
        return int(view.anchor.head_hidden_size if view.has_head else view.widths[-1])

    @property
    def embed_dim(self) -> int:
        """Channels of the current stitch's last activation."""
        return self._current[1].widths[-1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patch tokens in `forward_features` of the current stitch."""
        return self._current[1].prefix_tokens

    @property
    def global_pool(self) -> str | None:
        """The pooling of the current stitch."""
        pool = getattr(self._current[1].anchor, "global_pool", None)
        return getattr(pool, "pool_type", None) if isinstance(pool, nn.Module) else pool

    @property
    def output_fmt(self) -> str:
        """The layout of `forward_features` for the current stitch: `"NLC"`, `"NHWC"`, `"NCHW"`."""
        return self._current[1].layout

    def _is_by_level(self, stitch: Stitch) -> bool:
        """Whether there is one feature map for each stage: by default where a stitch runs several."""
        if self._by_level is not None:
            return self._by_level
        return len({self.plan.anchors[anchor].levels[block] for anchor, block in blocks_of(stitch)}) > 1

    def _points(self, stitch: Stitch) -> list[FeaturePoint]:
        return feature_points(self.views, self.plan.anchors, stitch, self._is_by_level(stitch))

    @property
    def feature_info(self) -> list[FeatureEntry]:
        """An entry for each block of the current stitch, or for each stage: module, channels and reduction."""
        return [point.info for point in self._points(self._current[0])]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
        stitch_id: int | None = None,
        output_dict: bool = False,
        attn_mask: None = None,
        is_causal: bool = False,
    ) -> Any:
        """Compute the activations after chosen blocks of a stitch, as timm's models do.

        Args:
            x: the images, shape (B, C, H, W).
            indices: the entries of `feature_info`: the last n if an int, all if None.
            norm: whether to apply the final norm of the block's own anchor to activations with the resolution and
                the channels of that anchor's last block.
            stop_early: whether to end with the last of these entries.
            output_fmt: `"NCHW"` for maps, or `"NLC"` for tokens.
            intermediates_only: whether to return the list without the output of `forward_features`.
            return_prefix_tokens: whether to return (patch tokens, prefix tokens) pairs.
            stitch_id: the stitch of this call; default the current one.
            output_dict: whether to return a dict of `image_features` and `image_intermediates`, and with
                `return_prefix_tokens` a list of prefix tokens, `image_intermediates_prefix`.
            attn_mask, is_causal: timm's arguments for vision transformers; masks do not go through stitches.

        Raises:
            ValueError: if an argument has another value than these, the stitch has no such entries, or a mask is given.

        Examples:
            >>> import timm, torch
            >>> model = timm.create_model("snnet", anchors=["resnet18", "resnet34"], stitch_id=0)
            >>> maps = model.forward_intermediates(torch.randn(1, 3, 64, 64), indices=2, intermediates_only=True)
            >>> [tuple(h.shape) for h in maps]
            [(1, 256, 4, 4), (1, 512, 2, 2)]
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}.")
        if attn_mask is not None or is_causal:
            raise ValueError("attn_mask and is_causal are not supported through stitches: call an anchor by itself.")
        stitch = self._stitch(stitch_id)
        inputs = cast("ImageInputs", self.prepare_inputs(x, (stitch,)))
        points = self._points(stitch)
        wanted, last = take_points(points, indices, stitch, self._is_by_level(stitch))
        end = points[last].place if stop_early and intermediates_only else len(stitch.places)
        h, kept = run_to_points(self.executor, stitch, inputs, {points[i].place for i in wanted}, end)
        maps = [
            self._map(kept[point.place], point, inputs, norm, output_fmt)
            for n, point in enumerate(points)
            if n in wanted
        ]
        prefixed = return_prefix_tokens and any(prefix is not None for _, prefix in maps)
        spatial: list[Any] = [one for one, _ in maps]
        features = None if intermediates_only else self._tag_features(self.executor.norm(h, stitch), stitch_id)
        if output_dict:
            out = {"image_intermediates": spatial}
            out |= {"image_intermediates_prefix": [prefix for _, prefix in maps]} if prefixed else {}
            return out if intermediates_only else out | {"image_features": features}
        if prefixed:
            spatial = [one if prefix is None else (one, prefix) for one, prefix in maps]
        return spatial if intermediates_only else (features, spatial)

    def _tag_features(self, features: Tensor, stitch_id: int | None) -> Tensor:
        """Note on features of a stitch other than the current one, which head they need."""
        if stitch_id is not None and not isinstance(stitch_id, fx.Proxy) and stitch_id != self.stitch_id:
            tagged: Any = features
            tagged.needs_head_of = self.plan[stitch_id].back, stitch_id
        return features

    def _map(
        self, h: Tensor, point: FeaturePoint, inputs: ImageInputs, norm: bool, output_fmt: str
    ) -> tuple[Tensor, Tensor | None]:
        """Turn the activation at a feature point into an entry of `forward_intermediates`, and its prefix tokens."""
        view, prefix = self.views[point.anchor], None
        if point.place > STEM and norm and view.has_final_shape(point.boundary - 1):
            if view.is_partial and not view.has_norm and self.num_classes:
                raise ValueError(
                    f"anchor {point.anchor}'s final norm is not in this extracted network: take normed intermediates "
                    "from the whole one, with stitch_id."
                )
            h = view.norm(h)
        if point.place != INSIDE_STEM:
            prefix = view.prefix(h, point.boundary)
            h = view.as_map(h, inputs.size, point.boundary)
        return h.flatten(2).transpose(1, 2) if output_fmt == "NLC" else h, prefix

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Reduce the network to the current stitch, up to the last block in `indices`.

        Returns:
            The indices, all non-negative.
        """
        stitch = self._current[0]
        points = self._points(stitch)
        take, last = take_points(points, indices, stitch, self._is_by_level(stitch))
        end = points[last]
        if end.place <= STEM:
            pruned = extract_stem(self, end.anchor, early=end.place == INSIDE_STEM)
        else:
            pruned = extract_until(self, stitch, end.place, norm=not prune_norm, head=not prune_head)
        pruned._by_level = self._is_by_level(stitch)
        self.__dict__.update(pruned.__dict__)
        if prune_head:
            self.num_classes = 0
        return take

    def backbone(self, stitch_id: int | None = None, out_indices: int | Sequence[int] | None = None) -> Features:
        """Make a module of one stitch's feature maps for a detection or segmentation head, as timm's `features_only`.

        Several backbones of one network share its weights.

        Args:
            stitch_id: the stitch, fixed from then on; default the current one.
            out_indices: the entries of the stitch's `feature_info`, or the number of the last; default every level of
                a staged network, and the last three blocks of others, as for timm's own models.

        Returns:
            A module from images (B, C, H, W) to a list of maps (B, channels, H', W'), with timm's `feature_info`
            (`channels()`, `reduction()`).

        Raises:
            ValueError: if the stitch has no such entries.
        """
        return Features(self.extract(stitch_id), out_indices)

    def pyramid(
        self,
        levels: int | Sequence[int] | Sequence[Sequence[int]] = 4,
        channels: int | Sequence[int] | None = None,
        tie: bool = False,
    ) -> Pyramid:
        """Make a module of feature maps whose number, channels and reductions are the same for every stitch.

        It serves a detection or segmentation head with all stitches: `pyramid(x, stitch_id=24)`,
        `pyramid.set_stitch(24)`. It shares this network's modules. Initialise its projections by
        `least_squares_init(pyramid, images)`.

        Args:
            levels: the number of levels: the last stages of networks with stages; elsewhere the depth is divided
                evenly. Or the numbers of stages, or of blocks in the largest anchor. Or those of each anchor.
            channels: the channels of all levels, or of each; default those of the widest anchor at each level.
            tie: whether a stitching layer that leaves an anchor at a level for one as wide as the level is its
                projection, as in the authors' networks.

        Returns:
            A module from images (B, C, H, W) to a list of maps (B, channels, H', W'), with timm's `feature_info`.

        Raises:
            ValueError: if there are no such levels.

        Examples:
            >>> import timm, torch
            >>> model = timm.create_model("snnet", anchors=["resnet18", "resnet50"])
            >>> pyramid = model.pyramid(levels=2)
            >>> [[tuple(h.shape) for h in pyramid(torch.randn(1, 3, 64, 64), stitch_id=k)] for k in (0, 1, 4)]
            [[(1, 1024, 4, 4), (1, 2048, 2, 2)], [(1, 1024, 4, 4), (1, 2048, 2, 2)], [(1, 1024, 4, 4), (1, 2048, 2, 2)]]
        """
        return Pyramid(self, make_ends(self.plan.anchors, levels), channels, tie)

    def get_classifier(self) -> Classifiers:
        """The classifiers of all anchors, fastest first; both of an anchor with two heads (distilled)."""
        classifiers: list[nn.Module] = []
        current = 0
        for number, view in enumerate(self.views):
            heads = view.anchor.get_classifier() if view.has_head else ()
            if number == self._current[0].back:
                current = len(classifiers)
            classifiers.extend(heads if isinstance(heads, (tuple, list)) else (heads,))
        return Classifiers(classifiers, classifiers[current] if classifiers else nn.Identity())

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give every anchor a new classifier.

        Args:
            num_classes: the number of classes; 0 for no classifier.
            global_pool: the pooling before the classifier; None leaves it as it is.
        """
        for view in self.views:
            if view.has_head:
                view.anchor.reset_classifier(num_classes, global_pool)
        self.num_classes = num_classes
        self.results.clear()

    @property
    def set_input_size(self) -> Callable[..., None]:
        """`set_input_size(img_size)`: set the size of the images, resampling position embeddings.

        Like timm's models, a network has this only if its anchors take other sizes: LeViT does not. With anchors that
        take images of any size, it sets the size that the network expects, counts costs for and is exported for.
        """
        for view in self.views:
            if view.image_size and not hasattr(view.anchor, "set_input_size"):
                raise AttributeError(f"{anchor_name(view.anchor)!r} is made for images of {view.image_size}.")
        return self._set_input_size

    def _set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: object = None) -> None:
        if patch_size is not None:
            raise ValueError("the patch size of stitched anchors cannot be changed: it is part of the plan.")
        if any(view.is_partial for view in self.views):
            raise ValueError("this network shares its modules with a larger one: resize that, then extract.")
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        for _, anchor in self._present():
            if hasattr(anchor, "set_input_size"):
                anchor.set_input_size(img_size=size)
        for view in self.views:
            view.refresh()
        update_model_input_size(self, size)
        if size:
            self.pretrained_cfg = {**(self.pretrained_cfg or {}), "input_size": (self.in_chans, *size)}
        self.results.clear()  # they were measured at the other size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        names: set[str] = set()
        for i, anchor in self._present():
            exempt = getattr(anchor, "no_weight_decay", set)
            names.update(f"anchors.{i}.{name}" for name in exempt())
        if any(view.is_partial for view in self.views):
            names &= {name for name, _ in self.named_parameters()}
        return names

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Group parameters for layer-wise decay: blocks of equal index together, stitching layers with the heads."""
        stem: list[str] = []
        blocks: list[tuple[object, ...]] = []
        for i, anchor in self._present():
            groups = anchor.group_matcher(coarse=coarse)
            stem.append(_prefixed(i, groups["stem"]))
            inner = groups["blocks"]
            for entry in inner if isinstance(inner, (list, tuple)) else [(inner, None)]:
                blocks.append((_prefixed(i, entry[0]), *entry[1:]))
        return {"stem": "|".join(stem), "blocks": blocks}

    def _present(self) -> list[tuple[int, Any]]:
        return list(by_number(self.anchors).items())


def _prefixed(anchor: int, pattern: str) -> str:
    """A timm group pattern for the parameters of one anchor."""
    pattern = re.sub(r"(^|\|)\^", r"\1", pattern)
    return rf"^anchors\.{anchor}\.(?:{pattern})"
