"""Anchors and stitching layers, and a forward pass that obeys the plan.

Source: SN-Net (arXiv:2302.06586). Every stitch begins with the stem of its front anchor and ends with
the head of its back anchor. The network decides nothing: which stitches there are is in `plan`, which
one runs is the caller's word. `forward` draws no random numbers of its own and changes no state.

Imports torch, timm (through `compat` and `views`) and the layers below.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from ..anchors.auto import View, view
from ..anchors.timm_compat import update_model_args
from ..plan.costs import PublishedCount
from ..plan.prefix_sharing import schedule
from ..plan.stitch_plan import Segment, Stitch, StitchPlan
from .layers import make_layer, touch

torch.fx.wrap("touch")  # a call of its own in traced graphs, not what is inside it

StitchIds = int | Sequence[int] | Tensor
StitchHook = Callable[[Any, int, int], None]


class Paths(nn.Module):
    """Anchors and stitching layers, run along the paths of a plan; the arguments are those of `SNNet`."""

    touch_unused = False
    grad_checkpointing = False

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
        self.views: list[View] = [anchor if isinstance(anchor, View) else view(anchor) for anchor in anchors]
        _check_anchors(self.views, plan)
        modules: list[nn.Module] = [part.anchor for part in self.views]
        like = next(modules[0].parameters())
        self.anchors = nn.ModuleList(modules)
        self.stitching_layers = nn.ModuleList(
            make_layer(spec, device=like.device, dtype=like.dtype) for spec in plan.layers
        )
        for number, spec in enumerate(plan.layers):
            if self.borrows(number) and not self.views[spec.back].prefix_names():
                front, back = plan.anchor_names[spec.front], plan.anchor_names[spec.back]
                raise ValueError(
                    f"cannot stitch {front!r} to {back!r}: the second has class or register tokens that the first "
                    "lacks, and how it makes them is not known apart from its patches. Use anchors that both have them "
                    "or both have none."
                )
        self.register_buffer("stitched_norm", torch.tensor(bool(stitched_norm), device=like.device))
        self._norms_stitched = bool(stitched_norm)
        self.num_classes: int = modules[-1].num_classes  # type: ignore[assignment]
        self.in_chans: int = getattr(modules[-1], "in_chans", 3)  # type: ignore[assignment]
        self.published = published
        self.known: dict[int, dict[str, Any]] = {}
        self.trained: dict[str, Any] = {}
        self._stitch_hooks: OrderedDict[int, StitchHook] = OrderedDict()
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

    def set_stitch(self, stitch_id: int) -> Self:
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
                B; images whose stitches begin alike run together that far). Default: the stitch that was set.

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
        if self._stitch_hooks:
            self._tell(stitch, len(x))
        h = self.views[stitch.front].stem(x)
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
            stitch = turn.stitch
            self._tell(stitch, len(x))
            h = kept[turn.resume] if turn.resume else x
            kept = {n: kept[n] for n in kept if n <= turn.drop}
            for n in range(turn.resume, len(stitch.steps)):
                h = self.step(stitch, n, h, x)
                if n + 1 in turn.keep:
                    kept[n + 1] = h
            yield stitch.stitch_id, h
            del h

    def forward_several(self, x: Tensor, stitch_ids: Sequence[int]) -> dict[int, Tensor]:
        """All that `forward_each` yields, by stitch_id."""
        return dict(self.forward_each(x, stitch_ids))

    def step(self, stitch: Stitch, n: int, h: Tensor, image: Tensor) -> Tensor:
        """Run step `n` of a stitch on what the step before gave."""
        kind, number, which = stitch.steps[n]
        if kind == "stem":
            return self.views[number].stem(image)
        if kind == "block":
            return self.views[number].run(h, which, which + 1, image, self.grad_checkpointing)
        if kind == "layer":
            _, before, after = stitch.joints[sum(step[0] == "layer" for step in stitch.steps[:n])]
            return self.cross(number, h, before, after, image)
        return self.views[number].head(self._final_norm(h, stitch))

    def _forward_mixed(self, x: Tensor, stitch_ids: Sequence[int] | Tensor) -> Tensor:
        """One id an image: the images of all stitches that begin alike run together for as long as they are alike."""
        ids = stitch_ids.tolist() if hasattr(stitch_ids, "tolist") else list(stitch_ids)
        if len(ids) != x.shape[0] or any(isinstance(i, list) for i in ids):
            raise ValueError(
                f"stitch_id has {len(ids)} ids for a batch of {x.shape[0]} images: expected an int, "
                f"or a list or 1-D tensor of {x.shape[0]} ints."
            )
        stitches = [self._stitch(i) for i in ids]
        if len(set(stitches)) < 2:
            return self.forward(x, ids[0] if ids else None)
        for stitch in set(stitches):
            self.check_images(x, stitch)
        widths = {self.views[stitch.back].widths[-1] for stitch in stitches}
        if self.num_classes == 0 and len(widths) > 1:
            raise ValueError(
                f"without a classifier the stitches {sorted(set(ids))} give features of different widths "
                f"{sorted(widths)}: use ids with one back anchor, or num_classes > 0."
            )
        # In the order of their steps, images whose stitches begin alike lie side by side.
        order = sorted(range(len(ids)), key=lambda row: stitches[row].steps)
        index = torch.tensor(order, device=x.device)
        image, stitches = x.index_select(0, index), [stitches[row] for row in order]
        found: list[Tensor] = []
        pending = [(0, 0, len(ids), image)]
        while pending:
            n, start, stop, h = pending.pop()
            first, last = stitches[start], stitches[stop - 1]
            while first.steps[n] == last.steps[n]:
                h = self.step(first, n, h, image[start:stop])
                n += 1
                if n == len(first.steps):
                    self._tell(first, stop - start)
                    found.append(h)
                    break
            else:
                borders = [r for r in range(start + 1, stop) if stitches[r].steps[n] != stitches[r - 1].steps[n]]
                for a, b in reversed(list(pairwise([start, *borders, stop]))):
                    pending.append((n, a, b, h[a - start : b - start]))
        out = torch.cat(found).index_select(0, torch.argsort(index))
        if self.training and self.touch_unused:
            out = touch(out, _parameters(self))
        return out

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

    def _tell(self, stitch: Stitch, images: int) -> None:
        for hook in tuple(self._stitch_hooks.values()):
            hook(self, stitch.stitch_id, images)

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
