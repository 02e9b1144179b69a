"""Measure the costs of every part of a network, for families without a count of their own.

Every step of the plan runs once on the meta device, under a counter of multiply-adds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ..anchors.macs import NORMS, Macs
from ..anchors.meta_device import meta_copy
from ..anchors.view import Output, View
from ..plan.costs import AnchorCosts, Cost, PlanCosts
from ..plan.steps import Block, Cross, Head, Stem, Step
from .extraction import by_number


def count_params(module: nn.Module) -> int:
    """Count the parameters of a module, each once."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def measure_steps(network: Any) -> PlanCosts:  # a StitchableNetwork, whose file is above this one
    """Measure the costs of every step that a network holds, for one input.

    Args:
        network: a `StitchableNetwork` on any device.
    """
    inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), network.example(1))
    twin = meta_copy(network).eval()
    prepared, macs = twin.prepare_inputs(inputs, twin.plan), dict[Step, int]()
    for stitch in twin.plan:
        h: Output = None
        for n, step in enumerate(stitch.steps):
            with Macs(NORMS) as counter:
                h = twin.executor.step(stitch, n, h, prepared)
            macs.setdefault(step, counter.total)
    held = by_number(network.stitching_layers)
    layers = [Cost(0, count_params(held[n])) if n in held else None for n in range(len(network.plan.layers))]
    for step in macs:
        if isinstance(step, Cross):
            layers[step.layer] = Cost(macs[step], count_params(network.stitching_layers[step.layer]))
    anchors = tuple(_anchor_costs(number, view, macs) for number, view in enumerate(network.views))
    return PlanCosts(anchors, tuple(layers))


def _anchor_costs(number: int, view: View, macs: dict[Step, int]) -> AnchorCosts | None:
    """Sum the costs of one anchor over the steps that use it; None if none does."""
    own = {step: cost for step, cost in macs.items() if not isinstance(step, Cross) and step.anchor == number}
    if not own:
        return None
    stem = Cost(sum(cost for step, cost in own.items() if isinstance(step, Stem)))
    head = Cost(max((cost for step, cost in own.items() if isinstance(step, Head)), default=0))
    if stem.macs:
        stem += Cost(0, count_params(view.subset(True, (), norm=False, head=False).anchor))
    if head.macs:
        head += Cost(0, count_params(view.subset(False, (), norm=True, head=True).anchor))
    blocks = [Cost()] * view.depth
    for step, cost in own.items():
        if isinstance(step, Block):
            blocks[step.index] = Cost(cost, sum(map(count_params, view.modules(step.index))))
    return AnchorCosts(stem, 0, tuple(blocks), Cost(), head)
