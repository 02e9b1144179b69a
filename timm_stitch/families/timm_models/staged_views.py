"""Views of timm models in stages of falling resolution: Swin, LeViT and ResNet.

Blocks are numbered through all stages. timm puts the downsampling at the start of a stage; here it belongs to the
first block of that stage, so that every boundary lies after a block or the stem.

A recording would cut most of these models at the same boundaries, and run as fast. Making it takes as long as making
the model; it has no map inside ResNet's stem, and cuts elsewhere where a stage has one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...anchors.block_view import ParameterGroups
from ...anchors.modules import child, find_submodule
from .written_view import WrittenView


class Stage(NamedTuple):
    """One stage of a model.

    Args:
        blocks: the names of the modules of each block.
        width, reduction: the channels and the reduction of its output.
    """

    blocks: list[tuple[str, ...]]
    width: int
    reduction: int


class StagedView(WrittenView):
    """A model whose blocks lie in stages; the rest is the stem, the norm and the head.

    Args:
        anchor: the model.
        stem_width, stem_reduction: the channels and the reduction at boundary 0.
        stages: the stages.
    """

    def __init__(self, anchor: nn.Module, stem_width: int, stem_reduction: int, stages: Sequence[Stage]) -> None:
        self.anchor = anchor
        self._parts = [block for stage in stages for block in stage.blocks]
        self.depth = len(self._parts)
        self.widths = (stem_width, *(stage.width for stage in stages for _ in stage.blocks))
        self.reductions = (stem_reduction, *(stage.reduction for stage in stages for _ in stage.blocks))
        self.stage_starts = tuple(accumulate((len(stage.blocks) for stage in stages[:-1]), initial=0))

    def modules(self, index: int) -> tuple[nn.Module, ...]:
        return tuple(child(self.anchor, name) for name in self._parts[index])

    def block_names(self, index: int) -> tuple[str, ...]:
        return self._parts[index]

    def block_name(self, index: int) -> str:
        return self._parts[index][-1]

    def transition(self, index: int) -> nn.Module | None:
        return find_submodule(self.anchor, self._parts[index][0]) if len(self._parts[index]) > 1 else None


def _stages(anchor: Any, root: str) -> list[Stage]:
    """List the stages under `root`, each of which is a module of `downsample` and `blocks`."""
    stages = []
    for index, (stage, info) in enumerate(zip(getattr(anchor, root), anchor.feature_info, strict=True)):
        names: list[tuple[str, ...]] = [(f"{root}.{index}.blocks.{name}",) for name in stage.blocks._modules]
        if not isinstance(stage.downsample, nn.Identity):
            names[0] = (f"{root}.{index}.downsample", *names[0])
        stages.append(Stage(names, info["num_chs"], info["reduction"]))
    return stages


def _has_stages(stages: object) -> bool:
    """Whether these are stages of `downsample`, then `blocks` in a row."""
    return isinstance(stages, nn.Sequential) and all(
        set(stage._modules) == {"downsample", "blocks"} and isinstance(stage.blocks, (nn.Sequential, nn.ModuleList))
        for stage in stages
    )


class SwinView(StagedView):
    """timm's `SwinTransformer` and models built like it: maps of (B, H, W, C) between blocks."""

    layout = "NHWC"

    def __init__(self, anchor: Any) -> None:
        first = anchor.feature_info[0]
        super().__init__(anchor, first["num_chs"], first["reduction"], _stages(anchor, "layers"))

    @staticmethod
    def fits(model: nn.Module) -> bool:
        children = {"patch_embed", "layers", "norm", "head"}
        return (
            set(model._modules) == children
            and getattr(model, "output_fmt", None) == "NHWC"
            and _has_stages(model.layers)
            and not model._parameters
        )

    image_size = property(WrittenView._embed_size)

    def stem(self, x: Tensor) -> Tensor:
        h: Tensor = self.anchor.patch_embed(x)
        return h

    def _norm(self, h: Tensor) -> Tensor:
        h = self.anchor.norm(h)
        return h

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups(("patch_embed",), (), ("norm",))


class LevitView(StagedView):
    """timm's `Levit`: a convolutional stem, tokens without a class token, no final norm."""

    def __init__(self, anchor: Any) -> None:
        first = anchor.feature_info[0]
        super().__init__(anchor, first["num_chs"], first["reduction"], _stages(anchor, "stages"))
        self.layout = "NCHW" if anchor.use_conv else "NLC"
        self._stride: int = anchor.stem.stride
        # The attention biases fix the grid; only a downsampling keeps it under a name.
        downs = [stage.downsample for stage in anchor.stages if not isinstance(stage.downsample, nn.Identity)]
        grid = downs[0].attn_downsample.resolution if downs else None
        self._fixed_size = (grid[0] * self._stride, grid[1] * self._stride) if grid else None

    @staticmethod
    def fits(model: nn.Module) -> bool:
        return (
            set(model._modules) in ({"stem", "stages", "head"}, {"stem", "stages", "head", "head_dist"})
            and hasattr(model, "use_conv")
            and hasattr(model.stem, "stride")
            and _has_stages(model.stages)
            and not model._parameters
        )

    def stem(self, x: Tensor) -> Tensor:
        h: Tensor = self.anchor.stem(x)
        return h.flatten(2).transpose(1, 2) if self.layout == "NLC" else h

    def tokens_as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        height, width = (-(-side // self._stride) for side in image_size)
        while height * width > h.shape[1]:  # each downsampling rounds up
            height, width = (height + 1) // 2, (width + 1) // 2
        return h.transpose(1, 2).reshape(h.shape[0], h.shape[2], height, width)

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups(("stem",), (), ())


class ResNetView(StagedView):
    """timm's `ResNet` (also ResNeXt, SE-ResNet): maps of (B, C, H, W), no final norm, any image size."""

    layout = "NCHW"
    _STEM = ("conv1", "bn1", "act1", "maxpool")

    def __init__(self, anchor: Any) -> None:
        infos = {info["module"]: info for info in anchor.feature_info if info["module"].startswith("layer")}
        stages = []
        for layer, info in infos.items():
            names: list[tuple[str, ...]] = [(f"{layer}.{name}",) for name in anchor.get_submodule(layer)._modules]
            stages.append(Stage(names, info["num_chs"], info["reduction"]))
        early = anchor.feature_info[0]
        super().__init__(anchor, early["num_chs"], infos["layer1"]["reduction"], stages)
        if early["reduction"] < self.reductions[0]:
            self.early = early["module"], early["num_chs"], early["reduction"]

    @staticmethod
    def fits(model: nn.Module) -> bool:
        layers = {name for name in model._modules if name.startswith("layer")}
        return (
            {"layer1", "layer2"} <= layers
            and set(model._modules) == {*ResNetView._STEM, *layers, "global_pool", "fc"}
            and all(isinstance(model._modules[name], nn.Sequential) for name in layers)
            and layers == {info["module"] for info in getattr(model, "feature_info", ())[1:]}
        )

    def stem(self, x: Tensor) -> Tensor:
        return self.stem_in_two(x)[1]

    def stem_in_two(self, x: Tensor) -> tuple[Tensor, Tensor]:
        model = self.anchor
        early = model.act1(model.bn1(model.conv1(x)))
        return early, model.maxpool(early)

    def parameter_groups(self) -> ParameterGroups:
        return ParameterGroups(self._STEM, (), ())
