"""Cuts a recorded forward pass into stem, blocks, norm and head."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from ....anchors.modules import anchor_name
from ....errors import WrongTypeError
from ..pretrained_cfg import cfg_of
from .dilated_stages import dilated_stage_starts
from .layouts import describe, map_layout
from .leaf_modules import EXPANSION_LEVELS, is_block, multiplies
from .partition import Boundary, Partition, Span
from .recorder import record
from .recording import Program, Ref, Step, differs, refs
from .values import dependencies, single_values

_ENOUGH = 3  # boundaries in the middle of the work
_ARITHMETIC = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div),
    *("add", "sub", "mul", "div", "sub_", "div_", "mul_", "add_"),
}


def partition(model: nn.Module, size: tuple[int, int] | None = None) -> Partition:
    """Record a model and find its boundaries, with as few and as large blocks as give enough of them.

    Args:
        model: the model on any device; neither run nor changed.
        size: the (height, width) of the images; default one that the model takes.

    Raises:
        TypeError: if the forward pass cannot be recorded, or no single tensor crosses anywhere inside.
    """
    best: Partition | None = None
    problem: Exception | None = None
    for level, should_expand in enumerate(EXPANSION_LEVELS):
        try:
            sizes = [size] if size else _sizes_to_try(model)
            candidate = _partition(model, *_record(model, should_expand, sizes), level)
        except Exception as error:
            problem = problem or error
            continue
        if best is None or _quality(candidate) > _quality(best):
            best = candidate
        if _quality(best) == (True, True):
            break
    if best is None:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise WrongTypeError(
            f"{anchor_name(model)!r} cannot be an anchor: it was not recognised as a "
            f"stem, blocks and a head ({reason:.160}). Use another model of timm."
        ) from problem
    return best


def _quality(candidate: Partition) -> tuple[bool, bool]:
    """Whether there are enough boundaries, and two blocks of one stage, between which others can join."""
    reductions = {boundary.reduction for boundary in candidate.boundaries[1:]}
    stages = len(reductions) + len(candidate.stage_starts)
    return candidate.middle >= _ENOUGH, stages < len(candidate.blocks)


def _record(
    model: nn.Module, should_expand: Callable[[nn.Module], bool], sizes: Sequence[tuple[int, int]]
) -> tuple[Program, Program]:
    """Record a model at the first size that it takes, with two batch sizes."""
    problem: Exception | None = None
    for size in sizes:
        try:
            program = record(model, _channels(model), size, should_expand)
            other = record(model, _channels(model), size, should_expand, batch=3, training=False)
        except Exception as error:
            problem = problem or error
            continue
        if differs(program, other):
            raise TypeError("its forward pass depends on the batch size")
        return program, other
    raise problem or TypeError("it takes no image")


def _sizes_to_try(model: nn.Module) -> list[tuple[int, int]]:
    own = [getattr(getattr(model, "patch_embed", None), "img_size", None), getattr(model, "img_size", None)]
    own.append((getattr(model, "_model_args", None) or {}).get("img_size"))
    own.append((cfg_of(model).get("input_size") or ())[-2:])
    sizes = []
    for size in [*own, 224, 256, 64]:
        pair = (size, size) if isinstance(size, int) else tuple(size or ())
        if len(pair) == 2 and pair not in sizes:
            sizes.append(pair)
    return sizes


def _channels(model: nn.Module) -> int:
    channels = getattr(model, "in_chans", None)
    if channels is None:
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return int(channels or (cfg_of(model).get("input_size") or (3,))[0])


def _partition(model: nn.Module, program: Program, other: Program, level: int) -> Partition:
    """Cut a recording, with the help of another one that was made with another batch size."""
    # 1. What the values depend on, and which of them are the batch size.
    kinds = dependencies(program)
    batches = frozenset(
        i for i, (a, b) in enumerate(zip(program.examples, other.examples, strict=True))
        if kinds[i] == "shape" and type(a) is int and (a, b) == (program.batch, other.batch)
    )  # fmt: skip
    # 2. Where one tensor crosses alone, and which of these places become boundaries.
    end = program.head if program.head is not None else min(refs(program.output))
    crossing = dict(single_values(program, kinds, end))
    units = _units(model, program, level, end)
    positions = _positions(program, crossing, units, level)
    if len(positions) < 3:
        raise TypeError("no single tensor crosses anywhere between its blocks")
    boundaries = _describe(program, model, [(position, crossing[position]) for position in positions])
    boundaries = _without_late_prefixes(_without_downsampling(boundaries, units))

    def span(since: int, entry: int, exit: int) -> Span:
        return _span(program, kinds, batches, since, entry, exit)

    # 3. What lies between the boundaries.
    boundaries, blocks, norm = _blocks_and_norm(program, model, boundaries, span)
    last = boundaries[-1]
    begin = program.head if program.head is not None else last.position
    used = [step.target for step in program.steps[begin + 1 :] if step is not None and step.reads_model]
    return Partition(
        program, kinds, boundaries, span(0, 0, boundaries[0].value), blocks, norm,
        _head(program, last, span) if program.head is None else None,
        frozenset(used), program.size if _requires_fixed_size(model) else None,
        dilated_stage_starts(model, [block.targets for block in blocks]),
    )  # fmt: skip


def _units(model: nn.Module, program: Program, level: int, end: int) -> dict[int, nn.Module]:
    """The steps that do the work: blocks, or where these are expanded the layers in them."""
    units = {}
    for number, step in enumerate(program.steps[: end + 1]):
        if step is not None and step.kind == "module":
            module = model.get_submodule(step.target)
            if is_block(module) if level == 0 else multiplies(module):
                units[number] = module
    return units


def _positions(program: Program, crossing: dict[int, int], units: dict[int, nn.Module], level: int) -> list[int]:
    """The positions of the boundaries: before the first block, and wherever possible behind each one."""
    tops = Counter(program.step(n).target.split(".")[0] for n in units)
    kinds = Counter(type(m) for m in units.values())
    image = _image_values(program)
    after_image = [n for n in units if not image & program.step(n).inputs]
    if not after_image:
        return []
    first = next(
        (n for n in after_image if tops[program.step(n).target.split(".")[0]] > 1 or kinds[type(units[n])] > 1),
        after_image[0],
    )
    before = [p for p in crossing if p < first] or sorted(crossing)[:1]
    positions, pending = before[-1:], False
    start = positions[0] if positions else 0
    for number in range(start + 1, max(crossing, default=0) + 1):
        if number in units:
            pending = True
        if number not in crossing:
            continue
        if pending:
            positions.append(number)
            pending = False
        elif level and len(positions) > 1:  # what multiplies nothing goes with the layer before it
            positions[-1] = number
    return positions


def _image_values(program: Program) -> set[int]:
    """List the values that are the image, or the image normalised by the model itself."""
    values = {0}
    for number, step in enumerate(program.steps):
        if step is not None and step.target in _ARITHMETIC and values & step.inputs:
            values.add(number)
    return values


def _describe(program: Program, model: nn.Module, places: Sequence[tuple[int, int]]) -> tuple[Boundary, ...]:
    """Describe the boundaries at pairs of position and value by the shapes of the examples."""
    hint = getattr(model, "num_prefix_tokens", 0) or 0
    shapes = [tuple(program.examples[value].shape) for _, value in places]
    clear = Counter(f for f in (map_layout(s, program.size) for s in shapes if len(s) == 4) if f)
    default = clear.most_common(1)[0][0] if clear else "NCHW"
    total = sum(program.macs) or 1
    return tuple(
        Boundary(
            position, value, *describe(shape, program.size, hint, default), sum(program.macs[: position + 1]) / total
        )
        for (position, value), shape in zip(places, shapes, strict=True)
    )


def _without_downsampling(boundaries: tuple[Boundary, ...], units: dict[int, nn.Module]) -> tuple[Boundary, ...]:
    """Merge a layer that only makes the map smaller with the block behind it."""
    classes = [
        {type(units[n]) for n in range(a.position + 1, b.position + 1) if n in units} for a, b in pairwise(boundaries)
    ]
    form = [(boundary.reduction, boundary.width) for boundary in boundaries]
    merged = {
        i
        for i in range(1, len(boundaries) - 1)
        if boundaries[i].reduction > boundaries[i - 1].reduction
        and form[i + 1] == form[i]
        and not classes[i - 1] & classes[i]
    }
    return _if_enough([b for i, b in enumerate(boundaries) if i not in merged], boundaries)


def _without_late_prefixes(boundaries: tuple[Boundary, ...]) -> tuple[Boundary, ...]:
    """Merge blocks behind a late class token with the last block before it: at all joints tokens are alike."""
    usual = Counter(boundary.prefix for boundary in boundaries[:-1]).most_common(1)[0][0]
    first, *inner, last = boundaries
    return _if_enough([first, *(b for b in inner if b.prefix == usual), last], boundaries)


def _if_enough(fewer: Sequence[Boundary], boundaries: tuple[Boundary, ...]) -> tuple[Boundary, ...]:
    """Fewer boundaries, if these are enough."""
    return tuple(fewer) if len(fewer) >= 3 else boundaries


def _blocks_and_norm(
    program: Program, model: nn.Module, boundaries: tuple[Boundary, ...], span: Callable[[int, int, int], Span]
) -> tuple[tuple[Boundary, ...], tuple[Span, ...], Span | None]:
    """The blocks between the boundaries, and the norm after the last; this moves where the norm needs side inputs."""
    norm, last = None, boundaries[-1]
    if program.head is not None and last.value != program.head:
        norm = span(last.position, last.value, program.head)
        if norm.sides:  # a norm sees no image: what needs side inputs belongs to the last block
            norm = None
            places = [(b.position, b.value) for b in boundaries[:-1]]
            boundaries = _describe(program, model, [*places, (program.head, program.head)])
    return boundaries, tuple(span(a.position, a.value, b.value) for a, b in pairwise(boundaries)), norm


def _head(program: Program, last: Boundary, span: Callable[[int, int, int], Span]) -> Span:
    """The steps from the last boundary to the logits, in a model without a `forward_head`."""
    if not isinstance(program.output, Ref):
        raise TypeError(f"its forward pass returns {len(refs(program.output))} values instead of logits")
    head = span(last.position, last.value, program.output.index)
    if head.sides:
        raise TypeError("its head needs more than what leaves the last block")
    return head


def _span(
    program: Program, kinds: Sequence[str], batch_sizes: frozenset[int], since: int, entry: int, exit: int
) -> Span:
    """The steps after `since` that lead from one value to another, and what else they need."""
    steps: dict[int, Step] = {}
    sides: set[int] = set()
    batches: set[int] = set()
    todo = [exit]
    while todo:
        number = todo.pop()
        if number == entry or number in steps:
            continue
        if number in batch_sizes:
            batches.add(number)
        elif number <= since:
            if kinds[number] == "data":
                raise TypeError("more than one tensor crosses a boundary")
            sides.add(number)
        else:
            steps[number] = program.step(number)
            todo += steps[number].inputs
    return Span(tuple(sorted(steps.items())), entry, exit, tuple(sorted(sides)), tuple(sorted(batches)))


def _requires_fixed_size(model: nn.Module) -> bool:
    """Whether a model takes images of one size only, by its own attributes."""
    embed = getattr(model, "patch_embed", None)
    fixed = bool(cfg_of(model).get("fixed_input_size"))
    strict = getattr(embed, "strict_img_size", None)
    return fixed if strict is None else bool(strict and (getattr(embed, "img_size", None) or fixed))
