"""The head of dense prediction transformers (DPT), which fuses all levels from coarse to fine.

Source: DPT (arXiv:2103.13413).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Readout = Literal["ignore", "project"]

COARSEST = 32  # the reduction of the last level after reassembling; each finer one has half of the next


class DptHead(nn.Module):
    """Reassembles the levels at reductions that double, and fuses them from coarse to fine.

    Args:
        channels: the channels of the levels.
        reductions: the reductions of the levels.
        outputs: the number of classes, or 1 for depth.
        features: the channels of the fused maps.
        readout: `"project"` to join the first prefix token (the class token) to every position of its map, as the
            paper does; all anchors must have one.

    Raises:
        ValueError: if an argument has another value than these.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[int],
        outputs: int,
        features: int = 256,
        readout: Readout = "ignore",
    ) -> None:
        super().__init__()
        if readout not in ("ignore", "project"):
            raise ValueError(f"readout must be 'ignore' or 'project', got {readout!r}.")
        self.uses_prefix_tokens = readout == "project"
        self.readouts = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.GELU()) for width in channels if self.uses_prefix_tokens
        )
        targets = [COARSEST >> (len(channels) - 1 - level) for level in range(len(channels))]
        self.reassemble = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, features, 1),
                _resize(features, reduction / max(target, 1)),
                nn.Conv2d(features, features, 3, padding=1, bias=False),
            )
            for width, reduction, target in zip(channels, reductions, targets, strict=True)
        )
        self.fuse = nn.ModuleList(_Fusion(features, n == len(channels) - 1) for n in range(len(channels)))
        self.predict = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(features // 2, outputs, 1),
        )  # fmt: skip

    def forward(self, maps: Sequence[Tensor], prefix_tokens: Sequence[Tensor | None] = ()) -> Tensor:
        """Map (B, C, H, W) of each level to (B, outputs, H', W') at twice the size of the finest fused map."""
        if self.uses_prefix_tokens:
            maps = [
                self._read_out(n, level, token)
                for n, (level, token) in enumerate(zip(maps, prefix_tokens, strict=True))
            ]
        levels = [block(level) for block, level in zip(self.reassemble, maps, strict=True)]
        fused: Tensor = self.fuse[-1](levels[-1], None)
        for block, level in zip(list(self.fuse)[-2::-1], levels[-2::-1], strict=True):
            fused = block(level, fused)
        out: Tensor = self.predict(F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True))
        return out

    def _read_out(self, n: int, level: Tensor, tokens: Tensor | None) -> Tensor:
        if tokens is None:
            raise ValueError("readout='project' needs a class token in every anchor: set readout='ignore'.")
        positions = level.flatten(2).transpose(1, 2)
        joined = torch.cat([positions, tokens[:, :1].expand_as(positions)], dim=-1)
        out: Tensor = self.readouts[n](joined).transpose(1, 2).unflatten(2, level.shape[2:])
        return out


def _resize(features: int, factor: float) -> nn.Module:
    """Make the layer that brings a map to a size `factor` times its own."""
    if factor == 1:
        return nn.Identity()
    if factor > 1:
        return nn.ConvTranspose2d(features, features, int(factor), stride=int(factor))
    return nn.Conv2d(features, features, 3, stride=round(1 / factor), padding=1)


class _Residual(nn.Module):
    """Two convolutions before which an activation comes, and a skip."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.conv1(F.relu(x))))
        return out + x


class _Fusion(nn.Module):
    """Adds a level to the fused coarser ones, at the level's size; the coarsest level has none to be added to."""

    def __init__(self, features: int, is_coarsest: bool) -> None:
        super().__init__()
        self.of_level = None if is_coarsest else _Residual(features)
        self.of_sum = _Residual(features)
        self.project = nn.Conv2d(features, features, 1)

    def forward(self, level: Tensor, coarser: Tensor | None) -> Tensor:
        x = level
        if coarser is not None and self.of_level is not None:
            size = level.shape[2:]
            x = self.of_level(level) + F.interpolate(coarser, size, mode="bilinear", align_corners=True)
        out: Tensor = self.project(self.of_sum(x))
        return out
