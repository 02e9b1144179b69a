"""SETR-naive: the head of the authors' segmentation networks, on the last map alone.

Source: SETR (arXiv:2012.15840), "naive upsampling", as mmsegmentation's `SETRUPHead` runs it in SN-Netv2
(arXiv:2307.00154).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional

from ....anchors.modules import copy_root

SetrNorm = Literal["group", "batch"]

_GROUPS = 32
_FACTOR = 4  # of each upsampling


class SetrHead(nn.Module):
    """SETR-naive on the last level, with auxiliary heads on the others in training.

    Args:
        channels: the channels of each level.
        reductions: the input pixels per position of each level; not used.
        num_classes: the number of classes.
        width: the channels inside the head.
        norm: the norm inside the head. `"batch"` is the authors'; its statistics differ between stitches, so networks
            of many stitches train better with `"group"`.
        auxiliary: whether the other levels have heads of their own, which count 0.4 each in the loss.

    Raises:
        ValueError: if an argument has another value than these.

    Examples:
        >>> import torch
        >>> from timm_stitch.families.dense.heads.setr import SetrHead
        >>> head = SetrHead([64, 64], [16, 16], num_classes=5)
        >>> head([torch.randn(1, 64, 8, 8), torch.randn(1, 64, 8, 8)]).shape
        torch.Size([1, 5, 32, 32])
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        num_classes: int,
        width: int = 256,
        norm: SetrNorm = "group",
        auxiliary: bool = True,
    ) -> None:
        super().__init__()
        if norm not in ("group", "batch"):
            raise ValueError(f"norm must be 'group' or 'batch', got {norm!r}.")
        if width < 1:
            raise ValueError(f"width must be 1 or more channels, got {width!r}.")
        self.num_levels = len(channels)
        self.decode = NaiveUpsampling(channels[-1], num_classes, width, norm, steps=1)
        others = channels[:-1] if auxiliary else ()
        self.auxiliary_heads = nn.ModuleList(NaiveUpsampling(c, num_classes, width, norm, steps=2) for c in others)

    def levels_used(self, training: bool) -> range:
        """List the levels that `forward` and `auxiliary` read."""
        return range(self.num_levels) if training and len(self.auxiliary_heads) else range(self.num_levels)[-1:]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Turn the last map into logits (B, num_classes, 4 h, 4 w)."""
        logits: Tensor = self.decode(maps[-1])
        return logits

    def auxiliary(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Compute the logits of the auxiliary heads, from all maps but the last."""
        return [head(one) for head, one in zip(self.auxiliary_heads, maps, strict=False)]

    def without_auxiliary(self) -> SetrHead:
        """Copy the head without its auxiliary heads; it shares all other tensors."""
        twin = cast("SetrHead", copy_root(self))
        twin.auxiliary_heads = nn.ModuleList()
        return twin


class NaiveUpsampling(nn.Module):
    """A norm, then steps of a 1x1 convolution and upsampling, then the classifier.

    Args:
        in_channels: the channels of the map.
        num_classes: the number of classes.
        width: the channels inside.
        norm: the norm inside.
        steps: the number of upsamplings.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, norm: SetrNorm, steps: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, eps=1e-6)
        widths = [in_channels, *[width] * steps]
        self.steps = nn.ModuleList(_Step(before, width, norm) for before in widths[:-1])
        self.classifier = nn.Conv2d(width, num_classes, 1)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(cast("Tensor", self.classifier.bias))

    def forward(self, h: Tensor) -> Tensor:
        """Turn a map (B, in_channels, h, w) into logits; each step makes it four times as high and wide."""
        h = self.norm(h.movedim(1, -1)).movedim(-1, 1)
        for step in self.steps:
            h = step(h)
        logits: Tensor = self.classifier(h)
        return logits


class _Step(nn.Module):
    """A 1x1 convolution, a norm, ReLU, and bilinear upsampling."""

    def __init__(self, in_channels: int, width: int, norm: SetrNorm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.norm = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(gcd(_GROUPS, width), width)

    def forward(self, h: Tensor) -> Tensor:
        h = functional.relu(self.norm(self.conv(h)))
        return functional.interpolate(h, scale_factor=_FACTOR, mode="bilinear", align_corners=False)
