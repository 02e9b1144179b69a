"""The stitchable network: anchors, stitching layers, and a forward pass that obeys the plan.

Source: SN-Net (arXiv:2302.06586). Every stitch begins with the stem of its front anchor and ends with
the head of its back anchor. The network decides nothing: which stitches there are is in `plan`, which
one runs is the caller's word. `forward` draws no random numbers of its own and changes no state.

Imports torch, timm (through `compat` and `views`) and the layers below.
"""

import copy as copying
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor, nn

from .compat import feature_take_indices, update_model_args, update_model_input_size
from .costs import PlanCosts
from .counting import measure
from .layers import LowRankStitchingLayer, make_layer, touch
from .lean import in_dtype_of, without_memory
from .plan import Segment, Stitch, StitchPlan
from .prefixes import schedule
from .published import PublishedCount
from .views import View, anchor_name, own_hooks, view

torch.fx.wrap("touch")  # a call of its own in traced graphs, not what is inside it

StitchIds = int | Sequence[int] | Tensor


class SNNet(nn.Module):
    """A stitchable neural network (SN-Net): one set of weights, many networks.

    Args:
        anchors: timm models, in the order of the plan; taken as they are, neither copied nor changed.
        plan: which stitches there are between them.
        stitched_norm: whether stitched paths run the back anchor's final norm. The authors' DeiT
            weights were trained without. It is saved among the weights too, and there it wins.
        stitch_id: the stitch of every call that names none; by default the largest anchor alone.
        touch_unused: in training, give every parameter that a call did not use a zero gradient, for
            trainers that insist on one.
        published: how the authors counted, for their columns of `stitch_table`; None for none.

    Raises:
        TypeError: if an anchor is not a model that can be opened.
        ValueError: if the anchors do not fit each other or the plan.
    """

    touch_unused = False
    grad_checkpointing = False
    _by_level: bool | None = None  # whether features are one a level; None: as the current path suggests

    def __init__(
        self,
        anchors: Sequence[nn.Module],
        plan: StitchPlan,
        stitched_norm: bool = True,
        stitch_id: int | None = None,
        touch_unused: bool | None = None,
        published: PublishedCount | None = None,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.views: list[View] = [view(anchor) for anchor in anchors]
        _check_anchors(self.views, plan)
        like = next(anchors[0].parameters())
        self.anchors = nn.ModuleList(anchors)
        self.stitching_layers = nn.ModuleList(
            make_layer(spec, device=like.device, dtype=like.dtype) for spec in plan.layers
        )
        self.register_buffer("stitched_norm", torch.tensor(bool(stitched_norm), device=like.device))
        self._norms_stitched = bool(stitched_norm)
        self.num_classes: int = anchors[-1].num_classes  # type: ignore[assignment]
        self.in_chans: int = getattr(anchors[-1], "in_chans", 3)  # type: ignore[assignment]
        self.published = published
        self.known: dict[int, dict[str, Any]] = {}
        self.trained: dict[str, Any] = {}
        if touch_unused is not None:
            self.touch_unused = touch_unused
        largest = plan.anchor_id(len(plan.anchors) - 1)
        self.stitch_id = plan[largest if stitch_id is None else stitch_id].stitch_id
        update_model_args(self, stitched_norm=self.norms_stitched)

    @property
    def norms_stitched(self) -> bool:
        """Whether stitched paths run the final norm; kept among the weights too, as `stitched_norm`."""
        return self._norms_stitched

    @norms_stitched.setter
    def norms_stitched(self, value: bool) -> None:
        self._norms_stitched = bool(value)
        if self.stitched_norm.device.type != "meta":  # type: ignore[union-attr]
            self.stitched_norm.fill_(bool(value))  # type: ignore[operator]
        update_model_args(self, stitched_norm=self._norms_stitched)

    # ── which stitch ──────────────────────────────────────────────────────────────────────────────

    @property
    def num_stitches(self) -> int:
        """How many networks this is."""
        return len(self.plan)

    @property
    def stitch_ids(self) -> tuple[int, ...]:
        """The valid ids, ascending."""
        return self.plan.stitch_ids

    def set_stitch(self, stitch_id: int) -> "SNNet":
        """Choose the stitch of every later call that names none; returns the network itself.

        Raises:
            ValueError: if the plan has no such id.
        """
        self.stitch_id = self._stitch(stitch_id).stitch_id
        update_model_args(self, stitch_id=self.stitch_id)
        return self

    def _stitch(self, stitch_id: Any) -> Stitch:
        if stitch_id is None or isinstance(stitch_id, torch.fx.Proxy):
            stitch_id = self.stitch_id
        elif isinstance(stitch_id, Tensor) and stitch_id.ndim == 0:
            stitch_id = stitch_id.item()
        return self.plan[stitch_id]

    @property
    def _current(self) -> tuple[Stitch, View]:
        stitch = self.plan[self.stitch_id]
        return stitch, self.views[stitch.back]

    # ── forward ───────────────────────────────────────────────────────────────────────────────────

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, stitch_id: StitchIds | None = None) -> Tensor: ...

    # TorchScript reads this signature after torch.fx, and knows no union with sequences.
    def forward(self, x: Tensor, stitch_id: Optional[int] = None) -> Tensor:  # noqa: UP045
        """Classify images through one stitch, or each image through its own.

        Args:
            x: images, shape (B, C, H, W).
            stitch_id: for this call only; an int, or one id per image (a list or 1-D tensor of length
                B, each distinct stitch runs once on its images). Default: the stitch that was set.

        Returns:
            Logits of shape (B, num_classes).

        Raises:
            ValueError: if an id is not in the plan, there is not one per image, or the images have a
                size that the anchors do not take.
        """
        if stitch_id is not None and not isinstance(stitch_id, (int, str, torch.fx.Proxy)) and _is_row(stitch_id):
            return self._forward_mixed(x, stitch_id)
        out = self.forward_head(self._features(x, stitch_id), stitch_id=stitch_id)
        if self.training and self.touch_unused:
            out = touch(out, _parameters(self))
        return out

    def forward_features(self, x: Tensor, stitch_id: int | None = None) -> Tensor:
        """What enters the head: the back anchor's last activation, normed where the stitch does so."""
        return self._mark(self._features(x, stitch_id), stitch_id)

    def _mark(self, features: Tensor, stitch_id: Any) -> Tensor:
        """Note on features of a stitch that is not the one set, whose head they need."""
        if stitch_id is not None and not isinstance(stitch_id, torch.fx.Proxy) and stitch_id != self.stitch_id:
            features.needs_head_of = self.plan[stitch_id].back, stitch_id  # type: ignore[attr-defined]
        return features

    def _features(self, x: Tensor, stitch_id: int | None = None) -> Tensor:
        stitch = self._stitch(stitch_id)
        if not isinstance(x, torch.fx.Proxy):
            self.check_images(x, stitch)
        front = self.views[stitch.front]
        h = front.stem(x)
        for i, segment in enumerate(stitch.segments):
            if i:
                h = self.cross(stitch.layers[i - 1], h, stitch.segments[i - 1], segment, x)
            h = self.views[segment.anchor].run(h, segment.start, segment.stop, x, self.grad_checkpointing)
        return self._final_norm(h, stitch)

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
        return self.views[stitch.back].head(x, pre_logits=pre_logits)

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
            self.check_images(x, stitch)
        kept: dict[int, Tensor] = {}
        for turn in schedule(stitches):
            steps = turn.stitch.steps
            h = kept[turn.resume] if turn.resume else x
            kept = {n: kept[n] for n in kept if n <= turn.drop}
            for n in range(turn.resume, len(steps)):
                kind, number, which = steps[n]
                if kind == "stem":
                    h = self.views[number].stem(x)
                elif kind == "block":
                    h = self.views[number].run(h, which, which + 1, x, self.grad_checkpointing)
                elif kind == "layer":
                    _, before, after = turn.stitch.joints[sum(step[0] == "layer" for step in steps[:n])]
                    h = self.cross(number, h, before, after, x)
                else:
                    h = self.views[number].head(self._final_norm(h, turn.stitch))
                if n + 1 in turn.keep:
                    kept[n + 1] = h
            yield turn.stitch.stitch_id, h
            del h

    def _forward_mixed(self, x: Tensor, stitch_ids: Sequence[int] | Tensor) -> Tensor:
        ids = stitch_ids.tolist() if hasattr(stitch_ids, "tolist") else list(stitch_ids)
        if len(ids) != x.shape[0] or any(isinstance(i, list) for i in ids):
            raise ValueError(
                f"stitch_id has {len(ids)} ids for a batch of {x.shape[0]} images: expected an int, "
                f"or a list or 1-D tensor of {x.shape[0]} ints."
            )
        rows: dict[int, list[int]] = {}
        for row, stitch_id in enumerate(ids):
            rows.setdefault(self._stitch(stitch_id).stitch_id, []).append(row)
        if len(rows) < 2:
            return self.forward(x, next(iter(rows), None))
        widths = {self.views[self.plan[k].back].widths[-1] for k in rows}
        if self.num_classes == 0 and len(widths) > 1:
            raise ValueError(
                f"without a classifier the stitches {sorted(rows)} give features of different widths {sorted(widths)}: "
                "use ids with one back anchor, or num_classes > 0."
            )
        index = {k: torch.tensor(v, device=x.device) for k, v in rows.items()}
        out = torch.cat([self.forward(x.index_select(0, index[k]), k) for k in rows])
        order = torch.cat(list(index.values()))
        return out.index_select(0, torch.argsort(order))

    def cross(self, number: int, h: Tensor, before: Segment, after: Segment, image: Tensor) -> Tensor:
        """Carry what leaves one segment into the next through a stitching layer.

        Anchors of one layout meet in that layout, others as maps. Prefix tokens (class, registers) that
        both have are carried along; those that only the back has are its own.
        """
        layer, a, b = self.stitching_layers[number], self.views[before.anchor], self.views[after.anchor]
        leave, enter = before.stop, after.start
        layout, leaving, entering = a.layout_at(leave), a.prefix_at(leave), b.prefix_at(enter)
        if (layout, leaving) == (b.layout_at(enter), entering):
            return layer(h, True) if layout == "NCHW" else layer(h)  # type: ignore[no-any-return]
        spatial = layer(a.as_map(h, (image.shape[-2], image.shape[-1]), leave), True)
        carried = min(leaving, entering)
        prefix = a.prefix(h, leave) if carried else None
        return b.from_map(spatial, layer(prefix[:, :carried]) if prefix is not None else None, enter)

    def aligned(
        self, leaving: Tensor, entering: Tensor, before: tuple[int, int], after: tuple[int, int], image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What leaves one anchor and enters another, position by position: (n, d_front) and (n, d_back).

        Args:
            leaving, entering: the activations of the two anchors for the same images.
            before, after: where each was taken, as (anchor, boundary).
            image: the images.
        """
        (front, leave), (back, enter) = before, after
        carried = min(self.views[front].prefix_at(leave), self.views[back].prefix_at(enter))
        size = (image.shape[-2], image.shape[-1])
        return _rows(self.views[front], leaving, carried, size, leave), _rows(
            self.views[back], entering, carried, size, enter
        )

    def borrows(self, number: int) -> bool:
        """Whether what crosses a stitching layer is joined by prefix tokens of the back anchor's own."""
        spec = self.plan.layers[number]
        front, back = self.views[spec.front], self.views[spec.back]
        return any(front.prefix_at(leave) < back.prefix_at(enter) for leave, enter in self.plan.pairs(number))

    def _final_norm(self, h: Tensor, stitch: Stitch) -> Tensor:
        return self.views[stitch.back].norm(h) if stitch.is_anchor or self.norms_stitched else h

    def check_images(self, x: Tensor, stitch: Stitch) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"images must be a tensor of shape (B, C, H, W), got {type(x).__name__}: use torch.from_numpy."
            )
        sizes = [size for s in stitch.segments if (size := self.views[s.anchor].image_size)]
        size = sizes[0] if sizes else None
        if x.ndim != 4 or x.shape[1] != self.in_chans or (size is not None and tuple(x.shape[-2:]) != size):
            wanted = f"{size[0]}, {size[1]}" if size else "H, W"
            advice = " Resize the images, or call model.set_input_size((H, W))." if size else ""
            raise ValueError(
                f"images of shape {tuple(x.shape)} do not fit: expected (B, {self.in_chans}, {wanted}).{advice}"
            )

    # ── one stitch alone ──────────────────────────────────────────────────────────────────────────

    def extract(self, stitch_id: int | None = None, copy: bool = False) -> "SNNet":
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

    def _part(self, plan: StitchPlan, copy: bool = False, norm: bool = True, head: bool = True) -> "SNNet":
        """A network that holds what the stitches of `plan` use, sharing tensors with this one."""
        twin = copying.copy(self)
        twin._modules, twin._buffers = dict(self._modules), dict(self._buffers)
        twin.__dict__.pop("forward", None)  # Accelerate's wrapped forward is bound to the whole network
        own_hooks(twin)
        twin.plan, twin.views = plan, []
        anchors: list[nn.Module | None] = []
        for number, whole in enumerate(self.views):
            blocks = {b for s in plan for a, b in _blocks(s) if a == number}
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

    def merge_low_rank(self) -> "SNNet":
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

    # ── what timm expects of a model ──────────────────────────────────────────────────────────────

    @property
    def num_features(self) -> int:
        """Channels that enter the head of the current stitch."""
        part = self._current[1]
        return part.anchor.num_features if part.has_head else part.widths[-1]  # type: ignore[return-value]

    @property
    def head_hidden_size(self) -> int:
        """Channels of the current stitch's pre-logits."""
        part = self._current[1]
        return part.anchor.head_hidden_size if part.has_head else part.widths[-1]  # type: ignore[return-value]

    @property
    def embed_dim(self) -> int:
        """Channels of the current stitch's last activation."""
        return self._current[1].widths[-1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patch tokens in `forward_features` of the current stitch."""
        return self._current[1].prefix_tokens

    @property
    def global_pool(self) -> str | None:
        """How the current stitch pools."""
        pool = getattr(self._current[1].anchor, "global_pool", None)
        return getattr(pool, "pool_type", None) if isinstance(pool, nn.Module) else pool  # type: ignore[return-value]

    @property
    def output_fmt(self) -> str:
        """The layout of what `forward_features` gives for the current stitch: `"NLC"`, `"NHWC"`, `"NCHW"`."""
        return self._current[1].layout

    def _taps(self, stitch: Stitch) -> list[int]:
        """Which blocks of a stitch, counted along its path, give features.

        Every block where all have one resolution, else the last block of each resolution.
        """
        reductions = [self.views[anchor].reductions[block + 1] for anchor, block in _blocks(stitch)]
        by_level = len(set(reductions)) > 1 if self._by_level is None else self._by_level
        last = len(reductions) - 1
        return [n for n, r in enumerate(reductions) if not by_level or n == last or reductions[n + 1] != r]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One entry a block of the current stitch, or one a resolution: module, channels and reduction."""
        path = _blocks(self._current[0])
        return [
            {
                "module": f"anchors.{anchor}.{self.views[anchor].block_name(block)}",
                "num_chs": self.views[anchor].widths[block + 1],
                "reduction": self.views[anchor].reductions[block + 1],
            }
            for anchor, block in (path[n] for n in self._taps(self._current[0]))
        ]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
        stitch_id: int | None = None,
    ) -> Any:
        """The activations after chosen blocks of a stitch, as timm's models give them.

        Args:
            x: images, shape (B, C, H, W).
            indices: entries of `feature_info`: the last n if an int, all if None.
            norm: apply the final norm of the block's own anchor to each that has the resolution and
                the channels of that anchor's last block.
            stop_early: run no further than the last one asked for.
            output_fmt: `"NCHW"` maps, or `"NLC"` tokens.
            intermediates_only: return the list alone, without what `forward_features` gives.
            return_prefix_tokens: give (patch tokens, prefix tokens) pairs.
            stitch_id: for this call only.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: expected 'NCHW' or 'NLC'.")
        stitch = self._stitch(stitch_id)
        if not isinstance(x, torch.fx.Proxy):
            self.check_images(x, stitch)
        taps = self._taps(stitch)
        wanted, last = feature_take_indices(len(taps), indices)
        take, last = {taps[i] for i in wanted}, taps[last]
        size = (x.shape[-2], x.shape[-1])
        found: list[Any] = []
        h = self.views[stitch.front].stem(x)
        n = 0
        for i, segment in enumerate(stitch.segments):
            part = self.views[segment.anchor]
            if i:
                h = self.cross(stitch.layers[i - 1], h, stitch.segments[i - 1], segment, x)
            for block in range(segment.start, segment.stop):
                h = part.run(h, block, block + 1, x, self.grad_checkpointing)
                if n in take:
                    if norm and part.like_last(block) and part.is_part and not part.has_norm and self.num_classes:
                        raise ValueError(
                            f"anchor {segment.anchor}'s final norm is not part of this extracted network: take normed "
                            "intermediates from the whole one, with stitch_id."
                        )
                    tap = part.norm(h) if norm and part.like_last(block) else h
                    spatial = part.as_map(tap, size, block + 1)
                    spatial = spatial.flatten(2).transpose(1, 2) if output_fmt == "NLC" else spatial
                    prefix = part.prefix(tap, block + 1)
                    found.append((spatial, prefix) if return_prefix_tokens and prefix is not None else spatial)
                if stop_early and n == last and intermediates_only:
                    return found
                n += 1
        return found if intermediates_only else (self._mark(self._final_norm(h, stitch), stitch_id), found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Become the current stitch alone, up to the last block that `indices` asks for.

        Returns:
            The indices, all non-negative.
        """
        stitch = self._current[0]
        taps = self._taps(stitch)
        take, last = feature_take_indices(len(taps), indices)
        segments, left = [], taps[last] + 1
        for segment in stitch.segments:
            if left:
                segments.append(replace(segment, stop=min(segment.stop, segment.start + left)))
                left -= segments[-1].stop - segment.start
        end, anchors = segments[-1], list(self.plan.anchors)
        whole = anchors[end.anchor]
        anchors[end.anchor] = replace(
            whole, widths=whole.widths[: end.stop + 1], reductions=whole.reductions[: end.stop + 1]
        )
        short = replace(stitch, segments=tuple(segments), layers=stitch.layers[: len(segments) - 1])
        part = self._part(
            StitchPlan(tuple(anchors), self.plan.layers, (short,)), norm=not prune_norm, head=not prune_head
        )
        part._by_level = len(taps) < len(_blocks(stitch))
        part.views[end.anchor].cut_off(end.stop)
        self.__dict__.update(part.__dict__)
        if prune_head:
            self.num_classes = 0
        return take

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """The classifiers of all anchors, fastest first; of an anchor with two heads (distilled) both."""
        found: list[nn.Module] = []
        for part in self.views:
            heads: Any = part.anchor.get_classifier() if part.has_head else ()  # type: ignore[operator]
            found.extend(heads if isinstance(heads, (tuple, list)) else (heads,))
        return tuple(found)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give every anchor a new classifier.

        Args:
            num_classes: its classes; 0 for none.
            global_pool: how to pool before it; None leaves that as it is.
        """
        for part in self.views:
            if part.has_head:
                part.anchor.reset_classifier(num_classes, global_pool)
        self.num_classes = num_classes
        self.known.clear()

    @property
    def set_input_size(self) -> Callable[..., None]:
        """`set_input_size(img_size)`: set the size of the images, resampling position embeddings.

        Like timm's models, a network has this only if its anchors take other sizes: LeViT does not.
        """
        for part in self.views:
            if part.image_size and not hasattr(part.anchor, "set_input_size"):
                raise AttributeError(f"{anchor_name(part.anchor)!r} is made for images of {part.image_size}.")
        return self._set_input_size

    def _set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        if patch_size is not None:
            raise ValueError("the patch size of stitched anchors cannot be changed: it is part of the plan.")
        if any(part.is_part for part in self.views):
            raise ValueError("this network shares its modules with a larger one: resize that, then extract.")
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        for anchor in self.anchors:
            if anchor is not None and hasattr(anchor, "set_input_size"):
                anchor.set_input_size(img_size=size)
        for part in self.views:
            part.refresh()
        update_model_input_size(self, size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """The parameters that the anchors themselves exempt from weight decay."""
        found: set[str] = set()
        for i, anchor in self._present():
            exempt = getattr(anchor, "no_weight_decay", set)
            found.update(f"anchors.{i}.{name}" for name in exempt())
        if any(part.is_part for part in self.views):
            found &= {name for name, _ in self.named_parameters()}
        return found

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise decay: blocks of equal index together, stitching layers with the heads."""
        stem: list[str] = []
        blocks: list[tuple[str, Any]] = []
        for i, anchor in self._present():
            groups = anchor.group_matcher(coarse=coarse)
            stem.append(_prefixed(i, groups["stem"]))
            inner = groups["blocks"]
            for entry in inner if isinstance(inner, (list, tuple)) else [(inner, None)]:
                blocks.append((_prefixed(i, entry[0]), *entry[1:]))
        return {"stem": "|".join(stem), "blocks": blocks}

    def _present(self) -> list[tuple[int, nn.Module]]:
        return [(i, anchor) for i, anchor in enumerate(self.anchors) if anchor is not None]

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


