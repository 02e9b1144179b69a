"""The view of a model of transformers: its own forward, over a row that leaves layers out.

A front is the model's own forward up to a layer; a back is the model's own whole forward with an activation put in
before a layer. So masks, rotary embeddings, inputs for each layer, caches, losses and outputs all come from the model's
own code. How such a model is opened is in `transformers_opening`. Nothing here imports transformers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn

from ...anchors.modules import child, find_submodule, partial_copy
from ...anchors.view import View
from .inputs import TextInputs
from .layer_list import LayerRow, PartialForward, running

_FOR_OUTPUTS = ("output_hidden_states", "output_attentions", "logits_to_keep", "return_dict")


@dataclass(frozen=True)
class Opening:
    """What is known of how a model of transformers is opened; plain values, kept in a saved network's configuration.

    Args:
        row: the name of its list of layers.
        forms: of each layer what it returns, as of `LayerRow`.
        widths, reductions: at each boundary, as in `plan.Anchor`.
        layouts: at each boundary, `"NCHW"` for maps, else `"NLC"`: channels last, whatever comes before.
        positions: that cross each boundary, for the batch that it was opened with.
        before, after: the parameters that it uses before its first layer, and behind its last.
        tables: the embeddings that a stitch which enters it at a later layer does without.
    """

    row: str
    forms: tuple[int, ...]
    widths: tuple[int, ...]
    reductions: tuple[int, ...]
    layouts: tuple[str, ...]
    positions: tuple[int, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    tables: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Opening:
        """Read what `to_dict` wrote."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in data.items()}
        return cls(**values)


class TransformersView(View):
    """A model of transformers by its row of layers.

    Args:
        anchor: the model; the list of its layers becomes a `LayerRow`, which idle behaves as the list.
        opening: how it is opened.

    Attributes:
        number: of the anchor in its network, by which it finds its cache.
    """

    number: int = 0

    def __init__(self, anchor: nn.Module, opening: Opening) -> None:
        self.anchor, self.opening = anchor, opening
        self.depth = len(opening.forms)
        self.widths, self.reductions = opening.widths, opening.reductions
        self.takes_cache = takes(anchor, "use_cache")
        put_row(anchor, opening)

    @property
    def row_of_layers(self) -> LayerRow:
        """The layers."""
        return cast("LayerRow", child(self.anchor, self.opening.row))

    @cached_property
    def most_positions(self) -> int | None:
        """How many tokens the model takes at most, where it says so."""
        config = self.anchor.config
        try:
            most = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
        except NotImplementedError:  # XLNet's way to say that it has no limit
            return None
        if not isinstance(most, int) or most <= 0:
            return None
        tables = [m for name, m in self.anchor.named_modules() if name.endswith("position_embeddings")]
        first = [pad + 1 for m in tables if (pad := getattr(m, "padding_idx", None)) is not None]  # as RoBERTa counts
        return most - max(first, default=0)

    def run_to_boundaries(
        self, h: Tensor | None, start: int, wanted: Collection[int], inputs: Any
    ) -> dict[int, Tensor]:
        if not wanted:
            return {}
        with running(PartialForward(self.row_of_layers, start, max(wanted), h, wanted)) as partial:
            self.call(inputs, h, start, ends=True)
        return partial.activations

    def run_to_output(self, h: Tensor | None, start: int, inputs: Any, normed: bool = True) -> Any:
        if h is None:
            return self.call(inputs, None, 0)
        with running(PartialForward(self.row_of_layers, start, None, h)):
            return self.call(inputs, h, start)

    def call(self, inputs: TextInputs, h: Tensor | None, start: int = 0, ends: bool = False) -> Any:
        """The model's own forward, whose cache is that of a segment from layer `start` on.

        Args:
            inputs: the inputs of the call.
            h: the activation that a row puts in.
            start: the first layer that runs.
            ends: whether nothing behind the layers is needed.
        """
        given = {k: v for k, v in inputs.given.items() if not (ends and k in _FOR_OUTPUTS)}
        if (self.number, start) in inputs.caches:
            given |= inputs.caches[self.number, start]
        elif self.takes_cache:
            given["use_cache"] = False
        embeds = given.get("inputs_embeds")
        if h is not None and isinstance(embeds, Tensor) and embeds.shape[-1] != self.widths[0]:
            given["inputs_embeds"] = embeds.new_zeros(*embeds.shape[:-1], self.widths[0])
        return self.anchor(**given, **({} if ends else {**inputs.labels, "return_dict": True}))

    def run(self, h: Tensor, start: int, stop: int, inputs: Any) -> Tensor:
        return self.run_to_boundaries(h, start, (stop,), inputs)[stop] if stop > start else h

    def block_name(self, index: int) -> str:
        return f"{self.opening.row}.{index}"

    def form_at(self, boundary: int) -> tuple[str, int]:
        return self.opening.layouts[boundary], 0

    def rows_at(self, h: Tensor, prefixes: int, inputs: Any, boundary: int) -> Tensor:
        if self.opening.layouts[boundary] == "NCHW":
            return h.flatten(2).transpose(1, 2).flatten(0, 1)
        real = inputs.real
        if real is None and not inputs.shifts_labels:
            return h.flatten(0, -2)
        if real is None:
            real = h.new_ones(h.shape[-3:-1]).bool()
        if inputs.shifts_labels:  # a decoder's first position is unlike all others: its norm is a hundred times theirs
            real = real & (real.cumsum(-1) > 1)
        return h[real] if h.ndim == 3 else h[:, real].flatten(0, 1)

    def subset(self, stem: bool, blocks: Iterable[int], norm: bool, head: bool, prefix: bool = False) -> View:
        opening, kept = self.opening, set(blocks)
        behind = set(opening.after)
        unused = set() if head else behind - set(opening.before)
        tables = () if stem or not kept else opening.tables
        drop = unused | ({f"{table}.weight" for table in tables} - behind)
        twin: Any = copy.copy(self)
        twin.is_partial, twin.has_head = True, head
        twin.anchor = _without(self.anchor, drop)
        for table in tables:
            put_module(twin.anchor, table, without_table(child(self.anchor, table)))
        modules = {str(i): layer if i in kept else None for i, layer in enumerate(self.row_of_layers._modules.values())}
        placeholders = {i: look_alike(self.row_of_layers.layer(i)) for i in range(self.depth) if i not in kept}
        put_module(twin.anchor, opening.row, LayerRow(modules, opening.forms, placeholders))
        return twin  # type: ignore[no-any-return]

    def has_block(self, index: int) -> bool:
        return find_submodule(self.anchor, self.block_name(index)) is not None


