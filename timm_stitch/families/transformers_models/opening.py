"""A model of transformers opened as an anchor: its list of layers, and proof that every split of it equals the whole.

What a layer returns, which parameters a model uses before and behind its layers, and whether its layers need anything
of the layers before them, is measured on a small padded batch of random inputs. A model is refused if one of its splits
gives another output than the whole. Nothing here imports transformers: a model is recognised by its attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...anchors.modules import child
from ...errors import WrongTypeError
from ...network.modes import evaluating
from .inputs import TextInputs
from .layer_list import LayerList, PartialForward, running
from .partial_models import make_zero_embedding, replace_module
from .views import AnchorSpec, TransformersView, takes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTH, _PADDED = 9, 3  # tokens of the batch, and how many of its first row are padding


def is_transformers_model(model: object) -> TypeGuard[PreTrainedModel]:
    """Whether a model is one of transformers."""
    return isinstance(model, nn.Module) and all(
        hasattr(model, name) for name in ("config", "main_input_name", "base_model_prefix", "post_init")
    )


@torch.no_grad()
def open_anchor(model: PreTrainedModel) -> TransformersView:
    """Open a model of transformers.

    Args:
        model: the model, in any mode, on any device but meta; its list of layers becomes a `LayerList`.

    Raises:
        TypeError: if it cannot be opened, saying why.
    """
    name = type(model).__name__
    if any(tensor.is_meta for tensor in model.parameters()):
        raise WrongTypeError(f"{name} is on the meta device, where it cannot be tried: give it with its weights.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise WrongTypeError(f"{name} has an encoder and a decoder: expected a model with one row of layers.")
    with evaluating(model), _without_further_outputs(model):
        inputs, whole = _run_whole(model)
        spec = _find_layers(model, inputs)
        layers = child(model, spec.layers_path)
        if type(layers) not in (nn.ModuleList, LayerList):
            raise WrongTypeError(
                f"{name}.{spec.layers_path} is a {type(layers).__name__}: expected torch's ModuleList, whose place is "
                "taken by a list that can skip layers."
            )
        try:
            view = TransformersView(model, spec)
            _check_splits(view, inputs, whole)
            view.spec = _find_used_parameters(view, inputs)
        except BaseException:
            replace_module(model, spec.layers_path, layers)
            raise
    return view


@torch.no_grad()
def check_splits(view: TransformersView) -> None:
    """Check the splits of an anchor again, as it is now.

    Raises:
        TypeError: if the model does not run, or gives another output in two parts.
    """
    with evaluating(view.anchor), _without_further_outputs(view.anchor):
        _check_splits(view, *_run_whole(view.anchor))


def _run_whole(model: PreTrainedModel) -> tuple[TextInputs, list[Tensor]]:
    """Run a model on a small batch; returns the batch and the tensors of its output."""
    inputs = TextInputs.of(make_batch(model))
    try:
        if takes(model, "use_cache"):
            inputs = replace(inputs, arguments={**inputs.arguments, "use_cache": False})
        return inputs, tensors_of(model(**inputs.arguments, return_dict=True))
    except Exception as error:
        raise WrongTypeError(
            f"{type(model).__name__} does not run on a small batch of {sorted(inputs.arguments)}: "
            f"{_describe_error(error)}"
        ) from error


@contextmanager
def _without_further_outputs(model: PreTrainedModel) -> Iterator[None]:
    """Turn off, inside the block, the outputs of single layers that a model's configuration asks for."""
    flags = []
    for config in {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values():
        names = [n for n in vars(config) if n.lstrip("_").startswith(("output_", "use_mems"))]
        flags += [(config, name, vars(config)[name]) for name in names if vars(config)[name]]
    try:
        for config, name, _ in flags:
            setattr(config, name, False)
        yield
    finally:
        for config, name, value in flags:
            setattr(config, name, value)


def reopened(model: PreTrainedModel, spec: AnchorSpec) -> TransformersView:
    """Open a model as it was opened before; it may be on the meta device.

    Raises:
        ValueError: if it is not the model that was opened.
    """
    try:
        layers = child(model, spec.layers_path)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__} has no row of layers {spec.layers_path!r:.80}.") from error
    depth = len(spec.output_arity)
    if not isinstance(layers, nn.ModuleList) or len(layers) != depth:
        raise ValueError(f"{type(model).__name__}.{spec.layers_path:.80} is no list of {depth} layers.")
    return TransformersView(model, spec)


