"""What every stitchable network has, whatever its anchors are: stitches, their costs, and what was measured of them.

Source: SN-Net (arXiv:2302.06586). `network` has the one of timm's models; that of transformers' models is in
`timm_stitch.text`. What is the same of both is here, and here once.

The file is long because people call most of its methods: the greater part of its lines says what they do.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from ..anchors.meta_device import cast_like, is_on_meta
from ..anchors.view import CallInputs, View
from ..plan.costs import PlanCosts, PublishedCount
from ..plan.frontier import best_known
from ..plan.prefix_sharing import ScheduledRun, schedule
from ..plan.results import Results, Row
from ..plan.stitch_plan import Stitch, StitchPlan
from .compatibility import check_anchors
from .counting import measure_steps
from .crossing import uses_back_prefix_tokens
from .executor import Executor
from .extraction import extract
from .layers import LowRankStitchingLayer, make_layer
from .results import NetworkResults

StitchIds = int | Sequence[int] | Tensor
StitchHook = Callable[[Any, int, int], None]

_SCHEDULES = 64  # choices of stitches whose order is kept


class StitchableNetwork(nn.Module):
    """Anchors, a plan, and the layers between them; what a call is given, the networks that build on it say."""

    family: ClassVar[str]
    unsupported: ClassVar[Mapping[str, str]] = {}  # a feature that it lacks, and the sentence that says what to do
    plan: StitchPlan
    executor: Executor
    _executor_class: type[Executor] = Executor
    stitch_id: int
    grad_checkpointing: bool = False
    _measured: Results
    published: PublishedCount | None
    published_top1: dict[int, float]
    trained: dict[str, Any]
    _stitch_hooks: "OrderedDict[int, StitchHook]"

    def _assemble(self, views: Sequence[View], plan: StitchPlan, stitched_norm: bool, stitch_id: int | None) -> None:
        """Put anchors, plan and stitching layers together; the last step of construction.

        Raises:
            ValueError: if the anchors do not fit each other or the plan.
        """
        check_anchors(views, plan)
        modules: list[nn.Module] = [view.anchor for view in views]
        like = next(modules[0].parameters())
        self.plan = plan
        self.anchors = nn.ModuleList(modules)
        self.stitching_layers = nn.ModuleList(
            make_layer(spec, device=like.device, dtype=like.dtype) for spec in plan.layers
        )
        self.executor = self._executor_class(views, self.stitching_layers, stitched_norm)
        self._measured, self.published_top1, self.published = Results(), {}, None
        self.trained = {}
        self._stitch_hooks = OrderedDict()
        largest = plan.anchor_id(len(plan.anchors) - 1)
        self.stitch_id = plan[largest if stitch_id is None else stitch_id].stitch_id

    def record(self, **args: Any) -> None:
        """Note arguments with which this network would be made again."""

    def prepare_inputs(self, x: Any, stitches: Iterable[Stitch]) -> CallInputs:
        """Check the inputs of a call, and give them the form in which all that runs in it reads them.

        Args:
            x: the inputs, as `forward_each` takes them.
            stitches: the stitches that are to run.

        Raises:
            TypeError, ValueError: if they do not take these inputs.
        """
        raise NotImplementedError

    def call(self, x: Any, stitch_id: Any = None) -> Any:
        """Call the network with inputs as `forward_each` takes them."""
        return self(x, stitch_id=stitch_id)

    def example(self, count: int) -> Any:
        """So many random inputs, as `forward_each` takes them, where the network is."""
        raise NotImplementedError

    def extra_metrics(self, num_samples: int, num_labels: int, loss: float) -> dict[str, Any]:
        """Metrics of a row of `evaluate` other than accuracy and loss.

        Args:
            num_samples: the number of images or texts.
            num_labels: the number of labels that counted.
            loss: the mean cross-entropy.
        """
        return {"images": num_labels}

    def costs(self) -> PlanCosts:
        """The costs of every part; measured when first asked for, then kept."""
        plan, costs = self.__dict__.get("_costs", (None, None))
        if plan is not self.plan:
            costs = measure_steps(self)
            self.__dict__["_costs"] = self.plan, costs
        return cast("PlanCosts", costs)

    def no_weight_decay(self) -> set[str]:
        """The parameters that the anchors themselves exempt from weight decay."""
        return set()

    # ── which stitch ──────────────────────────────────────────────────────────────────────────────

    @property
    def views(self) -> Sequence[View]:
        """The anchors as stem, blocks and head."""
        return self.executor.views

    @property
    def num_stitches(self) -> int:
        """The number of stitches."""
        return len(self.plan)

    @property
    def stitch_ids(self) -> tuple[int, ...]:
        """The valid ids, ascending."""
        return self.plan.stitch_ids

    def set_stitch(self, stitch_id: int) -> Self:
        """Choose the stitch of every later call that names none; returns the network itself.

        Raises:
            ValueError: if the plan has no such id.
        """
        self.stitch_id = self._stitch(stitch_id).stitch_id
        self.record(stitch_id=self.stitch_id)
        return self

    def set_budget(
        self,
        *,
        macs: float | None = None,
        params: float | None = None,
        latency_ms: float | None = None,
        memory_mb: float | None = None,
        batch_size: int | None = None,
    ) -> Self:
        """Choose the best stitch known within all given budgets, as `select` does; returns the network itself.

        Args:
            macs, params, latency_ms, memory_mb: the most that is allowed of each.
            batch_size: of how many images the call is that may take `latency_ms`, as of `select`.

        Raises:
            ValueError: as `select`: if no budget is given, nothing fits, or something is not known.
        """
        self.results.check()
        budgets = {"macs": macs, "params": params, "latency_ms": latency_ms, "memory_mb": memory_mb}
        return self.set_stitch(best_known(self.stitch_table(), budgets, batch_size=batch_size)["stitch_id"])

    def _stitch(self, stitch_id: Any) -> Stitch:
        if stitch_id is None:
            return self.plan[self.stitch_id]
        if isinstance(stitch_id, torch.fx.Proxy):
            stitch_id = self.stitch_id
        elif isinstance(stitch_id, Tensor) and stitch_id.ndim == 0:
            stitch_id = stitch_id.item()
        return self.plan[stitch_id]

    # ── many stitches at once ─────────────────────────────────────────────────────────────────────

    def forward_each(self, x: Any, stitch_ids: Sequence[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Run many stitches on one batch, sharing the work of equal first parts.

        Args:
            x: images, shape (B, C, H, W); of models of transformers a mapping of tensors with B rows.
            stitch_ids: which; all by default.

        Yields:
            (stitch_id, what it gives), in the order that shares most: of timm's models logits of shape
            (B, num_classes), of transformers' an output with `logits`. They equal those of `forward` bit for bit.
        """
        ids = stitch_ids.tolist() if isinstance(stitch_ids, Tensor) else stitch_ids
        runs = self._schedule(None if ids is None else tuple(ids))
        yield from self.executor.each(runs, self.prepare_inputs(x, [run.stitch for run in runs]), self._notify)

    def _schedule(self, stitch_ids: tuple[int, ...] | None) -> list[ScheduledRun]:
        """Order stitches so that they share most; made once for each of the last choices of ids."""
        plan, schedules = self.__dict__.get("_schedules", (None, {}))
        if plan is not self.plan:  # replaced, or this network is a shallow copy with another plan
            schedules = {}
            self.__dict__["_schedules"] = self.plan, schedules
        runs: list[ScheduledRun] | None = schedules.get(stitch_ids)
        if runs is None:
            ids = self.stitch_ids if stitch_ids is None else dict.fromkeys(stitch_ids)
            runs = schedule(self._stitch(i) for i in ids)
            if len(schedules) >= _SCHEDULES:
                schedules.clear()
            schedules[stitch_ids] = runs
        return runs

    def forward_several(self, x: Tensor, stitch_ids: Sequence[int]) -> dict[int, Tensor]:
        """All that `forward_each` yields, by stitch_id."""
        return dict(self.forward_each(x, stitch_ids))

    def _stitch_per_sample(self, stitch_ids: Any, count: int, what: str) -> list[Stitch]:
        """The stitch of every row, from ids given as a list or tensor."""
        ids = list(stitch_ids.tolist() if isinstance(stitch_ids, Tensor) else stitch_ids)
        ids = [i.item() if hasattr(i, "item") else i for i in ids]
        if len(ids) != count or any(isinstance(i, list) for i in ids):
            raise ValueError(
                f"stitch_id has {len(ids)} ids for a batch of {count} {what}: expected an int, "
                f"or a list or 1-D tensor of {count} ints."
            )
        return [self._stitch(i) for i in ids]

    def register_stitch_hook(self, hook: StitchHook) -> RemovableHandle:
        """Have a function called whenever a stitch runs, to log or count what is used.

        Args:
            hook: called as `hook(model, stitch_id, images)`, with the number of images.

        Returns:
            A handle whose `remove()` ends it.
        """
        handle = RemovableHandle(self._stitch_hooks)
        self._stitch_hooks[handle.id] = hook
        return handle

    def _notify(self, stitch: Stitch, images: int) -> None:
        for hook in tuple(self._stitch_hooks.values()):
            hook(self, stitch.stitch_id, images)

    # ── one stitch alone ──────────────────────────────────────────────────────────────────────────

    def extract(self, stitch_id: int | None = None, copy: bool = False) -> Self:
        """One stitch as a network of its own that holds only the tensors that the stitch uses.

        Args:
            stitch_id: which; default the one that is set.
            copy: give it its own tensors instead of sharing this network's.

        Returns:
            A network whose plan has this one stitch; the names of its tensors are those they have here.

        Raises:
            ValueError: if the plan has no such id.
        """
        plan = StitchPlan(self.plan.anchors, self.plan.layers, (self._stitch(stitch_id),))
        alone = extract(self, plan, copy=copy)
        alone.results.adopt(self.results.current_rows())
        return alone

    def uses_back_prefix_tokens(self, number: int) -> bool:
        """Whether what crosses a stitching layer is joined by prefix tokens of the back anchor's own."""
        return uses_back_prefix_tokens(self.plan, self.views, number)

    def merge_low_rank(self) -> Self:
        """Replace every low-rank stitching layer by a plain one that computes the same.

        Frees the low-rank tensors and saves one small product a call; training then goes on with the
        whole matrix. Saved merged weights fit a merged network. Returns the network itself.
        """
        for number, layer in enumerate(self.stitching_layers):
            if isinstance(layer, LowRankStitchingLayer):
                self.stitching_layers[number] = layer.merge()
        self.plan = replace(self.plan, layers=tuple(replace(spec, rank=0) for spec in self.plan.layers))
        self._plan_changed()
        return self

    def _plan_changed(self) -> None:
        """Note the plan for whoever makes this network again."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every block in place, so that all stitches run compiled and switching compiles nothing.

        The arguments are those of `torch.compile`. Blocks of one width share a graph, so a few graphs
        serve all stitches. (`torch.compile(model)` would specialise on the stitch and give up after a few.)
        """
        for view in self.views:
            for index in range(view.depth):
                if view.has_block(index):
                    for module in view.modules(index):
                        module.compile(*args, **kwargs)

    # ── what is known of the stitches ─────────────────────────────────────────────────────────────

    @property
    def results(self) -> NetworkResults:
        """What was measured of the stitches, and of which weights."""
        return NetworkResults(self)

    def stitch_table(self) -> list[dict[str, Any]]:
        """One row a stitch, in id order: what it is, what it costs, and what is known of it.

        Returns:
            Dicts with `stitch_id`, `name`, `macs` (multiply-adds for one image), `params` (all it
            holds), for the authors' networks `published_macs` and `published_params` in the count of
            their tables (None where they give no parameters), and whatever was measured or published:
            `published_top1`, `top1`, `top5`, `latency_ms`, …. Measured is only what belongs to the weights that
            the network has now.
        """
        return self.table_with(self.results.current())

    def table_with(self, measured: Mapping[int, Row]) -> list[dict[str, Any]]:
        """The rows of `stitch_table` with these measurements, by stitch_id, instead of the known ones."""
        costs, rows = self.costs(), []
        for stitch in self.plan:
            cost = costs.cost(stitch)
            row: dict[str, Any] = {"stitch_id": stitch.stitch_id, "name": stitch.name}
            row.update(macs=cost.macs, params=cost.params)
            if self.published:
                theirs = costs.published(stitch, self.published)
                row.update(published_macs=theirs.macs)
                row.update(published_params=theirs.params if self.published.params else None)
            if stitch.stitch_id in self.published_top1:
                row.update(published_top1=self.published_top1[stitch.stitch_id])
            rows.append(row | dict(measured.get(stitch.stitch_id, {})))
        return rows

    # ── weights ───────────────────────────────────────────────────────────────────────────────────

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; a network on the meta device takes over the tensors given, in its own dtypes."""
        if not assign and is_on_meta(self):
            state_dict, assign = cast_like(state_dict, self.state_dict()), True
        self.results.clear()
        return super().load_state_dict(state_dict, strict, assign)


def is_sequence_of_ids(ids: Any) -> bool:
    """Whether these are several ids: a list, a tuple, a 1-D tensor or array."""
    return hasattr(ids, "__len__") and not isinstance(ids, str) and getattr(ids, "ndim", 1) > 0


def logits_of(out: Any) -> Tensor:
    """The logits in what a network gives: of timm's models that themselves, of transformers' a part of the output."""
    if isinstance(out, Tensor):
        return out
    logits = getattr(out, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{type(out).__name__} has no logits but {', '.join(map(str, out))}: this needs a network that classifies."
        )
    return logits
