"""A model of transformers opened as an anchor: its row of layers found, all splits of it compared with the whole.

Nothing is taken on trust: what a layer returns, which tensors a model uses before and behind its layers, and whether
its layers need anything of layers that a stitch leaves out, is seen on a small padded batch of random inputs. A model
of which one split gives another output than the whole is refused. Nothing here imports transformers; a model is known
by its `config`, `main_input_name` and the lists among its modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...anchors.modules import child
from ...errors import WrongTypeError
from ...network.modes import evaluating
from .inputs import TextInputs
from .layer_list import PartialForward, running
from .views import Opening, TransformersView, put_module, takes, without_table

_LENGTH, _PADDED = 9, 3  # tokens of the batch, and how many of its first row are padding


def is_of_transformers(model: Any) -> bool:
    """Whether a model is one of transformers."""
    return isinstance(model, nn.Module) and all(
        hasattr(model, name) for name in ("config", "main_input_name", "base_model_prefix", "post_init")
    )


@torch.no_grad()
def open_anchor(model: Any, batch: Mapping[str, Any] | None = None) -> TransformersView:
    """Open a model of transformers.

    Args:
        model: in any mode, on any device but meta; its list of layers becomes a `LayerRow`.
        batch: to open it with; default a small one of random inputs, with padding.

    Raises:
        TypeError: if it cannot be opened, saying why.
    """
    name = type(model).__name__
    if any(tensor.is_meta for tensor in model.parameters()):
        raise WrongTypeError(f"{name} is on the meta device, where it cannot be tried: give it with its weights.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise WrongTypeError(f"{name} has an encoder and a decoder: expected a model with one row of layers.")
    with evaluating(model):
        inputs = TextInputs.of(probe(model) if batch is None else batch)
        try:
            cached = {"use_cache": False} if takes(model, "use_cache") else {}
            inputs = replace(inputs, given={**inputs.given, **cached})
            whole = tensors_of(model(**inputs.given, return_dict=True))
        except Exception as error:
            raise WrongTypeError(
                f"{name} does not run on a small batch of {sorted(inputs.given)}: {_said(error)}"
            ) from error
        opening = _find_row(model, inputs)
        before = child(model, opening.row)
        try:
            view = TransformersView(model, opening)
            _check_splits(view, inputs, whole)
            view.opening = _uses(view, inputs)
        except BaseException:
            put_module(model, opening.row, before)
            raise
    return view


def reopened(model: Any, opening: Opening) -> TransformersView:
    """A model that was opened before, by what is known of it; it may be on the meta device.

    Raises:
        ValueError: if it is not the model that was opened.
    """
    try:
        layers = child(model, opening.row)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__} has no row of layers {opening.row!r:.80}.") from error
    if not isinstance(layers, nn.ModuleList) or len(layers) != len(opening.forms):
        raise ValueError(f"{type(model).__name__}.{opening.row:.80} is no list of {len(opening.forms)} layers.")
    return TransformersView(model, opening)


def probe(model: Any, rows: int = 2, length: int = _LENGTH) -> dict[str, Any]:
    """A small batch of random inputs for a model; its first row is padded where the model takes padding."""
    config, device = model.config, next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        vision = config if hasattr(config, "image_size") else getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 32)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = (rows, getattr(vision, "num_channels", 3), height, width)
        return {"pixel_values": torch.rand(shape, generator=generator).to(device, next(model.parameters()).dtype)}
    if model.main_input_name != "input_ids":
        raise WrongTypeError(
            f"{type(model).__name__} takes {model.main_input_name}: expected input_ids or pixel_values."
        )
    special = {v for k, v in config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)}
    vocabulary = config.get_text_config().vocab_size
    usual = torch.tensor([i for i in range(min(vocabulary, 1000)) if i not in special])
    ids = usual[torch.randint(len(usual), (rows, length), generator=generator)]
    pad = getattr(config, "pad_token_id", None)
    if pad is None or rows == 1:
        return {"input_ids": (ids if "CausalLM" in type(model).__name__ else ids[:1]).to(device)}
    mask = torch.ones_like(ids)
    padded = slice(0, _PADDED) if _pads_left(model) else slice(-_PADDED, None)
    ids[0, padded], mask[0, padded] = pad, 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _pads_left(model: Any) -> bool:
    """Whether a model reads in one direction, so that its text is padded on the left."""
    return bool(getattr(model, "can_generate", lambda: False)())


def tensors_of(out: Any) -> list[Tensor]:
    """The tensors of a model's output, in order, without its cache."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, Mapping):
        return [t for name, v in out.items() if "cache" not in name and "past" not in name for t in tensors_of(v)]
    return [t for v in out for t in tensors_of(v)] if isinstance(out, (tuple, list)) else []