def make_batch(model: PreTrainedModel, rows: int = 2, length: int = _LENGTH) -> dict[str, Tensor]:
    """Make a small batch of random inputs for a model; its first row is padded if the model takes padding."""
    config, reference = model.config, next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        vision = config if hasattr(config, "image_size") else getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 32)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = (rows, getattr(vision, "num_channels", 3), height, width)
        return {"pixel_values": torch.rand(shape, generator=generator).to(reference)}
    if model.main_input_name != "input_ids":
        raise WrongTypeError(
            f"{type(model).__name__} takes {model.main_input_name}: expected input_ids or pixel_values."
        )
    special = {v for k, v in config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)}
    vocab_size = config.get_text_config().vocab_size
    ordinary = torch.tensor([i for i in range(min(vocab_size, 1000)) if i not in special])
    ids = ordinary[torch.randint(len(ordinary), (rows, length), generator=generator)]
    pad = getattr(config, "pad_token_id", None)
    if pad is None or rows == 1:
        return {"input_ids": (ids if "CausalLM" in type(model).__name__ else ids[:1]).to(reference.device)}
    mask = torch.ones_like(ids)
    reads_in_one_direction = bool(getattr(model, "can_generate", lambda: False)())  # and is padded on the left
    padded = slice(0, _PADDED) if reads_in_one_direction else slice(-_PADDED, None)
    ids[0, padded], mask[0, padded] = pad, 0
    return {"input_ids": ids.to(reference.device), "attention_mask": mask.to(reference.device)}