def _parameters(model: nn.Module) -> list[Tensor]:
    """All parameters, reached one attribute at a time so that torch.fx sees each of them."""
    found = []
    for name, _ in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        found.append(getattr(model.get_submodule(owner), leaf))
    return found


def _rows(part: View, h: Tensor, prefixes: int, size: tuple[int, int], boundary: int) -> Tensor:
    """An activation as (n, C): for each image its first prefix tokens, then the map row by row."""
    rows = part.as_map(h, size, boundary).flatten(2).transpose(1, 2)
    prefix = part.prefix(h, boundary)
    if prefix is not None:
        rows = torch.cat([prefix[:, :prefixes], rows], dim=1)
    return rows.flatten(0, 1)


def _is_row(ids: Any) -> bool:
    """Whether these are several ids: a list, a tuple, a 1-D tensor or array."""
    return hasattr(ids, "__len__") and getattr(ids, "ndim", 1) > 0


def _blocks(stitch: Stitch) -> list[tuple[int, int]]:
    return [(number, which) for kind, number, which in stitch.steps if kind == "block"]


def _sparse(modules: Sequence[nn.Module | None]) -> nn.ModuleList:
    """A ModuleList that keeps its numbering where modules are missing."""
    found = nn.ModuleList()
    for i, module in enumerate(modules):
        found.add_module(str(i), module)
    return found


