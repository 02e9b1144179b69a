"""Any timm model seen as stem, blocks and head: its recorded forward pass, cut where one tensor crosses.

A boundary lies where exactly one tensor that depends on the image's content is alive. Whatever else is
alive there (rotary embeddings, position biases, grid sizes) follows from parameters and from the image's
size alone: these side inputs are recomputed from the image's size when a segment starts in the middle,
without running the stem. Blocks run the model's own modules, looked up by name.

Nothing is verified on numbers: a recording repeats the model's own calls in their order. It is made
again for another batch size, and a model whose recording depends on that is refused.

Imports torch, timm and the files that record and cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from timm.models import checkpoint
from torch import Tensor, fx, nn

from .meta_device import meta_copy
from .tracing.partition import Span
from .tracing.partitioner import partition
from .tracing.recording import DEVICE
from .view import Context, View, anchor_name, child, shallow


class Slice(nn.Module):
    """Consecutive steps of a recorded forward pass as a module that shares the model's parameters.

    Args:
        anchor: the model, or a subset that holds what the steps use.
        span: which steps, and what enters and leaves.
    """

    def __init__(self, anchor: nn.Module, span: Span) -> None:
        super().__init__()
        self.span = span
        self._anchor = (anchor,)  # in a tuple: the model is no child of its slice
        last = {span.entry: -1}
        for n, (_, step) in enumerate(span.steps):
            last.update(dict.fromkeys(step.inputs, n))
        self._drops = tuple(
            tuple(v for v, at in last.items() if at == n and v != span.exit) for n in range(len(span.steps))
        )

    def forward(self, h: Tensor, *sides: Any) -> Any:
        span, anchor, device = self.span, self._anchor[0], h.device
        values: dict[int, Any] = dict(zip(span.sides, sides, strict=True))
        values[span.entry] = h
        for number in span.batches:
            values[number] = h.shape[0]
        for (number, step), drops in zip(span.steps, self._drops, strict=True):
            values[number] = step.run(anchor, values, device)
            for used in drops:
                del values[used]
        return values[span.exit]

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the modules and tensors that the steps use."""
        return tuple(dict.fromkeys(step.target for _, step in self.span.steps if step.kind in ("module", "attribute")))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own parameters among those, by the model's names."""
        for name, parameter in self._anchor[0].named_parameters():
            if any(name == target or name.startswith(target + ".") for target in self.targets):
                yield name, parameter


