"""Any timm model seen as stem, blocks and head: its recorded forward pass, cut where one tensor crosses.

A boundary lies where exactly one tensor that depends on the image's content is alive. Whatever else is
alive there (rotary embeddings, position biases, grid sizes) follows from parameters and from the image's
size alone: these side inputs are recomputed from the image's size when a segment starts in the middle,
without running the stem. Blocks run the model's own modules, looked up by name.

Nothing is verified on numbers: a recording repeats the model's own calls in their order. It is made
again for another batch size, and a model whose recording depends on that is refused.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable

from torch import Tensor, fx, nn
from typing_extensions import Self

from ...anchors.block_view import BlockView, ParameterGroups, recompute
from ...anchors.containers import Part, holders
from ...anchors.meta_device import meta_copy
from ...anchors.modules import anchor_name, child, copy_root, partial_copy
from ...anchors.view import ImageInputs
from .slices import Slice, Slices
from .tracing.partition import Partition
from .tracing.partitioner import partition
from .tracing.recording import DEVICE

_MOST_SIZES = 64  # how many sizes of images are remembered


class TracedView(BlockView):
    """A model by its recorded forward pass.

    Where the forward pass depends on the size of the images (a position embedding that is resampled), it is
    recorded again for each new size, with boundaries at the same places.
    """

    is_recorded = True

    def __init__(self, anchor: nn.Module) -> None:
        self._open(anchor)

    def _open(self, anchor: nn.Module) -> None:
        recording = partition(anchor)
        boundaries = recording.boundaries
        self.depth = len(boundaries) - 1
        self.widths = tuple(b.width for b in boundaries)
        self.reductions = tuple(b.reduction for b in boundaries)
        self.stage_starts = recording.stage_starts
        self._prefixes = tuple(b.prefix for b in boundaries)
        self._layouts = tuple(b.layout for b in boundaries)
        self.layout, self.prefix_tokens = self._layouts[0], self._prefixes[0]
        self._fixed_size = recording.image_size
        self._meta = meta_copy(anchor) if recording.needs_sizes or recording.varies else None
        self._sizes: dict[tuple[int, ...], dict[int, object]] = {}
        self._recorded = {recording.program.size: recording}  # by the size of the images
        self._bind(anchor, recording)

    def was_resized(self) -> bool:
        size: tuple[int, int] | None = getattr(self.anchor._modules.get("patch_embed"), "img_size", None)
        return size is not None and self._fixed_size is not None and tuple(size) != self._fixed_size

    def refresh(self) -> None:
        self._open(self.anchor)

    def _bind(self, anchor: nn.Module, recording: Partition) -> None:
        """Make the slices on a model, or on a subset of it."""
        self.anchor = anchor
        self._usual = Slices(anchor, recording)
        self._sliced = {recording.program.size: self._usual}

    def _slices(self, images: Tensor) -> Slices:
        """The slices for images of one size."""
        usual = self._usual
        if not usual.partition.varies or isinstance(images, fx.Proxy):
            return usual
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if size not in self._sliced:
            if len(self._sliced) > _MOST_SIZES:
                self._sliced = {usual.partition.program.size: usual}
            self._sliced[size] = Slices(self.anchor, self._recording(size))
        return self._sliced[size]

    def _recording(self, size: tuple[int, int]) -> Partition:
        """The model's recording for images of one size."""
        if size not in self._recorded:
            usual, name = self._usual.partition, anchor_name(self.anchor)
            advice = f"give it {usual.program.size[0]}x{usual.program.size[1]}, as it was stitched."
            if len(self._recorded) > _MOST_SIZES:
                self._recorded.clear()
            try:
                recording = partition(self._meta, size) if self._meta is not None else usual
            except TypeError as error:
                reason = str(error.__cause__ or error).strip().partition("\n")[0]
                raise ValueError(
                    f"{name!r} does not take images of {size[0]}x{size[1]} ({reason:.160}): {advice}"
                ) from error
            if [b.form for b in recording.boundaries] != [b.form for b in usual.boundaries]:
                raise ValueError(f"{name!r} is cut elsewhere for images of {size[0]}x{size[1]}: {advice}")
            self._recorded[size] = recording
        return self._recorded[size]

    def form_at(self, boundary: int) -> tuple[str, int]:
        return self._layouts[boundary], self._prefixes[boundary]

    @property
    def tokens(self) -> int | None:
        layouts, grid = set(self._layouts), [b.tokens for b in self._usual.partition.boundaries]
        return grid[0] if self.image_size and layouts == {"NLC"} and len(set(grid)) == 1 else None

    def stem(self, x: Tensor) -> Tensor:
        slices = self._slices(x)
        return _call(slices.stem, x, *self._side_inputs(slices.partition, slices.stem, x))

    def block(self, index: int) -> nn.Module:
        alone = self._usual.alone[index]
        if alone is None or (self.is_partial and not self.has_block(index)):
            return self._usual.blocks[index]
        return child(self.anchor, alone[0])  # as it is now: it may have been replaced

    def run(self, h: Tensor, start: int, stop: int, inputs: ImageInputs) -> Tensor:
        if inputs.hooked:
            return self.containers.run(self.parts(start, stop, inputs), h)
        slices = self._slices(inputs.images)
        for index in range(start, stop):
            h = self._run_block(slices, index, h, inputs)
        return h

    def _run_block(self, slices: Slices, index: int, h: Tensor, inputs: ImageInputs) -> Tensor:
        alone = slices.alone[index]
        if alone is not None:
            module = child(self.anchor, alone[0])  # as it is now: it may have been replaced
            h = recompute(module, h, **alone[1]) if inputs.checkpointed else module(h, **alone[1])
        else:
            block = slices.blocks[index]
            sides = self._side_inputs(slices.partition, block, inputs.images)
            h = recompute(block, h, *sides) if inputs.checkpointed else _call(block, h, *sides)
        return h

    def _parts_of(self, index: int, inputs: ImageInputs) -> list[Part]:
        slices = self._slices(inputs.images)
        return [Part(slices.blocks[index].targets, lambda h: self._run_block(slices, index, h, inputs))]

    def skipped(self, names: Collection[str]) -> set[str]:
        head = self._usual.head
        inside = names if head is None else {*names, *head.targets}
        return holders(inside) | self._usual.partition.program.expanded

    def _side_inputs(self, partition: Partition, block: Slice, image: Tensor) -> tuple[object, ...]:
        """Compute the side inputs of a slice from the image's size and the model's parameters."""
        if not block.span.sides:
            return ()
        values: dict[int, object] = {0: image}
        sources = partition.sources(block.span.sides)
        sizes = self._sizes_for(partition, image) if any(step is None for _, step in sources) else {}
        for number, step in sources:
            if step is None:
                values[number] = image.device if sizes[number] is DEVICE else sizes[number]
            else:
                values[number] = step.run(self.anchor, values, image.device)
        return tuple(values[number] for number in block.span.sides)

    def _sizes_for(self, partition: Partition, image: Tensor) -> dict[int, object]:
        """Find sizes that arise inside the model by running it on the meta device, once for each shape of image."""
        if self._meta is None or not partition.needs_sizes or isinstance(image, fx.Proxy):
            return partition.example_sizes
        key = tuple(image.shape)
        if key not in self._sizes:
            if len(self._sizes) > _MOST_SIZES:
                self._sizes.clear()
            self._sizes[key] = partition.sizes(self._meta, key)
        return self._sizes[key]

    def _norm(self, h: Tensor) -> Tensor:
        return h if self._usual.norm is None else _call(self._usual.norm, h)

    def _head(self, h: Tensor, pre_logits: bool) -> Tensor:
        if self._usual.head is None:
            head = self.anchor.forward_head
            h = head(h, pre_logits=pre_logits) if "pre_logits" in inspect.signature(head).parameters else head(h)
            return h
        if pre_logits:
            raise ValueError(
                f"{anchor_name(self.anchor)!r} has no forward_head: what enters its classifier is not known. "
                "Use pre_logits=False."
            )
        return _call(self._usual.head, h)

    def tokens_as_map(self, h: Tensor, image_size: tuple[int, int], boundary: int) -> Tensor:
        height, width = (-(-side // self.reductions[boundary]) for side in image_size)
        tokens = h[:, self._prefixes[boundary] :]
        if self._layouts[boundary] != "NLC" or tokens.shape[1] != height * width:
            raise ValueError(
                f"the activation of {anchor_name(self.anchor)!r} at boundary {boundary}, shape {tuple(h.shape)}, is no "
                f"map of {height}x{width}: stitch it to a model with the same layout."
            )
        return tokens.reshape(h.shape[0], height, width, h.shape[-1]).permute(0, 3, 1, 2).contiguous()

    def block_name(self, index: int) -> str:
        return self.block_names(index)[0]

    def block_names(self, index: int) -> tuple[str, ...]:
        return self._usual.blocks[index].targets

    def parameter_groups(self) -> ParameterGroups:
        usual = self._usual
        embeddings = tuple(step.target for _, step in usual.stem.span.steps if step.kind == "attribute")
        return ParameterGroups(usual.stem.targets, embeddings, usual.norm.targets if usual.norm is not None else ())

    def subset(self, stem: bool, blocks: Iterable[int], norm: bool, head: bool, prefix: bool = False) -> BlockView:
        usual, blocks = self._usual, set(blocks)
        slices = [usual.blocks[i] for i in sorted(blocks)]
        keep: set[str] = {name for block in slices for name in block.targets}
        groups = self.parameter_groups()
        for part in [*slices, *([usual.stem] if stem else [])]:
            steps = [step for _, step in usual.partition.sources(part.span.sides) if step is not None]
            keep.update(step.target for step in steps if step.reads_model)
        keep.update(groups.stem if stem else ())
        keep.update(groups.norm if norm else ())
        if head:
            used = {*groups.stem, *groups.norm, *(n for i in range(len(usual.blocks)) for n in self.block_names(i))}
            apart = {name.split(".")[0] for name in used}
            own = {*self.anchor._modules, *self.anchor._parameters, *self.anchor._buffers}
            keep.update(own - apart, usual.partition.head_targets)
        whole = self.keeps_all(stem, blocks, norm, head)
        twin = self.rebind(copy_root(self.anchor) if whole else partial_copy(self.anchor, keep))
        twin.is_partial, twin.is_whole = True, whole
        twin.has_norm, twin.has_head = norm and self.has_norm, head and self.has_head
        return twin

    def rebind(self, anchor: nn.Module) -> Self:
        twin = copy.copy(self)
        twin._bind(anchor, self._usual.partition)
        return twin

    def has_block(self, index: int) -> bool:
        for name in self.block_names(index):
            module = self.anchor
            for atom in name.split("."):
                children = {**module._modules, **module._parameters, **module._buffers}
                module = children.get(atom, getattr(module, atom, None) if atom in module.__dict__ else None)
                if module is None:
                    return False
        return True


def _call(part: Slice, h: Tensor, *sides: object) -> Tensor:
    """Call a slice; torch.fx, which knows only the model's own modules, looks into it."""
    out: Tensor = part.forward(h, *sides) if isinstance(h, fx.Proxy) else part(h, *sides)
    return out
