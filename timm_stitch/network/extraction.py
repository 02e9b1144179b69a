"""Extraction: some stitches as a network of their own, which shares its tensors with the whole network."""

from __future__ import annotations

import copy as copying
from collections import OrderedDict
from collections.abc import Mapping
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

Network = TypeVar("Network", bound=Any)  # a StitchableNetwork, whose file is above this one


def extract(network: Network, plan: StitchPlan, *, copy: bool = False, norm: bool = True, head: bool = True) -> Network:
    """Extract a network that holds only what the stitches of `plan` use, without results.

    Args:
        network: the whole network; not changed.
        plan: a plan of some of its stitches, with its anchors and layers.
        copy: whether to copy the tensors instead of sharing them.
        norm, head: whether to keep the final norm and the head.
    """
    executor: Executor = network.executor
    for stitch in plan:
        executor.look(stitch)
    twin = empty_twin(network, plan)
    views: list[View] = []
    anchors: dict[int, nn.Module] = {}
    for number, whole in enumerate(executor.views):
        blocks = {b for s in plan for a, b in blocks_of(s) if a == number}
        ends = [s for s in plan if s.back == number]
        runs_norm = norm and any(s.is_anchor or executor.stitched_norm for s in ends)
        entering = {n for s in plan for n, _, after in s.joints if after.anchor == number}
        own_prefix = any(uses_back_prefix_tokens(plan, executor.views, n) for n in entering)
        stem = any(s.front == number for s in plan)
        views.append(whole.subset(stem, blocks, runs_norm, head and bool(ends), own_prefix))
        if blocks:
            anchors[number] = views[-1].anchor
    used = {number for s in plan for number in s.layers}
    layers = {number: layer for number, layer in by_number(network.stitching_layers).items() if number in used}
    twin.anchors, twin.stitching_layers = NumberedModules(anchors), NumberedModules(layers)
    twin.executor = type(executor)(views, twin.stitching_layers, executor.stitched_norm)
    return copying.deepcopy(twin) if copy else twin


def empty_twin(network: Network, plan: StitchPlan) -> Network:
    """Copy a network shallowly for another plan; anchors, layers and executor are still those of the whole network."""
    twin = shallow_twin(network)
    twin.plan, twin.stitch_id = plan, plan.stitches[0].stitch_id
    return twin


def shallow_twin(network: Network) -> Network:
    """Copy a network shallowly, without its hooks and results."""
    twin = copying.copy(network)
    twin._modules, twin._buffers = dict(network._modules), dict(network._buffers)
    twin.__dict__.pop("forward", None)  # Accelerate's wrapped forward is bound to the whole network
    drop_hooks(twin)
    twin._stitch_hooks, twin._measured = OrderedDict(), Results()
    return twin


def single_stitch_graph(network: nn.Module) -> torch.fx.GraphModule:
    """Trace an extracted network as a graph that calls the anchors' own modules, for TorchScript."""
    return torch.fx.GraphModule(network, _ModuleTracer().trace(network))


class _ModuleTracer(torch.fx.Tracer):
    """A tracer that leaves the anchors' modules whole."""

    def path_of_module(self, mod: nn.Module) -> str:
        paths = self.submodule_paths
        if paths is not None and mod not in paths:  # a module that was made for this graph
            paths[mod] = f"part_{len(paths)}"
            self.root.add_module(paths[mod], mod)
        return super().path_of_module(mod)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def blocks_of(stitch: Stitch) -> list[tuple[int, int]]:
    """List the blocks that a stitch runs, in order, as (anchor, index)."""
    return [(step.anchor, step.index) for step in stitch.steps if isinstance(step, Block)]


class NumberedModules(nn.ModuleList):
    """Modules by their numbers in the whole network, of which an extracted one holds some.

    Args:
        modules: the modules, by their numbers.
    """

    def __init__(self, modules: Mapping[int, nn.Module]) -> None:
        super().__init__()
        for number, module in modules.items():
            self.add_module(str(number), module)

    def _get_abs_string_index(self, idx: int) -> str:
        """The name of an entry, for all access by a number."""
        if str(idx) not in self._modules:
            raise IndexError(f"number {idx} is not in this extracted network, which holds {', '.join(self._modules)}.")
        return str(idx)


def by_number(modules: nn.ModuleList) -> dict[int, nn.Module]:
    """Get the modules of a network's list that it holds, by their numbers."""
    return {int(number): module for number, module in modules._modules.items() if module is not None}