def tensors_of(output: object) -> list[Tensor]:
    """List the tensors of a model's output, in order, without its cache."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for name, v in output.items() if "cache" not in name and "past" not in name for t in tensors_of(v)]
    return [t for v in output for t in tensors_of(v)] if isinstance(output, (tuple, list)) else []


def _find_layers(model: PreTrainedModel, inputs: TextInputs) -> AnchorSpec:
    """Find the list of layers that a model runs one after another, and what crosses their boundaries."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    calls: dict[str, list[tuple[int, object, object]]] = {name: [] for name in lists}
    # 1. Run the model once, and record the number, input and output of each layer of each list.
    with ExitStack() as stack:
        for name, modules in lists.items():
            for index, layer in enumerate(modules):

                def record(
                    _: nn.Module, args: Any, kwargs: Any, output: object, n: int = index, to: str = name
                ) -> None:
                    calls[to].append((n, args[0] if args else kwargs.get("hidden_states"), output))

                stack.callback(layer.register_forward_hook(record, with_kwargs=True).remove)
        model(**inputs.arguments, return_dict=True)
    # 2. Of the lists that ran in order, each layer on an activation, take the one with most parameters.
    crossing: dict[str, list[Tensor]] = {}
    for name, own in calls.items():
        leaving = [output[0] if isinstance(output, tuple) and output else output for *_, output in own]
        hs = [h for h in (*(h for _, h, _ in own), *leaving) if isinstance(h, Tensor) and h.ndim >= 3]
        if [n for n, *_ in own] == list(range(len(lists[name]))) and 1 < len(own) == len(hs) / 2:
            crossing[name] = [hs[0], *hs[len(own) :]]
    if not crossing:
        raise WrongTypeError(
            f"{type(model).__name__} has no single row of layers that run one after another, each on what the one "
            "before gave: it cannot be an anchor."
        )
    path = max(crossing, key=lambda name: (sum(p.numel() for p in lists[name].parameters()), -len(name)))
    layouts = tuple(_layout(model, h, inputs.batch_size) for h in crossing[path])
    widths = tuple(h.shape[1 if layout == "NCHW" else -1] for h, layout in zip(crossing[path], layouts, strict=True))
    positions = tuple(h.numel() // width for h, width in zip(crossing[path], widths, strict=True))
    reductions = tuple(max(positions) // count for count in positions)
    arity = tuple(len(output) if isinstance(output, tuple) else 0 for *_, output in calls[path])
    return AnchorSpec(path, arity, widths, reductions, layouts, positions)


def _layout(model: PreTrainedModel, h: Tensor, rows: int) -> str:
    """Tell the layout of an activation: the dimension of a map whose size the configuration names has the channels."""
    if model.main_input_name != "pixel_values" and h.ndim == 4 and h.shape[0] != rows and h.shape[1] == rows:
        return "SNLC"
    if model.main_input_name != "pixel_values" or h.ndim != 4:
        return "NLC"
    values = [v for value in model.config.to_dict().values() for v in (value if isinstance(value, list) else [value])]
    return "NLC" if h.shape[-1] in values and h.shape[1] not in values else "NCHW"


def _check_splits(view: TransformersView, inputs: TextInputs, whole: list[Tensor]) -> None:
    """Refuse a model whose output changes when its layers run in two parts."""
    name = type(view.anchor).__name__
    try:
        activations = view.run_to_boundaries(None, 0, range(view.depth + 1), inputs)
        for boundary, h in activations.items():
            again = view.run_to_boundaries(None, 0, (boundary,), inputs)[boundary]
            if not torch.equal(again, h):
                raise WrongTypeError(f"{name} is not the same twice: what leaves its layer {boundary - 1} differs.")
            if not same(tensors_of(view.run_to_output(h, boundary, inputs)), whole):
                raise WrongTypeError(
                    f"{name} gives another output when its layers from {boundary} on run alone: they need more of the "
                    "layers before than the activation."
                )
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise WrongTypeError(f"{name} does not run in two parts: {_describe_error(error)}") from error


def same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors are equal, bit for bit."""
    return len(tensors) == len(others) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(tensors, others, strict=True)
    )


class _ParameterUse(TorchFunctionMode):
    """Records the names of the parameters that are used before and after an activation is inserted."""

    def __init__(self, names: Mapping[int, set[str]], partial: PartialForward) -> None:
        super().__init__()
        self.names, self.partial, self.before, self.after = names, partial, set[str](), set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if id(item) in self.names:
                    (self.after if self.partial.entered else self.before).update(self.names[id(item)])
        return func(*args, **kwargs)


def _find_used_parameters(view: TransformersView, inputs: TextInputs) -> AnchorSpec:
    """Find the parameters that a model uses before and behind its layers, and the embeddings that a back can drop."""
    spec, model = view.spec, view.anchor
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied one has several names
        names.setdefault(id(parameter), set()).add(name)
    h = view.run_to_boundaries(None, 0, (view.depth,), inputs)[view.depth]
    with (
        running(PartialForward(view.layers, view.depth, None, view.in_own_layout(h, view.depth))) as partial,
        _ParameterUse(names, partial) as used,
    ):
        model(**inputs.arguments, return_dict=True)
    in_layers = {n for own in names.values() for n in own if n.startswith(spec.layers_path + ".")}
    unused = set[str]().union(*names.values()) - in_layers - used.before  # with these inputs; they count as behind
    only_before = used.before - used.after
    embeddings = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and f"{name}.weight" in only_before
    )
    return replace(
        spec,
        before=tuple(sorted(used.before)),
        after=tuple(sorted(used.after | unused)),
        droppable_embeddings=embeddings if embeddings and _works_without(view, inputs, embeddings) else (),
    )


def _works_without(view: TransformersView, inputs: TextInputs, embeddings: tuple[str, ...]) -> bool:
    """Whether the layers give the same where these embeddings give zeros."""
    middle = max(1, view.depth // 2)
    h = view.run_to_boundaries(None, 0, (middle,), inputs)[middle]
    expected = tensors_of(view.run_to_output(h, middle, inputs))
    modules = {name: child(view.anchor, name) for name in embeddings}
    try:
        for name, module in modules.items():
            replace_module(view.anchor, name, make_zero_embedding(module))
        return same(tensors_of(view.run_to_output(h, middle, inputs)), expected)
    except Exception:
        return False
    finally:
        for name, module in modules.items():
            replace_module(view.anchor, name, module)


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error!s:.120}"
