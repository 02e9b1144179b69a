"""Stitching layers: the linear maps from the channels of one anchor to those of another.

Source: SN-Net (arXiv:2302.06586), "Stitching layers and initialization"; low-rank layers:
SN-Netv2 (arXiv:2307.00154).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..plan.stitch_plan import LayerSpec

Device = torch.device | str | None


class StitchingLayer(nn.Linear):
    """An affine map of the channels at every position: (…, in_width) to (…, out_width).

    Channels are last, so tools that wrap, adapt or quantise linear layers work on it. `crossing` transposes maps of
    (B, C, H, W) before and after.
    """


class LowRankStitchingLayer(StitchingLayer):
    """A stitching layer whose matrix stays as initialised, with a trained low-rank update (LoSA).

    The matrix is `weight + lora_B @ lora_A / rank`, where `lora_B` starts at zero. The bias is trained as usual.
    `merge` makes a plain layer.

    Args:
        in_width, out_width: channels before and after the map.
        rank: the rank of the update.
        device, dtype: the device and type of the tensors.
    """

    def __init__(
        self, in_width: int, out_width: int, rank: int, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(in_width, out_width, device=device, dtype=dtype)
        self.rank = rank
        self.scale = 1.0 / rank
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(rank, in_width, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(out_width, rank, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map the channels of `x`."""
        return F.linear(x, self.weight + self.lora_B @ self.lora_A * self.scale, self.bias)

    @torch.no_grad()
    def merge(self) -> StitchingLayer:
        """Make a plain layer that computes the same, with a new matrix and this layer's bias."""
        out_width, in_width = self.weight.shape
        plain = StitchingLayer(in_width, out_width, device="meta", dtype=self.weight.dtype)
        plain.weight = nn.Parameter(self.weight + self.lora_B @ self.lora_A * self.scale)
        plain.bias = self.bias
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


def make_layer(spec: LayerSpec, device: Device = None, dtype: torch.dtype | None = None) -> StitchingLayer:
    """Make a stitching layer by its specification, with random weights."""
    if spec.rank:
        return LowRankStitchingLayer(spec.in_width, spec.out_width, spec.rank, device=device, dtype=dtype)
    return StitchingLayer(spec.in_width, spec.out_width, device=device, dtype=dtype)


def give_zero_gradients(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return `x`, with zero gradients for parameters that its computation did not use.

    Some trainers (plain DistributedDataParallel, timm's own tests) require a gradient for every parameter at every
    step. This costs one zero tensor for each.
    """
    out: Tensor = _ZeroGradients.apply(x, *parameters)
    return out


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.frozen = [p for p in parameters if not p.requires_grad]
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        for parameter in ctx.frozen:  # autograd gives these none
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return grad, *(torch.zeros_like(p) for p in ctx.saved_tensors)