def _prefixed(anchor: int, pattern: str) -> str:
    """A timm group pattern for the parameters of one anchor."""
    pattern = re.sub(r"(^|\|)\^", r"\1", pattern)
    return rf"^anchors\.{anchor}\.(?:{pattern})"


def _check_anchors(views: Sequence[View], plan: StitchPlan) -> None:
    """Refuse anchors that do not fit the plan or each other.

    Raises:
        ValueError: saying which anchor differs in what.
    """
    if len(views) != len(plan.anchors):
        raise ValueError(f"the plan has {len(plan.anchors)} anchors ({plan.anchor_names}), {len(views)} were given.")
    if len({id(part.anchor) for part in views}) < len(views):
        raise ValueError("the same module was given as two anchors: give a copy, or another model.")
    for part, anchor in zip(views, plan.anchors, strict=True):
        if (part.widths, part.reductions) != (anchor.widths, anchor.reductions):
            raise ValueError(
                f"the plan's anchor {anchor.name!r} has {anchor.depth} blocks of {sorted(set(anchor.widths))} "
                f"channels; the model given has {part.depth} of {sorted(set(part.widths))}. "
                "Make the plan from these models."
            )
    tensors = [next(part.anchor.parameters()) for part in views]
    if len({(t.dtype, t.device) for t in tensors}) > 1:
        where = {name: (str(t.dtype), str(t.device)) for name, t in zip(plan.anchor_names, tensors, strict=True)}
        raise ValueError(f"the anchors differ in dtype or device: {where}. Move them together first, with .to(…).")
    for what in ("num_classes", "in_chans"):
        values = [getattr(part.anchor, what, None) for part in views]
        if len(set(values)) > 1:
            raise ValueError(
                f"cannot stitch anchors whose {what} differ: {dict(zip(plan.anchor_names, values, strict=True))}. "
                f"Create them with equal {what}."
            )