def _find_row(model: nn.Module, inputs: TextInputs) -> Opening:
    """The list of layers that a model runs one after another, and what crosses their boundaries."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    calls: dict[str, list[tuple[int, Any, Any]]] = {name: [] for name in lists}
    with ExitStack() as stack:
        for name, modules in lists.items():
            for index, layer in enumerate(modules):

                def note(_: Any, args: Any, kwargs: Any, out: Any, at: tuple[str, int] = (name, index)) -> None:
                    calls[at[0]].append((at[1], args[0] if args else kwargs.get("hidden_states"), out))

                stack.callback(layer.register_forward_hook(note, with_kwargs=True).remove)
        model(**inputs.given, return_dict=True)
    found = {}
    for name, seen in calls.items():
        leaving = [out[0] if isinstance(out, tuple) and out else out for _, _, out in seen]
        entering = [h for _, h, _ in seen]
        in_order = [index for index, _, _ in seen] == list(range(len(lists[name])))
        if in_order and len(seen) > 1 and all(isinstance(h, Tensor) and h.ndim >= 3 for h in (*entering, *leaving)):
            forms = tuple(len(out) if isinstance(out, tuple) else 0 for *_, out in seen)
            found[name] = forms, [entering[0], *leaving]
    if not found:
        raise WrongTypeError(
            f"{type(model).__name__} has no single row of layers that run one after another, each on what the one "
            "before gave: it cannot be an anchor."
        )
    name = max(found, key=lambda n: (sum(p.numel() for p in lists[n].parameters()), -len(n)))
    forms, crossing = found[name]
    layouts = tuple(_layout(model, h) for h in crossing)
    widths = tuple(int(h.shape[1 if layout == "NCHW" else -1]) for h, layout in zip(crossing, layouts, strict=True))
    positions = tuple(h.numel() // width for h, width in zip(crossing, widths, strict=True))
    most = max(positions)
    return Opening(name, forms, widths, tuple(most // n for n in positions), layouts, positions, (), (), ())


def _layout(model: Any, h: Tensor) -> str:
    """How an activation is laid out: of maps, the side that a model's configuration names has the channels."""
    if model.main_input_name != "pixel_values" or h.ndim != 4:
        return "NLC"
    values = [v for value in model.config.to_dict().values() for v in (value if isinstance(value, list) else [value])]
    return "NLC" if h.shape[-1] in values and h.shape[1] not in values else "NCHW"


def _check_splits(view: TransformersView, inputs: TextInputs, whole: list[Tensor]) -> None:
    """Refuse a model that is another one when its layers run in two parts."""
    name = type(view.anchor).__name__
    try:
        crossing = view.run_to_boundaries(None, 0, range(view.depth + 1), inputs)
        for boundary, h in crossing.items():
            again = view.run_to_boundaries(None, 0, (boundary,), inputs)[boundary]
            if not torch.equal(again, h):
                raise WrongTypeError(f"{name} is not the same twice: what leaves its layer {boundary - 1} differs.")
            if not same(tensors_of(view.run_to_output(h, boundary, inputs)), whole):
                raise WrongTypeError(
                    f"{name} gives another output when its layers from {boundary} on run alone: they need more of the "
                    "layers before than the activation."
                )
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise WrongTypeError(f"{name} does not run in two parts: {_said(error)}") from error


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors are equal, bit for bit."""
    return len(some) == len(others) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in zip(some, others, strict=True)
    )


class _Used(TorchFunctionMode):
    """Notes which of some tensors are used, before and after an activation was put into a row."""

    def __init__(self, names: Mapping[int, set[str]], partial: PartialForward) -> None:
        super().__init__()
        self.names, self.partial, self.before, self.after = names, partial, set[str](), set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for one in value if isinstance(value, (tuple, list)) else (value,):
                if id(one) in self.names:
                    (self.after if self.partial.entered else self.before).update(self.names[id(one)])
        return func(*args, **kwargs)


def _uses(view: TransformersView, inputs: TextInputs) -> Opening:
    """Which parameters a model uses before its layers and behind them, and which tables a back does without."""
    opening, model = view.opening, view.anchor
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # one that is tied has several
        names.setdefault(id(parameter), set()).add(name)
    h = view.run_to_boundaries(None, 0, (view.depth,), inputs)[view.depth]
    with running(PartialForward(view.row_of_layers, view.depth, None, h)) as partial, _Used(names, partial) as used:
        model(**inputs.given, return_dict=True)
    every = {name for some in names.values() for name in some}
    in_row = {name for name in every if name.startswith(opening.row + ".")}
    unused = every - in_row - used.before  # with these inputs; they belong to what comes behind
    known = opening.to_dict() | {"before": sorted(used.before), "after": sorted(used.after | unused)}
    only_before = used.before - used.after
    tables = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and f"{name}.weight" in only_before
    ]
    if tables and _does_without(view, inputs, tables):
        known["tables"] = tables
    return Opening.from_dict(known)


def _does_without(view: TransformersView, inputs: TextInputs, tables: list[str]) -> bool:
    """Whether the layers give the same where these embeddings give zeros."""
    middle = max(1, view.depth // 2)
    h = view.run_to_boundaries(None, 0, (middle,), inputs)[middle]
    expected = tensors_of(view.run_to_output(h, middle, inputs))
    kept = {name: child(view.anchor, name) for name in tables}
    try:
        for name, table in kept.items():
            put_module(view.anchor, name, without_table(table))
        return same(tensors_of(view.run_to_output(h, middle, inputs)), expected)
    except Exception:
        return False
    finally:
        for name, table in kept.items():
            put_module(view.anchor, name, table)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error!s:.120}"
