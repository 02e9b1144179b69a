"""The linear head: one linear map from the features at a position to its classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LinearHead(nn.Module):
    """A norm for each level, and the sum of 1x1 convolutions of all levels at the finest one's size.

    Source: the linear probes of DINOv2 (arXiv:2304.07193), with layer norm in the place of batch norm, whose
    statistics would differ between stitches.

    Args:
        channels: the channels of the levels.
        reductions: the reductions of the levels.
        outputs: the number of classes.
    """

    def __init__(self, channels: Sequence[int], reductions: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(width, eps=1e-6) for width in channels)
        self.classifier = nn.Conv2d(sum(channels), outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map (B, C, H, W) of each level to (B, outputs, H, W) at the finest level's size."""
        size = maps[0].shape[2:]
        normed = [norm(level) for norm, level in zip(self.norms, maps, strict=True)]
        if all(level.shape[2:] == size for level in normed):
            logits: Tensor = self.classifier(torch.cat(normed, dim=1))
            return logits
        # A 1x1 convolution and bilinear resizing commute: resizing a few classes is cheaper than many channels.
        first, *others = self.classifier.weight.split([level.shape[1] for level in normed], dim=1)
        logits = F.conv2d(normed[0], first, self.classifier.bias)
        for level, weight in zip(normed[1:], others, strict=True):
            classes = F.conv2d(level, weight)
            logits = logits + (classes if classes.shape[2:] == size else F.interpolate(classes, size, mode="bilinear"))
        return logits
