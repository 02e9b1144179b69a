"""The view of a model of transformers: its own forward, over a list of layers that can skip some.

A front is the model's own forward up to a layer. A back is the model's own whole forward, with an activation inserted
before a layer. So masks, rotary embeddings, inputs for each layer, caches, losses and outputs all come from the model's
own code. `opening` shows how such a model is opened. Nothing here imports transformers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from ...anchors.modules import child, drop_hooks, find_submodule, partial_copy
from ...anchors.view import View
from ...network.modes import evaluating
from .inputs import TextInputs
from .layer_list import LayerList, PartialForward, running

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

M = TypeVar("M", bound=nn.Module)

_FOR_OUTPUTS = ("output_hidden_states", "output_attentions", "logits_to_keep", "return_dict")
_SAVED_AS = {"layers_path": "row", "output_arity": "forms", "droppable_embeddings": "tables"}


@dataclass(frozen=True)
class AnchorSpec:
    """How a model of transformers is opened as an anchor; plain values, kept in a saved network's configuration.

    Args:
        layers_path: the name of its list of layers.
        output_arity: the length of the tuple that each layer returns; 0 if it returns a tensor.
        widths, reductions: the values of `plan.Anchor` at each boundary.
        layouts: the layout at each boundary: `"NCHW"` for maps, else `"NLC"` (channels last).
        positions: the positions that cross each boundary, for the batch that it was opened with.
        before, after: the parameters that it uses before its first layer, and behind its last.
        droppable_embeddings: the embeddings that no stitch needs which enters the model at a later layer.
    """

    layers_path: str
    output_arity: tuple[int, ...]
    widths: tuple[int, ...]
    reductions: tuple[int, ...]
    layouts: tuple[str, ...]
    positions: tuple[int, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    droppable_embeddings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Convert to JSON-serialisable values; some keys are older than the names of the fields."""
        return {_SAVED_AS.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> AnchorSpec:
        """Read what `to_dict` wrote.

        Raises:
            TypeError: if a field is missing or unknown.
        """
        field_names = {key: name for name, key in _SAVED_AS.items()}
        fields = {field_names.get(k, k): tuple(v) if isinstance(v, (list, tuple)) else v for k, v in data.items()}
        if fields.keys() != cls.__dataclass_fields__.keys():
            raise TypeError(f"its fields are {', '.join(map(str, data))}")
        return cls(**fields)  # type: ignore[arg-type] # a stranger's values, which `configuration` checks


class TransformersView(View):
    """A model of transformers by its list of layers.

    Args:
        anchor: the model; the list of its layers becomes a `LayerList`, which behaves as the list when idle.
        spec: the names and sizes of its parts.

    Attributes:
        number: the anchor's number in its network, by which it finds its cache.
    """

    anchor: PreTrainedModel
    number: int = 0

    def __init__(self, anchor: PreTrainedModel, spec: AnchorSpec) -> None:
        self.anchor, self.spec = anchor, spec
        self.depth = len(spec.output_arity)
        self.widths, self.reductions = spec.widths, spec.reductions
        self.takes_cache = takes(anchor, "use_cache")
        layers = child(anchor, spec.layers_path)
        if not isinstance(layers, LayerList):
            layer_list = LayerList(dict(layers._modules), spec.output_arity)
            replace_module(anchor, spec.layers_path, layer_list.train(layers.training))

    @property
    def layers(self) -> LayerList:
        """The layers."""
        return cast("LayerList", child(self.anchor, self.spec.layers_path))

    @cached_property
    def max_positions(self) -> int | None:
        """The largest number of tokens that the model takes, where its configuration has one."""
        config = self.anchor.config
        try:
            limit = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
        except NotImplementedError:  # XLNet's way to say that it has no limit
            return None
        if not isinstance(limit, int) or limit <= 0:
            return None
        tables = [m for name, m in self.anchor.named_modules() if name.endswith("position_embeddings")]
        first = [pad + 1 for m in tables if isinstance(pad := getattr(m, "padding_idx", None), int)]  # as in RoBERTa
        return limit - max(first, default=0)

    def run_to_boundaries(
        self, h: Tensor | None, start: int, wanted: Collection[int], inputs: TextInputs
    ) -> dict[int, Tensor]:
        if not wanted:
            return {}
        with running(PartialForward(self.layers, start, max(wanted), h, wanted)) as partial:
            self.call(inputs, h, start, ends=True)
        return partial.activations

    def run_to_output(self, h: Tensor | None, start: int, inputs: TextInputs, normed: bool = True) -> ModelOutput:
        if h is None:
            return self.call(inputs, None, 0)
        with running(PartialForward(self.layers, start, None, h)):
            return self.call(inputs, h, start)

    def call(self, inputs: TextInputs, h: Tensor | None, start: int = 0, ends: bool = False) -> ModelOutput:
        """Call the model's own forward, with the cache of a segment from layer `start` on.

        Args:
            inputs: the inputs of the call.
            h: the activation that the list of layers inserts.
            start: the first layer that runs.
            ends: whether nothing behind the layers is needed.
        """
        arguments = {k: v for k, v in inputs.arguments.items() if not (ends and k in _FOR_OUTPUTS)}
        if (self.number, start) in inputs.caches:
            arguments |= inputs.caches[self.number, start]
        elif self.takes_cache:
            arguments["use_cache"] = False
        embeds = arguments.get("inputs_embeds")
        if h is not None and isinstance(embeds, Tensor) and embeds.shape[-1] != self.widths[0]:
            arguments["inputs_embeds"] = embeds.new_zeros(*embeds.shape[:-1], self.widths[0])
        output = self.anchor(**arguments, **({} if ends else {**inputs.labels, "return_dict": True}))
        return cast("ModelOutput", output)

    def divides_loss(self, inputs: TextInputs) -> bool:
        """Whether the model's loss is divided by `num_items_in_batch`; tried once for each kind of labels.

        Args:
            inputs: one row with labels.
        """
        problem = getattr(self.anchor.config, "problem_type", None)
        kind = problem, *((name, labels.dtype, labels.ndim) for name, labels in inputs.labels.items())
        tried: dict[object, bool] = self.__dict__.setdefault("_divides_loss", {})
        if kind not in tried:
            labels = {name: torch.zeros_like(value) for name, value in inputs.labels.items()}
            losses = []
            with torch.no_grad(), evaluating(self.anchor):
                for count in (1, 2):
                    arguments = {**inputs.arguments, "num_items_in_batch": count}
                    losses.append(self.call(replace(inputs, arguments=arguments, labels=labels), None)["loss"])
            tried[kind] = bool(losses[0] != losses[1])
        return tried[kind]

    def block_name(self, index: int) -> str:
        return f"{self.spec.layers_path}.{index}"

    def form_at(self, boundary: int) -> tuple[str, int]:
        return self.spec.layouts[boundary], 0

    def rows_at(self, h: Tensor, prefixes: int, inputs: TextInputs, boundary: int) -> Tensor:
        if self.spec.layouts[boundary] == "NCHW":
            return h.flatten(2).transpose(1, 2).flatten(0, 1)
        real = inputs.real
        if real is None and not inputs.shifts_labels:
            return h.flatten(0, -2)
        if real is None:
            real = h.new_ones(h.shape[-3:-1]).bool()
        if inputs.shifts_labels:  # a decoder's first position is unlike all others: its norm is a hundred times theirs
            real = real & (real.cumsum(-1) > 1)
        return h[real] if h.ndim == 3 else h[:, real].flatten(0, 1)

    def subset(
        self, stem: bool, blocks: Iterable[int], norm: bool, head: bool, prefix: bool = False
    ) -> TransformersView:
        spec, kept = self.spec, set(blocks)
        after = set(spec.after)
        # 1. Leave out the parameters of the head, and the embeddings that a back does not need.
        dropped = set() if head else after - set(spec.before)
        embeddings = () if stem or not kept else spec.droppable_embeddings
        dropped |= {f"{name}.weight" for name in embeddings} - after
        twin = copy.copy(self)
        twin.is_partial, twin.has_head = True, head
        twin.anchor = _without(self.anchor, dropped)
        for name in embeddings:
            replace_module(twin.anchor, name, make_zero_embedding(child(self.anchor, name)))
        # 2. Put placeholders where layers are left out.
        layers = {str(i): layer if i in kept else None for i, layer in enumerate(self.layers._modules.values())}
        placeholders = {i: make_placeholder(self.layers.layer(i)) for i in range(self.depth) if i not in kept}
        replace_module(twin.anchor, spec.layers_path, LayerList(layers, spec.output_arity, placeholders))
        return twin

    def has_block(self, index: int) -> bool:
        return find_submodule(self.anchor, self.block_name(index)) is not None


def _without(model: M, dropped: set[str]) -> M:
    """Copy a model with its modules, but not its tensors, and leave out the parameters of some names."""
    twin = cast("M", partial_copy(model, set()))
    twin._parameters = {k: None if k in dropped else v for k, v in model._parameters.items()}
    twin._buffers = dict(model._buffers)
    for name, module in model._modules.items():
        inside = {k[len(name) + 1 :] for k in dropped if k.startswith(name + ".")}
        twin._modules[name] = None if module is None else _without(module, inside)
    return twin


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether a model's forward takes an argument, or passes it on to one that does."""
    own = inspect.signature(model.forward).parameters
    if name in own:
        return True
    inside = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    passes_on = any(p.kind is p.VAR_KEYWORD for p in own.values())
    return bool(passes_on and isinstance(inside, nn.Module) and name in inspect.signature(inside.forward).parameters)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of a dotted name."""
    owner, _, leaf = name.rpartition(".")
    child(model, owner)._modules[leaf] = module


def make_placeholder(module: nn.Module) -> nn.Module:
    """Make a module with the same attributes and no tensors."""
    twin = partial_copy(module, set())
    drop_hooks(twin)
    twin._parameters, twin._buffers = dict.fromkeys(module._parameters), dict.fromkeys(module._buffers)
    twin._modules = {name: None if m is None else make_placeholder(m) for name, m in module._modules.items()}
    return twin


def make_zero_embedding(embedding: nn.Module) -> nn.Module:
    """Make an embedding that gives zeros and holds no table."""
    cls, weight = type(embedding), cast("Tensor", embedding.weight)
    twin = partial_copy(embedding, set())
    drop_hooks(twin)
    twin.__class__ = type(cls.__name__, (cls,), {"weight": property(_zeros)})
    twin._parameters, twin._buffers, twin._modules = {}, dict(embedding._buffers), dict(embedding._modules)
    twin.register_buffer("zero", weight.new_zeros(()), persistent=False)
    # transformers does not initialise it again.
    twin.__dict__.update(table_shape=tuple(weight.shape), _is_hf_initialized=True)
    return twin


def _zeros(embedding: nn.Module) -> Tensor:
    return cast("Tensor", embedding.zero).new_zeros(()).expand(embedding.__dict__["table_shape"])
