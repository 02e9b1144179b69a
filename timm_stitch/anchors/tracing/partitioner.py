"""Where a recorded forward pass can be cut into stem, blocks, norm and head.

Imports torch and the files that record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .layouts import form, map_layout
from .leaf_modules import OPENINGS, is_block, weighs
from .partition import Cuts, SliceOf
from .recorder import record
from .recording import Program, Ref, Step, differs

_ENOUGH = 3
_FROM_SHAPE = {"zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}


def find_cuts(model: nn.Module) -> Cuts:
    """Record a model and find its boundaries, with as few and as large blocks as give enough of them.

    Raises:
        TypeError: if the forward pass cannot be recorded, or no single tensor crosses anywhere inside.
    """
    best: Cuts | None = None
    problem: Exception | None = None
    for level, opens in enumerate(OPENINGS):
        try:
            cuts = _cut(model, *_record(model, opens), level)
        except Exception as error:
            problem = problem or error
            continue
        if best is None or _worth(cuts) > _worth(best):
            best = cuts
        if _worth(best) == (True, True):
            break
    if best is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise TypeError(
            f"{cfg.get('architecture') or type(model).__name__!r} cannot be an anchor: it was not recognised as a "
            f"stem, blocks and a head ({reason:.160}). Use another model of timm."
        ) from problem
    return best


def _worth(cuts: Cuts) -> tuple[bool, bool]:
    """Whether there are enough boundaries, and two blocks of equal reduction, between which others can join."""
    return cuts.middle >= _ENOUGH, len(set(cuts.reductions[1:])) < len(cuts.blocks)


def _record(model: nn.Module, opens: Any) -> tuple[Program, Program]:
    problem: Exception | None = None
    for size in _sizes_to_try(model):
        try:
            program = record(model, _channels(model), size, opens)
            other = record(model, _channels(model), size, opens, batch=3, training=False)
        except Exception as error:
            problem = problem or error
            continue
        if differs(program, other):
            raise TypeError("its forward pass depends on the batch size")
        return program, other
    raise problem or TypeError("it takes no image")


def _sizes_to_try(model: nn.Module) -> list[tuple[int, int]]:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    own = [getattr(getattr(model, "patch_embed", None), "img_size", None), getattr(model, "img_size", None)]
    own += [(getattr(model, "_model_args", None) or {}).get("img_size"), (cfg.get("input_size") or ())[-2:]]
    sizes = []
    for size in [*own, 224, 256, 64]:
        pair = (size, size) if isinstance(size, int) else tuple(size or ())
        if len(pair) == 2 and pair not in sizes:
            sizes.append(pair)
    return sizes


def _channels(model: nn.Module) -> int:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    known = getattr(model, "in_chans", None)
    if known is None:
        known = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return int(known or (cfg.get("input_size") or (3,))[0])


def _cut(model: nn.Module, program: Program, other: Program, level: int) -> Cuts:
    kinds = _kinds(program)
    batches = frozenset(
        i for i, (a, b) in enumerate(zip(program.examples, other.examples, strict=True))
        if kinds[i] == "shape" and type(a) is int and (a, b) == (program.batch, other.batch)
    )  # fmt: skip
    end = program.head if program.head is not None else _first(program.output)
    valid = dict(_valid(program, kinds, end))
    units = _units(model, program, level, end)
    positions = _positions(model, program, valid, units, level)
    if len(positions) < 3:
        raise TypeError("no single tensor crosses anywhere between its blocks")
    cuts = Cuts(program, kinds, batches, tuple(positions), tuple(valid[p] for p in positions))
    _describe(cuts, model)
    _merge_downsampling(cuts, units)
    _merge_prefixes(cuts)
    _slice(cuts, model)
    cuts.image_size = program.size if _insists(model, program) else None
    return cuts


def _kinds(program: Program) -> tuple[str, ...]:
    """Whether each value depends on the image's content ("data"), on its size ("shape"), or on neither ("free")."""
    kinds = ["data"]
    for number, step in enumerate(program.steps[1:], 1):
        assert step is not None
        inputs = {kinds[i] for i in step.inputs}
        name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
        if "data" in inputs and (_has_tensor(program.examples[number])) and name not in _FROM_SHAPE:
            kinds.append("data")
        elif inputs & {"data", "shape"}:
            kinds.append("data" if name in _FROM_SHAPE and "data" in inputs else "shape")
        else:
            kinds.append("free")
    return tuple(kinds)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(_has_tensor(v) for v in value))