def _without(model: nn.Module, drop: set[str]) -> nn.Module:
    """A copy of a model with shells of its own and the same tensors, but for some, which are left out."""
    twin: Any = partial_copy(model, set())
    twin._parameters = {k: None if k in drop else v for k, v in model._parameters.items()}
    twin._buffers = dict(model._buffers)
    for name, module in model._modules.items():
        inside = {k[len(name) + 1 :] for k in drop if k.startswith(name + ".")}
        twin._modules[name] = None if module is None else _without(module, inside)
    return twin  # type: ignore[no-any-return]


def takes(model: Any, name: str) -> bool:
    """Whether a model's forward takes an argument, or passes it on to one that does."""
    own = inspect.signature(model.forward).parameters
    if name in own:
        return True
    inside = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    passes_on = any(p.kind is p.VAR_KEYWORD for p in own.values())
    return bool(passes_on and isinstance(inside, nn.Module) and name in inspect.signature(inside.forward).parameters)


def put_row(model: nn.Module, opening: Opening) -> None:
    """Put a row in the place of a model's list of layers; a row that is there stays."""
    layers = child(model, opening.row)
    if not isinstance(layers, LayerRow):
        row = LayerRow(dict(layers._modules), opening.forms)
        put_module(model, opening.row, row.train(layers.training))


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, by its name."""
    owner, _, leaf = name.rpartition(".")
    child(model, owner)._modules[leaf] = module


def look_alike(module: nn.Module) -> nn.Module:
    """A module with the same attributes, without its tensors."""
    twin = partial_copy(module, set())
    twin._parameters, twin._buffers = dict.fromkeys(module._parameters), dict.fromkeys(module._buffers)
    twin._modules = {name: None if below is None else look_alike(below) for name, below in module._modules.items()}
    return twin


def without_table(embedding: Any) -> nn.Module:
    """An embedding that gives zeros and holds no table."""
    kind = type(embedding)
    twin: Any = partial_copy(embedding, set())
    twin.__class__ = type(kind.__name__, (kind,), {"weight": property(_zeros)})
    twin._parameters, twin._buffers, twin._modules = {}, dict(embedding._buffers), dict(embedding._modules)
    like = embedding.weight
    twin.register_buffer("zero", like.new_zeros(()), persistent=False)
    twin.__dict__.update(table_shape=tuple(like.shape), _is_hf_initialized=True)  # transformers is to leave it alone
    return twin  # type: ignore[no-any-return]


def _zeros(embedding: Any) -> Tensor:
    found: Tensor = embedding.zero.new_zeros(()).expand(embedding.table_shape)
    return found
