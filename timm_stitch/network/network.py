"""The stitchable network: one set of weights, many networks, one of which runs.

Source: SN-Net (arXiv:2302.06586). The network decides nothing: which stitches there are is in `plan`, which one runs
is the caller's word, and how it runs is in `executor`. What timm asks of a model besides is in `timm_model`.

The file is long because it is the one class that people call: most of its lines say what its methods do.

Imports torch, timm (through `timm_compat` and the views) and the files beside it.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from ..anchors.auto import view_of
from ..anchors.meta_device import cast_like, is_on_meta
from ..anchors.timm_compat import update_model_args
from ..anchors.view import Context, View
from ..plan.costs import PlanCosts, PublishedCount
from ..plan.frontier import best_known
from ..plan.results import Results, Row
from ..plan.stitch_plan import Stitch, StitchPlan
from .compatibility import check_anchors
from .counting import image_size_of, measure
from .crossing import borrows
from .executor import Executor
from .extraction import extract, single_stitch_graph
from .layers import LowRankStitchingLayer, give_zero_gradients, make_layer
from .timm_model import TimmModel
from .weights import EXTRA_STATE, NORM_FLAG, fingerprint_again, glance

torch.fx.wrap("give_zero_gradients")  # a call of its own in traced graphs, not what is inside it

_logger = logging.getLogger(__name__)

StitchIds = int | Sequence[int] | Tensor
StitchHook = Callable[[Any, int, int], None]


class SNNet(TimmModel):
    """A stitchable neural network (SN-Net): one set of weights, many networks.

    Args:
        anchors: timm models or their views, in the order of the plan; taken as they are, neither copied nor changed.
        plan: which stitches there are between them.
        stitched_norm: whether stitched paths run the back anchor's final norm. The authors' DeiT weights were
            trained without.
        stitch_id: the stitch of every call that names none; by default the largest anchor alone.
        touch_unused: in training, give every parameter that a call did not use a zero gradient, for
            trainers that insist on one.
        published: how the authors counted, for their columns of `stitch_table`; None for none.

    Attributes:
        executor: runs the stitches.
        results: what was measured of the stitches, and of which weights.
        trained: how the weights came about, as its card says it.

    Raises:
        TypeError: if an anchor is not a model that can be opened.
        ValueError: if the anchors do not fit each other or the plan.
    """

    touch_unused = False

    def __init__(
        self,
        anchors: Sequence[nn.Module | View],
        plan: StitchPlan,
        stitched_norm: bool = True,
        stitch_id: int | None = None,
        touch_unused: bool | None = None,
        published: PublishedCount | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        views = [anchor if isinstance(anchor, View) else view_of(anchor) for anchor in anchors]
        check_anchors(views, plan)
        modules: list[nn.Module] = [view.anchor for view in views]
        like = next(modules[0].parameters())
        self.anchors = nn.ModuleList(modules)
        self.stitching_layers = nn.ModuleList(
            make_layer(spec, device=like.device, dtype=like.dtype) for spec in plan.layers
        )
        self.executor = Executor(views, self.stitching_layers, bool(stitched_norm))
        self.num_classes = int(views[-1].anchor.num_classes)
        self.in_chans = int(getattr(modules[-1], "in_chans", 3))
        self.published = published
        self.results, self.published_top1 = Results(), dict[int, float]()
        self.trained: dict[str, Any] = {}
        self._stitch_hooks: OrderedDict[int, StitchHook] = OrderedDict()
        if touch_unused is not None:
            self.touch_unused = touch_unused
        largest = plan.anchor_id(len(plan.anchors) - 1)
        self.stitch_id = plan[largest if stitch_id is None else stitch_id].stitch_id
        update_model_args(self, stitched_norm=self.stitched_norm)

    def _replicate_for_data_parallel(self) -> Self:
        """As torch's, for `nn.DataParallel`: the executor is made when the replica runs, on its own anchors."""
        replica: Self = super()._replicate_for_data_parallel()
        replica._replica_of = replica.__dict__.pop("executor")
        return replica

    def __getattr__(self, name: str) -> Any:
        """As torch's; of a replica that has not run, the executor."""
        if name == "executor" and "_replica_of" in self.__dict__:
            whole: Executor = self.__dict__["_replica_of"]
            anchors: Any = self.anchors
            views = [
                view if anchor is None else view.on(anchor) for view, anchor in zip(whole.views, anchors, strict=True)
            ]
            self.executor = Executor(views, self.stitching_layers, whole.stitched_norm)
            return self.executor
        return super().__getattr__(name)

    # ── which stitch ──────────────────────────────────────────────────────────────────────────────

    @property
    def views(self) -> list[View]:
        """The anchors as stem, blocks and head."""
        return self.executor.views

    @property
    def stitched_norm(self) -> bool:
        """Whether stitched paths run the back anchor's final norm."""
        return self.executor.stitched_norm

    @stitched_norm.setter
    def stitched_norm(self, value: bool) -> None:
        self.executor.stitched_norm = bool(value)
        update_model_args(self, stitched_norm=bool(value))

    @property
    def num_stitches(self) -> int:
        """How many networks this is."""
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
        update_model_args(self, stitch_id=self.stitch_id)
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
        self.check_results()
        budgets = {"macs": macs, "params": params, "latency_ms": latency_ms, "memory_mb": memory_mb}
        return self.set_stitch(best_known(self.stitch_table(), budgets, batch_size=batch_size)["stitch_id"])

    def _stitch(self, stitch_id: Any) -> Stitch:
        if stitch_id is None or isinstance(stitch_id, torch.fx.Proxy):
            stitch_id = self.stitch_id
        elif isinstance(stitch_id, Tensor) and stitch_id.ndim == 0:
            stitch_id = stitch_id.item()
        return self.plan[stitch_id]

    # ── forward ───────────────────────────────────────────────────────────────────────────────────

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, stitch_id: StitchIds | None = None) -> Tensor: ...

    # TorchScript reads this signature after torch.fx: it knows no union with sequences, and no annotations as text.
    def forward(self, x: Tensor, stitch_id: Optional[int] = None) -> Tensor:  # noqa: UP045
        """Classify images through one stitch, or each image through its own.

        Args:
            x: images, shape (B, C, H, W).
            stitch_id: for this call only; an int, or one id per image (a list or 1-D tensor of length
                B; images whose stitches begin alike run together that far). Default: the stitch that was set.

        Returns:
            Logits of shape (B, num_classes).

        Raises:
            ValueError: if an id is not in the plan, there is not one per image, or the images have a
                size that the anchors do not take.
        """
        if stitch_id is not None and not isinstance(stitch_id, (int, str, torch.fx.Proxy)) and _is_row(stitch_id):
            out = self._forward_mixed(x, stitch_id)
        else:
            stitch, context, hooks = self._begin(x, stitch_id)
            if hooks:
                out = self.executor.hooked(stitch, context)
            else:
                out = self.forward_head(self.executor.features(stitch, context), stitch_id=stitch_id)
        if self.training and self.touch_unused:
            out = give_zero_gradients(out, _parameters(self))
        return out

    def forward_features(self, x: Tensor, stitch_id: int | None = None) -> Tensor:
        """What enters the head: the back anchor's last activation, normed where the stitch does so."""
        return self._mark(self._features(x, stitch_id), stitch_id)

    def _features(self, x: Tensor, stitch_id: int | None = None) -> Tensor:
        stitch, context, _ = self._begin(x, stitch_id)
        return self.executor.features(stitch, context)

    def _begin(self, x: Tensor, stitch_id: int | None) -> tuple[Stitch, Context, bool]:
        """Check a call and tell of it; the last is whether hooks hang on the call of an anchor."""
        stitch = self._stitch(stitch_id)
        hooks = self.executor.check(x, stitch, self.in_chans, self._modules["anchors"])
        if self._stitch_hooks:
            self._notify(stitch, len(x))
        return stitch, Context(x, self.grad_checkpointing), hooks

    def _mark(self, features: Tensor, stitch_id: Any) -> Tensor:
        """Note on features of a stitch that is not the one set, whose head they need."""
        if stitch_id is not None and not isinstance(stitch_id, torch.fx.Proxy) and stitch_id != self.stitch_id:
            marked: Any = features
            marked.needs_head_of = self.plan[stitch_id].back, stitch_id
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False, stitch_id: int | None = None) -> Tensor:
        """Pool and classify what `forward_features` gave, with the head of the stitch's back anchor.

        Raises:
            ValueError: if the features came from a stitch that ends in another anchor.
        """
        stitch = self._stitch(stitch_id)
        needs = None if isinstance(x, torch.fx.Proxy) else getattr(x, "needs_head_of", None)
        if needs is not None and needs[0] != stitch.back:
            raise ValueError(
                f"these features came through stitch {needs[1]}, and stitch {stitch.stitch_id} ends in another head: "
                f"give forward_head stitch_id={needs[1]}, or call set_stitch({needs[1]}) first (transformers with "
                "output_hidden_states, and AutoModel, need that)."
            )
        return self.executor.views[stitch.back].head(x, pre_logits=pre_logits)

    def forward_each(self, x: Tensor, stitch_ids: Sequence[int] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Run many stitches on one batch, sharing the work of equal first parts.

        Args:
            x: images, shape (B, C, H, W).
            stitch_ids: which; all by default.

        Yields:
            (stitch_id, logits of shape (B, num_classes)), in the order that shares most. The logits
            equal those of `forward` bit for bit.
        """
        ids = self.stitch_ids if stitch_ids is None else stitch_ids
        stitches = [self._stitch(i) for i in dict.fromkeys(ids)]
        for stitch in stitches:
            self.executor.check(x, stitch, self.in_chans, self._modules["anchors"])
        yield from self.executor.each(stitches, Context(x, self.grad_checkpointing), self._notify)

    def forward_several(self, x: Tensor, stitch_ids: Sequence[int]) -> dict[int, Tensor]:
        """All that `forward_each` yields, by stitch_id."""
        return dict(self.forward_each(x, stitch_ids))

    def _forward_mixed(self, x: Tensor, stitch_ids: Sequence[int] | Tensor) -> Tensor:
        ids = list(stitch_ids.tolist() if isinstance(stitch_ids, Tensor) else stitch_ids)
        ids = [i.item() if hasattr(i, "item") else i for i in ids]
        if len(ids) != x.shape[0] or any(isinstance(i, list) for i in ids):
            raise ValueError(
                f"stitch_id has {len(ids)} ids for a batch of {x.shape[0]} images: expected an int, "
                f"or a list or 1-D tensor of {x.shape[0]} ints."
            )
        stitches = [self._stitch(i) for i in ids]
        if len(set(stitches)) < 2:
            only = ids[0] if ids else None
            return self.forward_head(self._features(x, only), stitch_id=only)
        for stitch in set(stitches):
            self.executor.check(x, stitch, self.in_chans, self._modules["anchors"])
        widths = {self.views[stitch.back].widths[-1] for stitch in stitches}
        if self.num_classes == 0 and len(widths) > 1:
            raise ValueError(
                f"without a classifier the stitches {sorted(set(ids))} give features of different widths "
                f"{sorted(widths)}: use ids with one back anchor, or num_classes > 0."
            )
        return self.executor.mixed(stitches, Context(x, self.grad_checkpointing), self._notify)

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
            An `SNNet` whose plan has this one stitch; the names of its tensors are those they have here.

        Raises:
            ValueError: if the plan has no such id.
        """
        plan = StitchPlan(self.plan.anchors, self.plan.layers, (self._stitch(stitch_id),))
        known = self.known_rows()
        alone = extract(self, plan, copy=copy)
        if known:
            alone.remember(({"stitch_id": k, **row} for k, row in known.items() if k in plan), weights=glance(alone))
        return alone

    def borrows(self, number: int) -> bool:
        """Whether what crosses a stitching layer is joined by prefix tokens of the back anchor's own."""
        return borrows(self.plan, self.views, number)

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
        return single_stitch_graph(self.extract())

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every block in place, so that all stitches run compiled and switching compiles nothing.

        The arguments are those of `torch.compile`. Blocks of one width share a graph, so a few graphs
        serve all stitches. (`torch.compile(model)` would specialise on the stitch and give up after a few.)
        """
        for view in self.views:
            for index in range(view.depth):
                if view.holds(index):
                    for module in view.modules(index):
                        module.compile(*args, **kwargs)

    # ── what is known of the stitches ─────────────────────────────────────────────────────────────

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that the network takes, or expects by default."""
        return image_size_of(self)

    def costs(self) -> PlanCosts:
        """What every part costs at the present image size; measured when first asked for, then kept."""
        key = (self.plan, self.image_size, self.num_classes, self.stitched_norm)
        cached: Any = self.__dict__.get("_costs")
        if cached is None or cached[0] != key:
            cached = key, measure(self)
            self.__dict__["_costs"] = cached
        found: PlanCosts = cached[1]
        return found

    def stitch_table(self) -> list[dict[str, Any]]:
        """One row a stitch, in id order: what it is, what it costs, and what is known of it.

        Returns:
            Dicts with `stitch_id`, `name`, `macs` (multiply-adds for one image), `params` (all it
            holds), for the authors' networks `published_macs` and `published_params` in the count of
            their tables (None where they give no parameters), and whatever was measured or published:
            `published_top1`, `top1`, `top5`, `latency_ms`, …. Measured is only what belongs to the weights that
            the network has now.
        """
        costs, known = self.costs(), self.known_rows()
        rows = []
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
            rows.append(row | dict(known.get(stitch.stitch_id, {})))
        return rows

    def remember(self, rows: Iterable[Row], weights: Any = None) -> None:
        """Keep measured rows, beside those of the same weights that are known already.

        Times of further batch sizes are added to those that are known; what another device or precision took is
        dropped, of all stitches.

        Args:
            rows: dicts of `stitch_id` and what was measured, from `evaluate`, `profile` or a file.
            weights: the fingerprint of the weights that they belong to, where the rows do not say; default those
                that the network has now.

        Raises:
            ValueError: if the rows belong to several weights, or to stitches that the plan does not have.
        """
        rows = list(rows)
        unknown = [row.get("stitch_id") for row in rows if row.get("stitch_id") not in self.plan]
        if unknown:
            raise ValueError(f"the rows hold stitches that the plan does not have: {unknown[:6]}.")
        if rows and weights is None and not all(row.get("weights") for row in rows):
            weights = fingerprint_again(self)
        self.results = self.results.updated(Results.of(rows, weights))

    def forget(self) -> None:
        """Drop all that was measured."""
        self.results = Results()

    def known_rows(self) -> dict[int, Row]:
        """What was measured of the weights that the network has now, by stitch; of other weights nothing."""
        if not self._results_belong():
            _logger.warning("what was measured of this network's weights before they changed is left out: evaluate it.")
            return {}
        return dict(self.results.rows)

    def check_results(self) -> None:
        """Refuse to go on where what was measured belongs to other weights than the network has now.

        Raises:
            ValueError: saying so.
        """
        if not self._results_belong():
            mark = self.results.weights if isinstance(self.results.weights, str) else "before they changed"
            raise ValueError(
                f"what is known of this network belongs to other weights ({mark}) than the network now has: evaluate "
                "it again."
            )

    def _results_belong(self) -> bool:
        mark = self.results.weights
        if not self.results.rows:
            return True
        return mark == (fingerprint_again(self) if isinstance(mark, str) else glance(self))

    # ── weights ───────────────────────────────────────────────────────────────────────────────────

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; a network on the meta device takes over the tensors given, in its own dtypes."""
        if not assign and is_on_meta(self):
            state_dict, assign = cast_like(state_dict, self.state_dict()), True
        self.forget()
        return super().load_state_dict(state_dict, strict, assign)

    def get_extra_state(self) -> Tensor:
        """Whether stitched paths run the final norm: a checkpoint of weights that were trained without says so."""
        return torch.tensor(self.stitched_norm)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        if not state.is_meta:
            self.stitched_norm = bool(state)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.stitched_norm:  # the usual: nothing beside the weights
            del destination[prefix + EXTRA_STATE]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *args: Any
    ) -> None:
        if any(key.startswith(prefix + "stitch_layers.") for key in state_dict):
            raise ValueError(
                "these weights are in the layout of the authors' release: convert them with "
                "timm_stitch.convert_checkpoint, or load them by create_model(..., pretrained=True, "
                "pretrained_cfg_overlay=dict(file=PATH))."
            )
        flag = state_dict.pop(prefix + NORM_FLAG, None)  # in files of version 0.1
        if flag is not None:
            self.set_extra_state(flag)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)
        if prefix + EXTRA_STATE in missing:
            missing.remove(prefix + EXTRA_STATE)


def _parameters(model: nn.Module) -> list[Tensor]:
    """All parameters, reached one attribute at a time so that torch.fx sees each of them."""
    found = []
    for name, _ in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        found.append(getattr(model.get_submodule(owner), leaf))
    return found


def _is_row(ids: Any) -> bool:
    """Whether these are several ids: a list, a tuple, a 1-D tensor or array."""
    return hasattr(ids, "__len__") and getattr(ids, "ndim", 1) > 0