def _valid(program: Program, kinds: Sequence[str], end: int) -> Iterator[tuple[int, int]]:
    """Positions at which one tensor alone crosses, and that tensor."""
    last: dict[int, int] = {}
    for number, step in enumerate(program.steps[1:], 1):
        assert step is not None
        last.update(dict.fromkeys(step.inputs, number))
    for number in _refs(program.output):
        last[number] = len(program.steps)
    alive: set[int] = set()
    for number in range(end + 1):
        if kinds[number] == "data" and number in last:
            alive.add(number)
        alive = {v for v in alive if last[v] > number}
        if len(alive) == 1 and number:
            (value,) = alive
            example = program.examples[value]
            whole = isinstance(example, Tensor) and example.is_floating_point() and example.ndim >= 3
            if value and whole and program.stable[value] and example.shape[0] == program.batch:
                yield number, value


def _refs(tree: Any) -> set[int]:
    if isinstance(tree, Ref):
        return {tree.index}
    if isinstance(tree, dict):
        tree = list(tree.values())
    return {n for leaf in tree for n in _refs(leaf)} if isinstance(tree, (list, tuple)) else set()


def _first(output: Any) -> int:
    return min(_refs(output))


def _units(model: nn.Module, program: Program, level: int, end: int) -> dict[int, nn.Module]:
    """The steps that do the work: blocks, or where these are opened the layers in them."""
    found = {}
    for number, step in enumerate(program.steps[: end + 1]):
        if step is not None and step.kind == "module":
            module = model.get_submodule(step.target)
            if is_block(module) if level == 0 else weighs(module):
                found[number] = module
    return found


def _positions(
    model: nn.Module, program: Program, valid: dict[int, int], units: dict[int, nn.Module], level: int
) -> list[int]:
    """The boundaries: before the first block, and wherever possible behind each one."""
    tops = Counter(program.steps[n].target.split(".")[0] for n in units)  # type: ignore[union-attr]
    kinds = Counter(type(m) for m in units.values())
    after_image = [n for n in units if 0 not in program.steps[n].inputs]  # type: ignore[union-attr]
    if not after_image:
        return []
    first = next(
        (n for n in after_image if tops[program.steps[n].target.split(".")[0]] > 1 or kinds[type(units[n])] > 1),  # type: ignore[union-attr]
        after_image[0],
    )
    before = [p for p in valid if p < first]
    if not before:
        before = [min(valid)] if valid else []
    positions, pending = before[-1:], False
    start = positions[0] if positions else 0
    for number in range(start + 1, max(valid, default=0) + 1):
        if number in units:
            pending = True
        if number not in valid:
            continue
        if pending:
            positions.append(number)
            pending = False
        elif level and len(positions) > 1:  # what weighs nothing goes with the layer before it
            positions[-1] = number
    return positions


def _describe(cuts: Cuts, model: nn.Module) -> None:
    """Find layout, width, reduction and prefix at each boundary from the examples' shapes."""
    program = cuts.program
    forms: list[tuple[str, int, int, int, int]] = []
    hint = getattr(model, "num_prefix_tokens", 0) or 0
    shapes = [tuple(program.examples[v].shape) for v in cuts.crossing]
    clear = Counter(f for f in (map_layout(s, program.size) for s in shapes if len(s) == 4) if f)
    default = clear.most_common(1)[0][0] if clear else "NCHW"
    for shape in shapes:
        forms.append(form(shape, program.size, hint, default))
    fields = ("layouts", "widths", "reductions", "prefixes", "tokens")
    for name, values in zip(fields, zip(*forms, strict=True), strict=True):
        setattr(cuts, name, tuple(values))
    total = sum(program.macs) or 1
    cuts.fractions = tuple(sum(program.macs[: p + 1]) / total for p in cuts.positions)


