"""A network that runs along paths, as a thing to have: one stitch of it alone, what each costs, its weights.

Imports torch, timm (through `compat` and `views`) and the layers below.
"""

import copy as copying
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from ..anchors.auto import own_hooks
from ..anchors.meta_device import in_dtype_of, without_memory
from ..anchors.timm_compat import update_model_args
from ..evaluation.selection import select
from ..plan.costs import PlanCosts
from ..plan.stitch_plan import Stitch, StitchPlan
from .counting import measure
from .executor import Paths
from .layers import LowRankStitchingLayer


class Stitched(Paths):
    """Paths, and what one does with them besides running them; the arguments are those of `SNNet`."""

    def set_budget(
        self,
        *,
        macs: float | None = None,
        params: float | None = None,
        latency_ms: float | None = None,
        memory_mb: float | None = None,
    ) -> Self:
        """Choose the best stitch known within all given budgets, as `select` does; returns the network itself.

        Raises:
            ValueError: as `select`: if no budget is given, nothing fits, or something is not known.
        """
        return self.set_stitch(
            select(self, macs=macs, params=params, latency_ms=latency_ms, memory_mb=memory_mb)  # type: ignore[arg-type]
        )

    # ── one stitch alone ──────────────────────────────────────────────────────────────────────────

    def extract(self, stitch_id: int | None = None, copy: bool = False) -> Self:
        """One stitch as a network of its own that holds only the tensors that the stitch uses.

        Args:
            stitch_id: which; default the one that is set.
            copy: give it its own tensors instead of sharing this network's.

        Returns:
            An `SNNet` whose plan has this one stitch; the names of its tensors are those they have here.

        Raises:
            ValueError: if the plan has no such id.
        """
        stitch = self._stitch(stitch_id)
        plan = StitchPlan(self.plan.anchors, self.plan.layers, (stitch,))
        return self._part(plan, copy)

    def _part(self, plan: StitchPlan, copy: bool = False, norm: bool = True, head: bool = True) -> Self:
        """A network that holds what the stitches of `plan` use, sharing tensors with this one."""
        twin = copying.copy(self)
        twin._modules, twin._buffers = dict(self._modules), dict(self._buffers)
        twin.__dict__.pop("forward", None)  # Accelerate's wrapped forward is bound to the whole network
        own_hooks(twin)
        twin._stitch_hooks = OrderedDict()
        twin.plan, twin.views = plan, []
        anchors: list[nn.Module | None] = []
        for number, whole in enumerate(self.views):
            blocks = {b for s in plan for a, b in blocks_of(s) if a == number}
            ends = [s for s in plan if s.back == number]
            runs_norm = norm and any(s.is_anchor or self.norms_stitched for s in ends)
            own_prefix = any(self.borrows(n) for s in plan for n, _, after in s.joints if after.anchor == number)
            stem = any(s.front == number for s in plan)
            part = whole.part(stem, blocks, runs_norm, head and bool(ends), own_prefix)
            twin.views.append(part)
            anchors.append(part.anchor if blocks else None)
        used = {number for s in plan for number in s.layers}
        layers = [layer if i in used else None for i, layer in enumerate(self.stitching_layers)]
        twin.anchors, twin.stitching_layers = _sparse(anchors), _sparse(layers)
        twin.stitch_id = plan.stitches[0].stitch_id
        twin.known = {k: v for k, v in self.known.items() if k in plan}
        return copying.deepcopy(twin) if copy else twin

    def merge_low_rank(self) -> Self:
        """Replace every low-rank stitching layer by a plain one that computes the same.

        Frees the low-rank tensors and saves one small product a call; training then goes on with the
        whole matrix. Saved merged weights fit a merged network. Returns the network itself.
        """
        for number, layer in enumerate(self.stitching_layers):
            if isinstance(layer, LowRankStitchingLayer):
                self.stitching_layers[number] = layer.merge()
        self.plan = replace(self.plan, layers=tuple(replace(spec, rank=0) for spec in self.plan.layers))
        recorded = {"plan": self.plan.to_dict()} if "plan" in getattr(self, "_model_args", {}) else {"rank": 0}
        update_model_args(self, **recorded)
        return self

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` gets: the current stitch alone, as a graph of the anchors' own modules."""
        alone = self.extract()
        graph = _ModuleTracer().trace(alone)
        return torch.fx.GraphModule(alone, graph)

    # ── costs ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that the network takes, or expects by default."""
        used = [self.views[segment.anchor] for stitch in self.plan for segment in stitch.segments]
        sizes = [part.image_size for part in dict.fromkeys(used) if part.image_size]
        cfg = getattr(self, "pretrained_cfg", None) or getattr(used[0].anchor, "pretrained_cfg", None) or {}
        return sizes[0] if sizes else tuple(cfg.get("input_size", (3, 224, 224))[-2:])

    def costs(self) -> PlanCosts:
        """What every part costs at the present image size; measured when first asked for, then kept."""
        key = (self.plan, self.image_size, self.num_classes, self.norms_stitched)
        cached = self.__dict__.get("_costs")
        if cached is None or cached[0] != key:
            cached = key, measure(self)
            self.__dict__["_costs"] = cached
        return cached[1]

    def stitch_table(self) -> list[dict[str, Any]]:
        """One row a stitch, in id order: what it is, what it costs, and what is known of it.

        Returns:
            Dicts with `stitch_id`, `name`, `macs` (multiply-adds for one image), `params` (all it
            holds), for the authors' networks `published_macs` and `published_params` in the count of
            their tables (None where they give no parameters), and whatever was measured or published:
            `published_top1`, `top1`, `top5`, `latency_ms`, ….
        """
        costs = self.costs()
        rows = []
        for stitch in self.plan:
            cost = costs.cost(stitch)
            row: dict[str, Any] = {"stitch_id": stitch.stitch_id, "name": stitch.name}
            row.update(macs=cost.macs, params=cost.params)
            if self.published:
                theirs = costs.published(stitch, self.published)
                row.update(published_macs=theirs.macs)
                row.update(published_params=theirs.params if self.published.params else None)
            rows.append(row | self.known.get(stitch.stitch_id, {}))
        return rows

    def compile(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Compile every block in place, so that all stitches run compiled and switching compiles nothing.

        The arguments are those of `torch.compile`. Blocks of one width share a graph, so a few graphs
        serve all stitches. (`torch.compile(model)` would specialise on the stitch and give up after a few.)
        """
        for part in self.views:
            for index in range(part.depth):
                if part.holds(index):
                    for module in part.modules(index):
                        module.compile(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; a network on the meta device takes over the tensors given, in its own dtypes."""
        if not assign and without_memory(self):
            state_dict, assign = in_dtype_of(state_dict, self.state_dict()), True
        self.known.clear()
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if any(key.startswith(prefix + "stitch_layers.") for key in state_dict):
            raise ValueError(
                "these weights are in the layout of the authors' release: convert them with "
                "timm_stitch.convert_checkpoint, or load them by create_model(..., pretrained=True, "
                "pretrained_cfg_overlay=dict(file=PATH))."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        flag = state_dict.get(prefix + "stitched_norm")
        if flag is not None and flag.device.type != "meta":
            self._norms_stitched = bool(flag.item())
            update_model_args(self, stitched_norm=self._norms_stitched)


class _ModuleTracer(torch.fx.Tracer):
    """Traces the network itself and leaves the anchors' modules whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def blocks_of(stitch: Stitch) -> list[tuple[int, int]]:
    """The blocks that a stitch runs, in order, as (anchor, index)."""
    return [(number, which) for kind, number, which in stitch.steps if kind == "block"]


def _sparse(modules: Sequence[nn.Module | None]) -> nn.ModuleList:
    """A ModuleList that keeps its numbering where modules are missing."""
    found = nn.ModuleList()
    for i, module in enumerate(modules):
        found.add_module(str(i), module)
    return found
