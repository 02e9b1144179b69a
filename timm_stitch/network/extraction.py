"""Some stitches as a network of their own, which shares its tensors with the whole one."""

from __future__ import annotations

import copy as copying
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..anchors.modules import drop_hooks
from ..anchors.view import View
from ..plan.results import Results
from ..plan.steps import Block
from ..plan.stitch_plan import Stitch, StitchPlan
from .crossing import uses_back_prefix_tokens
from .executor import Executor

Network = TypeVar("Network", bound=Any)  # an SNNet: this file is below it


def extract(network: Network, plan: StitchPlan, *, copy: bool = False, norm: bool = True, head: bool = True) -> Network:
    """A network that holds what the stitches of `plan` use, and knows no results.

    Args:
        network: the whole one, an `SNNet`; not changed.
        plan: some of its stitches, with its anchors and layers.
        copy: give it its own tensors instead of sharing them.
        norm, head: whether to keep those.
    """
    twin = empty_twin(network, plan)
    executor: Executor = network.executor
    views: list[View] = []
    anchors: list[nn.Module | None] = []
    for number, whole in enumerate(executor.views):
        blocks = {b for s in plan for a, b in blocks_of(s) if a == number}
        ends = [s for s in plan if s.back == number]
        runs_norm = norm and any(s.is_anchor or executor.stitched_norm for s in ends)
        entering = {n for s in plan for n, _, after in s.joints if after.anchor == number}
        own_prefix = any(uses_back_prefix_tokens(plan, executor.views, n) for n in entering)
        stem = any(s.front == number for s in plan)
        views.append(whole.subset(stem, blocks, runs_norm, head and bool(ends), own_prefix))
        anchors.append(views[-1].anchor if blocks else None)
    used = {number for s in plan for number in s.layers}
    layers = [layer if i in used else None for i, layer in enumerate(network.stitching_layers)]
    twin.anchors, twin.stitching_layers = with_gaps(anchors), with_gaps(layers)
    twin.executor = type(executor)(views, twin.stitching_layers, executor.stitched_norm)
    return copying.deepcopy(twin) if copy else twin


def empty_twin(network: Network, plan: StitchPlan) -> Network:
    """A network of another plan that has everything of its own but anchors, layers and executor."""
    twin = copying.copy(network)
    twin._modules, twin._buffers = dict(network._modules), dict(network._buffers)
    twin.__dict__.pop("forward", None)  # Accelerate's wrapped forward is bound to the whole network
    drop_hooks(twin)
    twin._stitch_hooks = OrderedDict()
    twin.plan, twin._measured, twin.stitch_id = plan, Results(), plan.stitches[0].stitch_id
    return twin


def single_stitch_graph(alone: nn.Module) -> torch.fx.GraphModule:
    """An extracted network as a graph that calls the anchors' own modules, for TorchScript."""
    return torch.fx.GraphModule(alone, _ModuleTracer().trace(alone))


class _ModuleTracer(torch.fx.Tracer):
    """Traces the network itself and leaves the anchors' modules whole."""

    def path_of_module(self, mod: nn.Module) -> str:
        paths = self.submodule_paths
        if paths is not None and mod not in paths:  # made for this graph
            paths[mod] = f"part_{len(paths)}"
            self.root.add_module(paths[mod], mod)
        return super().path_of_module(mod)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def blocks_of(stitch: Stitch) -> list[tuple[int, int]]:
    """The blocks that a stitch runs, in order, as (anchor, index)."""
    return [(step.anchor, step.index) for step in stitch.steps if isinstance(step, Block)]


def with_gaps(modules: Sequence[nn.Module | None]) -> nn.ModuleList:
    """A ModuleList that keeps its numbering where modules are missing."""
    found = nn.ModuleList()
    for i, module in enumerate(modules):
        found.add_module(str(i), module)
    return found
