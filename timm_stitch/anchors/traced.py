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

from .tracing.partition import Cuts
from .tracing.partitioner import find_cuts
from .tracing.recorder import meta_model
from .tracing.recording import DEVICE, Step
from .view import View, anchor_name, shallow


class Slice(nn.Module):
    """Consecutive steps of a recorded forward pass as a module that shares the model's parameters.

    Args:
        anchor: the model, or a part that holds what the steps use.
        steps: (number, step), ascending.
        entry, exit: the numbers of the values that enter and leave.
        sides: the numbers of further values that enter.
        batches: numbers of values that are the batch size.
    """

    def __init__(
        self,
        anchor: nn.Module,
        steps: tuple[tuple[int, Step], ...],
        entry: int,
        exit: int,
        sides: tuple[int, ...] = (),
        batches: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.steps, self.entry, self.exit, self.sides, self.batches = steps, entry, exit, sides, batches
        self._anchor = (anchor,)  # in a tuple: the model is no child of its slice
        last = {entry: -1}
        for n, (_, step) in enumerate(steps):
            last.update(dict.fromkeys(step.inputs, n))
        self._drops = tuple(tuple(v for v, at in last.items() if at == n and v != exit) for n in range(len(steps)))

    def forward(self, h: Tensor, *sides: Any) -> Any:
        values: dict[int, Any] = dict(zip(self.sides, sides, strict=True))
        values[self.entry] = h
        for number in self.batches:
            values[number] = h.shape[0]
        anchor, device = self._anchor[0], h.device
        for (number, step), drops in zip(self.steps, self._drops, strict=True):
            values[number] = step.run(anchor, values, device)
            for used in drops:
                del values[used]
        return values[self.exit]

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the modules and tensors that the steps use."""
        return tuple(dict.fromkeys(step.target for _, step in self.steps if step.kind in ("module", "attribute")))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own parameters among those, by the model's names."""
        for name, parameter in self._anchor[0].named_parameters():
            if any(name == target or name.startswith(target + ".") for target in self.targets):
                yield name, parameter


class GraphView(View):
    """A model by its recorded forward pass."""

    def __init__(self, anchor: nn.Module) -> None:
        self.anchor = anchor
        self._cuts: Cuts = find_cuts(anchor)
        cuts = self._cuts
        self.depth = len(cuts.positions) - 1
        self.widths, self.reductions = cuts.widths, cuts.reductions
        self._prefixes, self._layouts = cuts.prefixes, cuts.layouts
        self.layout, self.prefix_tokens = self._layouts[0], self._prefixes[0]
        self.image_size = cuts.image_size
        self._meta = meta_model(anchor) if cuts.needs_sizes else None
        self._sizes: dict[tuple[int, ...], dict[int, Any]] = {}
        self._bind(anchor)

    def refresh(self) -> None:
        self.__init__(self.anchor)  # type: ignore[misc]

    def _bind(self, anchor: nn.Module) -> None:
        """Make the slices on a model, or on a part of it."""
        cuts = self._cuts
        self.anchor = anchor
        self._stem, self._norm_slice, self._head_slice = (
            None if part is None else Slice(anchor, *part) for part in (cuts.stem, cuts.norm, cuts.head)
        )
        self._slices = tuple(Slice(anchor, *part) for part in cuts.blocks)
        self._modules_of = tuple(self._alone(part) for part in self._slices)

    def _alone(self, part: Slice) -> nn.Module:
        """A slice, or the model's own module where the slice is that and nothing else."""
        if len(part.steps) == 1 and not part.sides:
            _, step = part.steps[0]
            if step.kind == "module" and not step.kwargs and len(step.args) == 1:
                try:
                    return self.anchor.get_submodule(step.target)
                except AttributeError:
                    return part
        return part

    def layout_at(self, boundary: int) -> str:
        return self._layouts[boundary]

    def prefix_at(self, boundary: int) -> int:
        return self._prefixes[boundary]

    @property
    def tokens(self) -> int | None:
        layouts, grid = set(self._layouts), self._cuts.tokens
        return grid[0] if self.image_size and layouts == {"NLC"} and len(set(grid)) == 1 else None

    def stem(self, x: Tensor) -> Tensor:
        return _call(self._stem, x, *self._side_inputs(self._stem, x))  # type: ignore[arg-type]

    def block(self, index: int) -> nn.Module:
        return self._modules_of[index]

    def run(self, h: Tensor, start: int, stop: int, image: Tensor, checkpointed: bool = False) -> Tensor:
        for index in range(start, stop):
            block, sides = self._modules_of[index], self._side_inputs(self._slices[index], image)
            h = checkpoint(block, h, *sides) if checkpointed else _call(block, h, *sides)
        return h

    def _side_inputs(self, part: Slice | None, image: Tensor) -> tuple[Any, ...]:
        """The side inputs of a slice, from the image's size and the model's parameters."""
        if part is None or not part.sides:
            return ()
        values: dict[int, Any] = {0: image}
        measured: dict[int, Any] | None = None
        for number, step in self._cuts.sides_of(part.sides):
            if step is None:
                if measured is None:
                    measured = self._sizes_for(image)
                found = measured[number]
                values[number] = image.device if found is DEVICE else found
            else:
                values[number] = step.run(self.anchor, values, image.device)
        return tuple(values[number] for number in part.sides)

    def _sizes_for(self, image: Tensor) -> dict[int, Any]:
        """Sizes that arise inside the model, by running it on the meta device; kept for each shape of image."""
        if self._meta is None or isinstance(image, fx.Proxy):
            return self._cuts.example_sizes
        key = tuple(image.shape)
        if key not in self._sizes:
            if len(self._sizes) > 63:
                self._sizes.clear()
            self._sizes[key] = self._cuts.sizes(self._meta, key)
        return self._sizes[key]

    def _norm(self, h: Tensor) -> Tensor:
        return h if self._norm_slice is None else _call(self._norm_slice, h)

    def _head(self, h: Tensor, pre_logits: bool) -> Tensor:
        if self._head_slice is None:
            head: Any = self.anchor.forward_head
            return head(h, pre_logits=pre_logits) if "pre_logits" in inspect.signature(head).parameters else head(h)
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
        stem = self._stem.targets if self._stem is not None else ()
        direct = tuple(step.target for _, step in self._cuts.stem[0] if step.kind == "attribute")
        return {
            "stem": stem,
            "embeddings": direct,
            "norm": self._norm_slice.targets if self._norm_slice is not None else (),
        }

    def part(self, stem: bool, blocks: Iterable[int], norm: bool, head: bool, prefix: bool = False) -> View:
        kept = [self._slices[i] for i in blocks]
        keep: set[str] = {name for part in kept for name in part.targets}
        names = self.names()
        for part in [*kept, *([self._stem] if stem and self._stem is not None else [])]:
            steps = [step for _, step in self._cuts.sides_of(part.sides) if step is not None]
            keep.update(step.target for step in steps if step.kind in ("module", "attribute"))
        keep.update(names["stem"] if stem else ())
        keep.update(names["norm"] if norm else ())
        if head:
            used = {*names["stem"], *names["norm"], *(n for i in range(len(self._slices)) for n in self.block_names(i))}
            apart = {name.split(".")[0] for name in used}
            own = {*self.anchor._modules, *self.anchor._parameters, *self.anchor._buffers}
            keep.update(own - apart, self._cuts.head_targets)
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.is_part = True
        twin._bind(shallow(self.anchor, keep))
        twin.has_norm, twin.has_head = norm and self.has_norm, head and self.has_head
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


def _call(module: nn.Module, *args: Any) -> Tensor:
    """Call a module; under torch.fx, which knows only the model's own modules, look into a slice."""
    inside = isinstance(args[0], fx.Proxy) and isinstance(module, Slice)
    return module.forward(*args) if inside else module(*args)  # type: ignore[no-any-return]
