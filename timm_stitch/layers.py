"""Stitching layers: the linear maps between what leaves one anchor and what enters another.

Source: SN-Net (arXiv:2302.06586), "Stitching layers and initialization". Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StitchingLayer(nn.Linear):
    """An affine map of the channels at every position: (B, N, in_width) to (B, N, out_width)."""


def touch(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return `x`, with zero gradients for parameters that its computation did not use.

    Some trainers (plain DistributedDataParallel, timm's own tests) want a gradient for every parameter
    at every step. Costs one zero tensor for each.
    """
    return _Touch.apply(x, *parameters)  # type: ignore[no-any-return]


class _Touch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *parameters):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, *(torch.zeros_like(p) for p in ctx.saved_tensors)


torch.fx.wrap("touch")