def _merge_downsampling(cuts: Cuts, units: dict[int, nn.Module]) -> None:
    """Let a layer that only makes the map smaller belong to the block behind it."""
    keep = list(range(len(cuts.positions)))
    classes = []
    for a, b in zip(cuts.positions, cuts.positions[1:], strict=False):
        classes.append({type(units[n]) for n in range(a + 1, b + 1) if n in units})
    form = list(zip(cuts.reductions, cuts.widths, strict=True))
    for i in range(1, len(keep) - 1):
        shrinks = cuts.reductions[i] > cuts.reductions[i - 1]
        if shrinks and form[i + 1] == form[i] and not classes[i - 1] & classes[i]:
            keep.remove(i)
    _keep(cuts, keep)


def _merge_prefixes(cuts: Cuts) -> None:
    """Let blocks behind a late class token belong to the last block before it: at all joints tokens are alike."""
    usual = Counter(cuts.prefixes[:-1]).most_common(1)[0][0]
    last = len(cuts.positions) - 1
    _keep(cuts, [i for i, prefix in enumerate(cuts.prefixes) if prefix == usual or i in (0, last)])


def _keep(cuts: Cuts, keep: Sequence[int]) -> None:
    """Keep only some boundaries, if these are enough."""
    if len(keep) < 3:
        return
    for name in ("positions", "crossing", "layouts", "widths", "reductions", "prefixes", "tokens", "fractions"):
        values = getattr(cuts, name)
        setattr(cuts, name, tuple(values[i] for i in keep))


def _slice(cuts: Cuts, model: nn.Module) -> None:
    """Fill in what stem, blocks, norm and head are made of."""
    program = cuts.program
    spans = list(zip(cuts.positions, cuts.positions[1:], cuts.crossing, cuts.crossing[1:], strict=False))
    cuts.stem = _span(cuts, 0, 0, cuts.crossing[0])
    last, value = cuts.positions[-1], cuts.crossing[-1]
    if program.head is None:
        outputs = _refs(program.output)
        if not isinstance(program.output, Ref):
            raise TypeError(f"its forward pass returns {len(outputs)} values instead of logits")
        cuts.head = _span(cuts, last, value, program.output.index)
        if cuts.head[3]:
            raise TypeError("its head needs more than what leaves the last block")
    elif value != program.head:
        norm = _span(cuts, last, value, program.head)
        if norm[3]:  # a norm sees no image: what needs side inputs belongs to the last block
            *spans, (a, _, entry, _) = spans
            spans.append((a, program.head, entry, program.head))
            cuts.positions, cuts.crossing = (*cuts.positions[:-1], program.head), (*cuts.crossing[:-1], program.head)
            _describe(cuts, model)
        else:
            cuts.norm = norm
    cuts.blocks = tuple(_span(cuts, a, entry, exit) for a, _, entry, exit in spans)
    begin = program.head if program.head is not None else last
    cuts.head_targets = frozenset(
        step.target for step in program.steps[begin + 1 :] if step is not None and step.kind in ("module", "attribute")
    )


def _span(cuts: Cuts, since: int, entry: int, exit: int) -> SliceOf:
    """The steps after `since` that lead from one value to another, and what else they need."""
    steps: dict[int, Step] = {}
    sides: set[int] = set()
    batches: set[int] = set()
    todo = [exit]
    while todo:
        number = todo.pop()
        if number == entry or number in steps:
            continue
        if number in cuts.batch_sizes:
            batches.add(number)
        elif number <= since:
            if cuts.kinds[number] == "data":
                raise TypeError("more than one tensor crosses a boundary")
            sides.add(number)
        else:
            step = cuts.program.steps[number]
            assert step is not None
            steps[number] = step
            todo += step.inputs
    return tuple(sorted(steps.items())), entry, exit, tuple(sorted(sides)), tuple(sorted(batches))


def _insists(model: nn.Module, program: Program) -> bool:
    embed = getattr(model, "patch_embed", None)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    strict = getattr(embed, "strict_img_size", None)
    if strict is None:
        strict = bool(cfg.get("fixed_input_size"))
    return program.forced or bool(strict and (getattr(embed, "img_size", None) or cfg.get("fixed_input_size")))
