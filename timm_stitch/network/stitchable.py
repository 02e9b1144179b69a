"""The class that all stitchable networks share: stitches, their costs, and their measured results.

Source: SN-Net (arXiv:2302.06586). Each family derives its own network: `SNNet` for timm's models, `StitchedModel` for
those of transformers. The file is long because most of its methods are public: the greater part of it is docstrings.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from ..anchors.meta_device import cast_like, is_on_meta
from ..anchors.view import CallInputs, Inputs, Output, View
from ..plan.costs import Cost, PlanCosts, PublishedCount
from ..plan.frontier import best_known
from ..plan.prefix_sharing import ScheduledRun, schedule
from ..plan.results import Results, Row, Rows
from ..plan.stitch_plan import Stitch, StitchPlan
from .compatibility import check_anchors
from .counting import measure_steps
from .crossing import Join, uses_back_prefix_tokens
from .executor import Executor
from .extraction import by_number, extract
from .layers import LowRankStitchingLayer, make_layer
from .objective import Objective
from .results import NetworkResults
from .structure import structure_version

StitchIds = int | Sequence[int] | Tensor
StitchHook = Callable[["StitchableNetwork", int, int], None]

_SCHEDULES = 64  # cached schedules, one for each choice of stitches


class StitchableNetwork(nn.Module):
    """One set of weights, many networks: anchors, a plan of stitches, and the stitching layers between the anchors.

    `timm_stitch.stitch`, `load` and `from_hub` make networks; each family defines the inputs and outputs of a call.

    Attributes:
        plan: the stitches.
        anchors: the anchors, in the order of the plan.
        stitching_layers: the stitching layers, by their numbers in the plan.
        stitch_id: the stitch of every call that names none.
        executor: the object that runs the stitches.
        trained: the history of the weights: base models, training runs, repository.

    Examples:
        >>> import timm_stitch
        >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
        >>> model.num_stitches, model.plan[3].name
        (8, 'levit_192[0:2] + levit_256[2:12]')
    """

    if TYPE_CHECKING:
        __getattr__: None  # type: ignore[assignment, misc] # that of nn.Module would take any name for an attribute

    family: ClassVar[str]
    unsupported: ClassVar[Mapping[str, str]] = {}  # the features that it lacks, each with advice for the user
    plan: StitchPlan
    executor: Executor
    _executor_class: type[Executor] = Executor
    stitch_id: int
    grad_checkpointing: bool = False
    objective: Objective | None = None  # None: it classifies
    _measured: Results
    _measured_structure: bytes | None = None
    published: PublishedCount | None
    published_scores: dict[int, dict[str, float]]  # of each stitch, by the names of metrics
    trained: dict[str, Any]
    _stitch_hooks: "OrderedDict[int, StitchHook]"

    def _assemble(self, views: Sequence[View], plan: StitchPlan, stitched_norm: bool, stitch_id: int | None) -> None:
        """Assemble anchors, plan and stitching layers; the last step of construction.

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
        self._measured, self.published_scores, self.published = Results(), {}, None
        self.trained = {}
        self._stitch_hooks = OrderedDict()
        largest = plan.anchor_id(len(plan.anchors) - 1)
        self.stitch_id = plan[largest if stitch_id is None else stitch_id].stitch_id

    # ── methods of each family ────────────────────────────────────────────────────────────────────

    def record(self, **args: object) -> None:
        """Record arguments with which this network would be made again."""

    def prepare_inputs(self, x: Inputs, stitches: Iterable[Stitch]) -> CallInputs:
        """Check the inputs of a call, and wrap them for the code that runs in it.

        Args:
            x: the inputs.
            stitches: the stitches that are to run.

        Raises:
            TypeError, ValueError: if the stitches do not take these inputs.
        """
        raise NotImplementedError

    def call(self, x: Inputs, stitch_id: StitchIds | None = None) -> Output:
        """Call the network with all inputs as one argument."""
        return self(x, stitch_id=stitch_id)

    def example(self, count: int) -> Inputs:
        """Make random inputs of `count` rows on the network's device."""
        raise NotImplementedError

    def extra_metrics(self, num_samples: int, num_labels: int, loss: float) -> Row:
        """Compute the metrics of a row of `evaluate` other than accuracy and loss.

        Args:
            num_samples: the number of images or texts.
            num_labels: the number of labels that counted.
            loss: the mean cross-entropy.
        """
        return {"images": num_labels}

    def costs(self) -> PlanCosts:
        """Measure the costs of every part, or get the cached ones of the same plan and modules."""
        return self._cached_costs((), lambda: measure_steps(self))

    def _cached_costs(self, setting: Hashable, measure: Callable[[], PlanCosts]) -> PlanCosts:
        """Get the costs at a setting, or measure them if the plan or a module has changed since."""
        version = structure_version(self)
        plan, cached_version, costs = self.__dict__.get("_costs", (None, b"", {}))
        if plan is not self.plan or cached_version != version:
            costs = {}
            self.__dict__["_costs"] = self.plan, version, costs
        if setting not in costs:
            costs[setting] = measure()
        return cast("PlanCosts", costs[setting])

    def no_weight_decay(self) -> set[str]:
        """Collect the names of the parameters that the anchors themselves exempt from weight decay."""
        return set()

    # ── the choice of a stitch ────────────────────────────────────────────────────────────────────

    @property
    def views(self) -> Sequence[View]:
        """The views of the anchors: stem, blocks and head."""
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
        """Choose the stitch of every later call that names none.

        Args:
            stitch_id: the id of the stitch.

        Returns:
            The network itself.

        Raises:
            ValueError: if the plan has no such id.

        Examples:
            >>> import timm_stitch
            >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
            >>> model.set_stitch(3).stitch_id
            3
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
        """Choose the most accurate stitch within all budgets, by the figures of `stitch_table`.

        Args:
            macs: the limit of multiply-adds per image, or per text of the network's `length`.
            params: the limit of parameters that the stitch holds.
            latency_ms: the limit of milliseconds per call, as measured by `profile`.
            memory_mb: the limit of memory in MB, as measured by `profile`.
            batch_size: the number of images in the call that `latency_ms` limits, one of the measured batch sizes;
                default that of each row's own `latency_ms`.

        Returns:
            The network itself.

        Raises:
            ValueError: if there is no budget, no stitch fits, or an accuracy or quantity is unknown.

        Examples:
            >>> import timm_stitch
            >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
            >>> model.set_budget(macs=8e8).stitch_id  # by the accuracies that its authors published
            6
        """
        rows = self.table_with(self.results.check())
        budgets = {"macs": macs, "params": params, "latency_ms": latency_ms, "memory_mb": memory_mb}
        return self.set_stitch(best_known(rows, budgets, batch_size=batch_size)["stitch_id"])

    def _stitch(self, stitch_id: Any) -> Stitch:
        if stitch_id.__class__ is int:
            return self.plan[stitch_id]
        if stitch_id is None:
            return self.plan[self.stitch_id]
        if isinstance(stitch_id, torch.fx.Proxy):
            stitch_id = self.stitch_id
        elif isinstance(stitch_id, Tensor) and stitch_id.ndim == 0:
            stitch_id = stitch_id.item()
        return self.plan[stitch_id]

    # ── many stitches at once ─────────────────────────────────────────────────────────────────────

    def forward_each(self, x: Any, stitch_ids: Sequence[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Run many stitches on one batch, and share the work of equal first blocks.

        Args:
            x: the images, shape (B, C, H, W); for models of transformers a mapping of tensors with B rows.
            stitch_ids: the ids of the stitches; default all.

        Yields:
            (stitch_id, output), in the order that shares most work. The output equals that of `forward` bit for bit:
            logits of shape (B, num_classes), for models of transformers an output with `logits`.

        Examples:
            >>> import timm_stitch, torch
            >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
            >>> images = torch.randn(2, 3, 224, 224, device="meta")
            >>> {stitch_id: tuple(logits.shape) for stitch_id, logits in model.forward_each(images, [1, 4])}
            {4: (2, 1000), 1: (2, 1000)}
        """
        ids = stitch_ids.tolist() if isinstance(stitch_ids, Tensor) else stitch_ids
        runs = self._schedule(None if ids is None else tuple(ids))
        yield from self.executor.each(runs, self.prepare_inputs(x, [run.stitch for run in runs]), self._notify)

    def predict_each(self, x: Any, stitch_ids: Sequence[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Run many stitches on one batch as `evaluate` does; as `forward_each`, unless a network predicts otherwise."""
        return self.forward_each(x, stitch_ids)

    def _schedule(self, stitch_ids: tuple[int, ...] | None) -> list[ScheduledRun]:
        """Order stitches so that they share most work; cached by choice of ids."""
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
        """Collect what `forward_each` yields in a dict by stitch_id."""
        return dict(self.forward_each(x, stitch_ids))

    def _stitch_per_sample(self, stitch_ids: Sequence[int] | Tensor, count: int, unit: str) -> list[Stitch]:
        """Look up the stitch of every row."""
        ids = list(stitch_ids.tolist() if isinstance(stitch_ids, Tensor) else stitch_ids)
        ids = [i.item() if hasattr(i, "item") else i for i in ids]
        if len(ids) != count or any(isinstance(i, list) for i in ids):
            raise ValueError(
                f"stitch_id has {len(ids)} ids for a batch of {count} {unit}: expected an int, "
                f"or a list or 1-D tensor of {count} ints."
            )
        return [self._stitch(i) for i in ids]

    def register_stitch_hook(self, hook: StitchHook) -> RemovableHandle:
        """Register a function that is called whenever a stitch runs, to log or count the use of stitches.

        Args:
            hook: the function, called as `hook(model, stitch_id, num_images)`.

        Returns:
            A handle whose `remove()` unregisters the function.

        Examples:
            >>> import timm_stitch, torch
            >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
            >>> handle = model.register_stitch_hook(lambda model, stitch_id, count: print(stitch_id, count))
            >>> logits = model(torch.randn(2, 3, 224, 224, device="meta"), stitch_id=3)
            3 2
            >>> handle.remove()
        """
        handle = RemovableHandle(self._stitch_hooks)
        self._stitch_hooks[handle.id] = hook
        return handle

    def _notify(self, stitch: Stitch, images: int) -> None:
        for hook in tuple(self._stitch_hooks.values()):
            hook(self, stitch.stitch_id, images)

    # ── one stitch alone ──────────────────────────────────────────────────────────────────────────

    def extract(self, stitch_id: int | None = None, copy: bool = False) -> Self:
        """Extract one stitch as a network of its own, which holds only the tensors that the stitch uses.

        Args:
            stitch_id: the id of the stitch; default the current one.
            copy: whether to copy the tensors instead of sharing them with this network.

        Returns:
            A network whose plan has this one stitch. Its tensors keep their names.

        Raises:
            ValueError: if the plan has no such id.

        Examples:
            >>> import timm_stitch
            >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
            >>> [sum(p.numel() for p in network.parameters()) for network in (model, model.extract(3))]
            [30322097, 18370148]
        """
        plan = StitchPlan(self.plan.anchors, self.plan.layers, (self._stitch(stitch_id),))
        extracted = extract(self, plan, copy=copy)
        extracted.results.adopt(self.results.current_rows())
        return extracted

    def joins(self) -> dict[int | str, Join]:
        """Get the linear maps that least squares can fit: the stitching layers that the plan uses, by their numbers."""
        pairs = {number: self.plan.pairs(number) for number in by_number(self.stitching_layers)}
        specs = self.plan.layers
        return {
            number: Join(self.stitching_layers[number], specs[number].front, specs[number].back, at)
            for number, at in pairs.items()
            if at
        }

    def uses_back_prefix_tokens(self, number: int) -> bool:
        """Whether the back anchor adds its own prefix tokens after a stitching layer."""
        return uses_back_prefix_tokens(self.plan, self.views, number)

    def merge_low_rank(self) -> Self:
        """Replace every low-rank stitching layer by a plain layer that computes the same.

        This frees the low-rank tensors and saves a small product per call. Later training updates the whole matrix.
        Saved merged weights fit a merged network.

        Returns:
            The network itself.

        Examples:
            >>> import timm_stitch
            >>> model = timm_stitch.load("snnetv2_deit3_sb", pretrained=False, device="meta")
            >>> model.plan.layers[0].rank, model.merge_low_rank().plan.layers[0].rank
            (64, 0)
        """
        for number, layer in by_number(self.stitching_layers).items():
            if isinstance(layer, LowRankStitchingLayer):
                self.stitching_layers[number] = layer.merge()
        self.plan = replace(self.plan, layers=tuple(replace(spec, rank=0) for spec in self.plan.layers))
        self._plan_changed()
        return self

    def _plan_changed(self) -> None:
        """Record the changed plan with which this network would be made again."""

    def compile(self, *args: object, **kwargs: object) -> None:
        """Compile every block in place, so that all stitches run compiled and a switch needs no compilation.

        Blocks of one width share a graph, so a few graphs serve all stitches. (`torch.compile(model)` would compile
        for each stitch, and give up after a few.)

        Args:
            *args, **kwargs: the arguments of `torch.compile`.

        Examples:
            >>> import timm_stitch
            >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False)
            >>> model.compile(dynamic=False)  # the first call of each block compiles it
        """
        for view in self.views:
            for index in range(view.depth):
                if view.has_block(index):
                    for module in view.modules(index):
                        module.compile(*args, **kwargs)

    # ── costs and results ─────────────────────────────────────────────────────────────────────────

    @property
    def results(self) -> NetworkResults:
        """The measured rows of the stitches, and the weights that they belong to."""
        return NetworkResults(self)

    def remember(self, rows: Iterable[Row], weights: str | None = None) -> None:
        """Add measured rows: the earlier name of `results.add`."""
        self.results.add(rows, weights)

    def forget(self) -> None:
        """Drop all measured rows: the earlier name of `results.clear`."""
        self.results.clear()

    def stitch_table(self) -> Rows:
        """List the stitches with their costs and all known figures, in id order.

        Returns:
            One dict per stitch: `stitch_id`, `name`, `macs` (multiply-adds for one image, or for one text of `length`
            tokens) and `params` (all that the stitch holds). The authors' networks add `published_macs` and
            `published_params` (None where they report none), counted as in their tables, and `published_top1` or other
            scores. Figures measured on the present weights follow:
            `top1`, `top5`, `latency_ms` and so on.

        Examples:
            >>> import timm_stitch
            >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False, device="meta")
            >>> row = model.stitch_table()[3]
            >>> row["name"], row["macs"], row["params"], row["published_top1"]
            ('levit_192[0:2] + levit_256[2:12]', 977741824, 18370148, 80.73)
        """
        return self.table_with(self.results.current())

    def table_with(self, measured: Mapping[int, Row], costs: PlanCosts | None = None) -> Rows:
        """Make the rows of `stitch_table` with these measured figures, by stitch_id."""
        costs, rows = costs or self.costs(), []
        for stitch in self.plan:
            cost = costs.cost(stitch)
            row = {"stitch_id": stitch.stitch_id, "name": stitch.name, "macs": cost.macs, "params": cost.params}
            if self.published:
                published = self.published_cost(costs, stitch, self.published)
                row["published_macs"] = published.macs
                row["published_params"] = published.params if self.published.params else None
            scores = self.published_scores.get(stitch.stitch_id, {})
            row |= {f"published_{metric}": score for metric, score in scores.items()}
            rows.append({**row, **self.cost_columns(costs, stitch), **measured.get(stitch.stitch_id, {})})
        return rows

    def published_cost(self, costs: PlanCosts, stitch: Stitch, count: PublishedCount) -> Cost:
        """Compute the cost of a stitch as its authors' result files count it."""
        return costs.published(stitch, count)

    @property
    def published_top1(self) -> dict[int, float]:
        """The accuracies that the authors published, by stitch_id."""
        return {k: scores["top1"] for k, scores in self.published_scores.items() if "top1" in scores}

    def cost_columns(self, costs: PlanCosts, stitch: Stitch) -> Row:
        """Make further columns of costs of a row of `stitch_table`."""
        return {}

    # ── weights ───────────────────────────────────────────────────────────────────────────────────

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as torch does; a network on the meta device takes the tensors over, in its own dtypes."""
        if not assign and is_on_meta(self):
            state_dict, assign = cast_like(state_dict, self.state_dict()), True
        self.results.clear()
        return super().load_state_dict(state_dict, strict, assign)


def is_sequence_of_ids(ids: object) -> TypeGuard[Sequence[int] | Tensor]:
    """Whether these are several ids: a list, a tuple, a 1-D tensor or array."""
    return hasattr(ids, "__len__") and not isinstance(ids, str) and getattr(ids, "ndim", 1) > 0


def logits_of(out: Output) -> Tensor:
    """Get the logits of an output: the output itself, or for models of transformers a part of it."""
    if isinstance(out, Tensor):
        return out
    logits = getattr(out, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{type(out).__name__} has no logits but {', '.join(map(str, out))}: this needs a network that classifies."
        )
    return logits