class TracedView(View):
    """A model by its recorded forward pass."""

    def __init__(self, anchor: nn.Module) -> None:
        self._open(anchor)

    def _open(self, anchor: nn.Module) -> None:
        self._partition = found = partition(anchor)
        boundaries = found.boundaries
        self.depth = len(boundaries) - 1
        self.widths = tuple(b.width for b in boundaries)
        self.reductions = tuple(b.reduction for b in boundaries)
        self._prefixes = tuple(b.prefix for b in boundaries)
        self._layouts = tuple(b.layout for b in boundaries)
        self.layout, self.prefix_tokens = self._layouts[0], self._prefixes[0]
        self._fixed_size = found.image_size
        self._meta = meta_copy(anchor) if found.needs_sizes else None
        self._sizes: dict[tuple[int, ...], dict[int, Any]] = {}
        self._bind(anchor)

    def refresh(self) -> None:
        self._open(self.anchor)

    def _bind(self, anchor: nn.Module) -> None:
        """Make the slices on a model, or on a subset of it."""
        found = self._partition
        self.anchor = anchor
        self._stem = Slice(anchor, found.stem)
        self._norm_slice, self._head_slice = (
            None if span is None else Slice(anchor, span) for span in (found.norm, found.head)
        )
        self._slices = tuple(Slice(anchor, span) for span in found.blocks)
        self._alone = tuple(_only_module(block) for block in self._slices)

    def layout_at(self, boundary: int) -> str:
        return self._layouts[boundary]

    def prefix_at(self, boundary: int) -> int:
        return self._prefixes[boundary]

    @property
    def tokens(self) -> int | None:
        layouts, grid = set(self._layouts), [b.tokens for b in self._partition.boundaries]
        return grid[0] if self.image_size and layouts == {"NLC"} and len(set(grid)) == 1 else None

    def stem(self, x: Tensor) -> Tensor:
        return _call(self._stem, x, *self._side_inputs(self._stem, x))

    def block(self, index: int) -> nn.Module:
        name = self._alone[index]
        if name is None or (self.is_partial and not self.holds(index)):
            return self._slices[index]
        return child(self.anchor, name)  # looked up when called: it may have been replaced

    def run(self, h: Tensor, start: int, stop: int, context: Context) -> Tensor:
        for index in range(start, stop):
            name = self._alone[index]
            if name is not None:
                module = child(self.anchor, name)  # as it is now: it may have been replaced
                h = checkpoint(module, h) if context.checkpointed else module(h)
            else:
                block = self._slices[index]
                sides = self._side_inputs(block, context.images)
                h = checkpoint(block, h, *sides) if context.checkpointed else _call(block, h, *sides)
        return h

    def _side_inputs(self, block: Slice, image: Tensor) -> tuple[Any, ...]:
        """The side inputs of a slice, from the image's size and the model's parameters."""
        if not block.span.sides:
            return ()
        values: dict[int, Any] = {0: image}
        measured: dict[int, Any] | None = None
        for number, step in self._partition.sources(block.span.sides):
            if step is None:
                if measured is None:
                    measured = self._sizes_for(image)
                found = measured[number]
                values[number] = image.device if found is DEVICE else found
            else:
                values[number] = step.run(self.anchor, values, image.device)
        return tuple(values[number] for number in block.span.sides)

    def _sizes_for(self, image: Tensor) -> dict[int, Any]:
        """Sizes that arise inside the model, by running it on the meta device; kept for each shape of image."""
        if self._meta is None or isinstance(image, fx.Proxy):
            return self._partition.example_sizes
        key = tuple(image.shape)
        if key not in self._sizes:
            if len(self._sizes) > 63:
                self._sizes.clear()
            self._sizes[key] = self._partition.sizes(self._meta, key)
        return self._sizes[key]

    def _norm(self, h: Tensor) -> Tensor:
        return h if self._norm_slice is None else _call(self._norm_slice, h)

    def _head(self, h: Tensor, pre_logits: bool) -> Tensor:
        if self._head_slice is None:
            head: Any = self.anchor.forward_head
            h = head(h, pre_logits=pre_logits) if "pre_logits" in inspect.signature(head).parameters else head(h)
            return h
        if pre_logits:
            raise ValueError(
                f"{anchor_name(self.anchor)!r} has no forward_head: what enters its classifier is not known. "
                "Use pre_logits=False."
            )
        return _call(self._head_slice, h)

    def as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        layout = self._layouts[boundary]
        if layout == "NCHW":
            return h
        if layout == "NHWC":
            return h.permute(0, 3, 1, 2).contiguous()
        height, width = (-(-side // self.reductions[boundary]) for side in image_size)
        tokens = h[:, self._prefixes[boundary] :]
        if layout != "NLC" or tokens.shape[1] != height * width:
            raise ValueError(
                f"the activation of {anchor_name(self.anchor)!r} at boundary {boundary}, shape {tuple(h.shape)}, is no "
                f"map of {height}x{width}: stitch it to a model with the same layout."
            )
        return tokens.reshape(h.shape[0], height, width, h.shape[-1]).permute(0, 3, 1, 2).contiguous()

    def prefix(self, h: Tensor, boundary: int) -> Tensor | None:
        count = self._prefixes[boundary]
        return h[:, :count] if count else None

    def from_map(self, spatial: Tensor, prefix: Tensor | None, boundary: int) -> Tensor:
        layout = self._layouts[boundary]
        if layout == "NCHW":
            return spatial
        if layout == "NHWC":
            return spatial.permute(0, 2, 3, 1).contiguous()
        tokens = spatial.flatten(2).transpose(1, 2)
        return torch.cat([prefix, tokens], dim=1) if prefix is not None else tokens

    def block_name(self, index: int) -> str:
        return self.block_names(index)[0]

    def block_names(self, index: int) -> tuple[str, ...]:
        """The names of everything that block `index` uses inside the anchor."""
        return self._slices[index].targets

    def names(self) -> dict[str, tuple[str, ...]]:
        direct = tuple(step.target for _, step in self._stem.span.steps if step.kind == "attribute")
        return {
            "stem": self._stem.targets,
            "embeddings": direct,
            "norm": self._norm_slice.targets if self._norm_slice is not None else (),
        }

    def subset(self, stem: bool, blocks: Iterable[int], norm: bool, head: bool, prefix: bool = False) -> View:
        kept = [self._slices[i] for i in blocks]
        keep: set[str] = {name for block in kept for name in block.targets}
        names = self.names()
        for block in [*kept, *([self._stem] if stem else [])]:
            steps = [step for _, step in self._partition.sources(block.span.sides) if step is not None]
            keep.update(step.target for step in steps if step.kind in ("module", "attribute"))
        keep.update(names["stem"] if stem else ())
        keep.update(names["norm"] if norm else ())
        if head:
            used = {*names["stem"], *names["norm"], *(n for i in range(len(self._slices)) for n in self.block_names(i))}
            apart = {name.split(".")[0] for name in used}
            own = {*self.anchor._modules, *self.anchor._parameters, *self.anchor._buffers}
            keep.update(own - apart, self._partition.head_targets)
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.is_partial = True
        twin._bind(shallow(self.anchor, keep))
        twin.has_norm, twin.has_head = norm and self.has_norm, head and self.has_head
        return twin

    def on(self, anchor: nn.Module) -> View:
        twin = super().on(anchor)
        assert isinstance(twin, TracedView)
        twin._bind(anchor)
        return twin

    def holds(self, index: int) -> bool:
        for name in self.block_names(index):
            module: Any = self.anchor
            for atom in name.split("."):
                children = {**module._modules, **module._parameters, **module._buffers}
                module = children.get(atom, getattr(module, atom, None) if atom in module.__dict__ else None)
                if module is None:
                    return False
        return True


def _only_module(block: Slice) -> str | None:
    """The name of the model's own module where a slice is that and nothing else."""
    if len(block.span.steps) == 1 and not block.span.sides:
        _, step = block.span.steps[0]
        if step.kind == "module" and not step.kwargs and len(step.args) == 1:
            return str(step.target)
    return None


def _call(module: nn.Module, *args: Any) -> Tensor:
    """Call a module; under torch.fx, which knows only the model's own modules, look into a slice."""
    inside = isinstance(args[0], fx.Proxy) and isinstance(module, Slice)
    h: Tensor = module.forward(*args) if inside else module(*args)
    return h
