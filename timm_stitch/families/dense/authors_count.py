"""The multiply-adds of a segmentation network as its authors' result files count them.

Source: `get_flops_snnet.py` of github.com/ziplab/SN-Netv2. fvcore counts a traced call of backbone and decode head:

- upsampling inside the head as 4 for each value, the last one to the image's size not at all;
- of the projections the last map's, which the head reads, and the first map's, of which it reads the shape. The trace
  drops the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...anchors.macs import NORMS, Macs
from ...anchors.meta_device import meta_copy
from ...plan.costs import Cost
from ...plan.stitch_plan import Stitch
from ..timm_models.pyramid import Pyramid
from ..timm_models.pyramid_costs import PyramidCosts, levels_of


def _upsampling(*args: object, out_val: Tensor, **kwargs: object) -> int:
    return 2 * 4 * out_val.numel()  # PyTorch's registry counts two flops to one multiply-add


_COUNTED: dict[Any, Callable[..., int]] = {**NORMS, torch.ops.aten.upsample_bilinear2d: _upsampling}


@torch.no_grad()
def measure_as_authors(pyramid: Pyramid, head: nn.Module, costs: PyramidCosts) -> PyramidCosts:
    """Measure a head as the authors do; all else is as in `costs`, those at the pyramid's own image size."""
    twin = meta_copy(head).eval()
    like = next(twin.parameters())
    maps = [
        torch.empty(1, width, *(side // reduction for side in pyramid.image_size), device="meta", dtype=like.dtype)
        for width, reduction in zip(pyramid.channels, pyramid.reductions, strict=True)
    ]
    with Macs(_COUNTED) as counter:
        twin(maps)
    return replace(costs, on_top=Cost(counter.total))


def cost_as_authors(costs: PyramidCosts, stitch: Stitch) -> Cost:
    """Sum the multiply-adds of a stitch as the authors do, from the output of `measure_as_authors`."""
    levels = levels_of(stitch, costs.ends)
    projections = [costs.projections[levels[n]].macs for n in {0, len(levels) - 1}]
    return Cost(costs.path(stitch).macs + sum(projections) + costs.on_top.macs)
