"""The view of a model of transformers: its own forward, over a list of layers that can skip some.

A front is the model's own forward up to a layer. A back is the model's own whole forward, with an activation inserted
before a layer. So masks, rotary embeddings, inputs for each layer, caches, losses and outputs all come from the model's
own code. `opening` shows how such a model is opened. Nothing here imports transformers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ...anchors.modules import (
    OUTPUT_HOOKS,
    call_with_hooks,
    child,
    find_submodule,
    is_of_sharding,
    unhooked_forward,
)
from ...anchors.view import View
from ...network.modes import evaluating
from .inputs import Arguments, TextInputs
from .layer_list import LayerList, PartialForward, StopForward, running
from .partial_models import Omitted, make_placeholder, make_zero_embedding, replace_module, without
from .surroundings import Surroundings

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

_OFFSET = 8  # entries that a table of positions may have more than there are positions
_FOR_OUTPUTS = ("output_hidden_states", "output_attentions", "logits_to_keep", "return_dict")
_CACHES = ("cache", "past_key_values", "cache_params")
_SAVED_AS = {"layers_path": "row", "output_arity": "forms", "droppable_embeddings": "tables"}


@dataclass(frozen=True)
class AnchorSpec:
    """How a model of transformers is opened as an anchor; plain values, kept in a saved network's configuration.

    Args:
        layers_path: the name of its list of layers.
        output_arity: the length of the tuple that each layer returns; 0 if it returns a tensor.
        widths, reductions: the values of `plan.Anchor` at each boundary.
        layouts: the layout at each boundary: `"NCHW"` for maps, `"SNLC"` for several streams of each text (Gemma3n),
            else `"NLC"` (channels last).
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
        self.takes_cache, self.takes_mems = takes(anchor, "use_cache"), takes(anchor, "use_mems")
        self.keeps_own_states = self.takes_cache and not any(takes(anchor, name) for name in _CACHES)  # as RWKV
        layers = child(anchor, spec.layers_path)
        if not isinstance(layers, LayerList):
            layer_list = LayerList({k: m for k, m in layers._modules.items() if m is not None}, spec.output_arity)
            replace_module(anchor, spec.layers_path, layer_list.train(layers.training))
        self.surroundings = Surroundings(anchor, spec.layers_path)

    @property
    def layers(self) -> LayerList:
        """The layers.

        Raises:
            ValueError: if their list is not the one that was stitched.
        """
        layers, path = child(self.anchor, self.spec.layers_path), self.spec.layers_path
        if not isinstance(layers, LayerList) or layers.depth != self.depth:
            raise ValueError(
                f"{type(self.anchor).__name__}.{path} was a list of {self.depth} layers when stitched and is now a "
                f"{type(layers).__name__} of {len(cast('nn.ModuleList', layers))}: stitch again with it, or replace "
                "single layers."
            )
        return layers

    def check_hooks(self) -> None:
        """Refuse hooks that would not run where the model's forward ends with some of its layers.

        Those of sharding on the anchor itself run, with the activations for its output.

        Raises:
            ValueError: naming a module around the layers that has such hooks.
        """
        module: nn.Module | None = self.anchor
        own = self.anchor.__dict__
        if any(own[name] for name in OUTPUT_HOOKS):
            hooks = [hook for name in OUTPUT_HOOKS for hook in own[name].values()]
            if not all(map(is_of_sharding, hooks)):
                raise self._hooks_error("")
        atoms = self.spec.layers_path.split(".")
        for depth, atom in enumerate(atoms[:-1], 1):
            module = None if module is None else module._modules.get(atom)
            if module is not None and (module._forward_hooks or module._backward_hooks or module._backward_pre_hooks):
                raise self._hooks_error("." + ".".join(atoms[:depth]))

    def _hooks_error(self, path: str) -> ValueError:
        return ValueError(
            f"anchors.{self.number}{path} has hooks on its output, which it does not reach in a stitch that goes on in "
            "another anchor: put them on layers, or run the anchor's own stitch."
        )

    @cached_property
    def max_positions(self) -> int | None:
        """The largest number of tokens that the model takes; None where it has no table of positions."""
        return self.pretrained_positions if self._has_position_table else None

    @property
    def _has_position_table(self) -> bool:
        """Whether something in the model has one entry a position; others compute positions of texts of any length."""
        limit = self._read_positions()
        if limit is None:
            return False
        sizes = [m.num_embeddings for m in self.anchor.modules() if isinstance(m, nn.Embedding)]
        sizes += [size for buffer in self.anchor.buffers() if buffer.ndim > 1 for size in buffer.shape]
        sizes += [size for name, p in self.anchor.named_parameters() if "position" in name for size in p.shape]
        return any(limit <= size <= limit + _OFFSET or size == 2 * limit - 1 for size in sizes)

    def _read_positions(self) -> int | None:
        """Read the number of positions in the configuration, if it has one."""
        config = self.anchor.config
        try:
            limit = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
        except NotImplementedError:  # XLNet's way to say that it has no limit
            return None
        return limit if isinstance(limit, int) and limit > 0 else None

    @cached_property
    def pretrained_positions(self) -> int | None:
        """The number of tokens that the model was made for, where its configuration has one."""
        limit = self._read_positions()
        if limit is None:
            return None
        tables = [m for name, m in self.anchor.named_modules() if name.endswith("position_embeddings")]
        first = [pad + 1 for m in tables if isinstance(pad := getattr(m, "padding_idx", None), int)]  # as in RoBERTa
        return limit - max(first, default=0)

    def run_to_boundaries(
        self, h: Tensor | None, start: int, wanted: Collection[int], inputs: TextInputs
    ) -> dict[int, Tensor]:
        if not wanted:
            return {}
        partial = self._partial_forward(h, start, max(wanted), wanted)
        partial.exits = not torch.compiler.is_compiling()
        with running(partial):
            self.call(inputs, h, start, partial)
        if not partial.activations.keys() >= set(wanted):
            raise ValueError(partial.refusal)
        return {boundary: self._rows_first(h, boundary) for boundary, h in partial.activations.items()}

    def run_to_output(self, h: Tensor | None, start: int, inputs: TextInputs, normed: bool = True) -> ModelOutput:
        if h is None:
            return self.call(inputs, None, 0)
        with running(self._partial_forward(h, start)) as partial:
            output = self.call(inputs, h, start)
        if not partial.entered:
            raise ValueError(partial.refusal)
        return output

    def _partial_forward(
        self, h: Tensor | None, start: int, stop: int | None = None, wanted: Collection[int] = ()
    ) -> PartialForward:
        """Make a partial forward that begins with an activation at a boundary."""
        partial = PartialForward(self.layers, start, stop, self.in_own_layout(h, start), wanted)
        partial.refusal = (
            f"{type(self.anchor).__name__} does not run the layers of {self.spec.layers_path} in their order, as it "
            "did when it was stitched: stitch again."
        )
        return partial

    def _rows_first(self, h: Tensor, boundary: int) -> Tensor:
        """Put the rows of an activation first, where the model has its streams first."""
        return h.transpose(0, 1) if self.spec.layouts[boundary] == "SNLC" else h

    def in_own_layout(self, h: Tensor | None, boundary: int) -> Tensor | None:
        """Bring an activation into the model's own layout."""
        return None if h is None else self._rows_first(h, boundary)

    def call(
        self, inputs: TextInputs, h: Tensor | None, start: int = 0, ending: PartialForward | None = None
    ) -> ModelOutput:
        """Call the model's own forward, with the cache of a segment from layer `start` on.

        Args:
            inputs: the inputs of the call.
            h: the activation that the list of layers inserts.
            start: the first layer that runs.
            ending: the partial forward where nothing behind its layers is needed.
        """
        ends = ending is not None
        arguments = {k: v for k, v in inputs.arguments.items() if not (ends and k in _FOR_OUTPUTS)}
        if (self.number, start) in inputs.caches:
            arguments |= inputs.caches[self.number, start]
        elif self.takes_cache:
            arguments["use_cache"] = False
        if self.takes_mems and (ends or h is not None):  # they belong to all layers of one model
            arguments["use_mems"] = False
        embeds = arguments.get("inputs_embeds")
        if h is not None and isinstance(embeds, Tensor):
            arguments["inputs_embeds"] = embeds.new_zeros(*embeds.shape[:-1], self.embedding_width)
        if ending is None:
            arguments |= {**inputs.labels, "return_dict": True}
        elif self._is_sharded():
            return cast("ModelOutput", self._run_sharded(ending, arguments))
        return cast("ModelOutput", self.anchor(**arguments))

    def _is_sharded(self) -> bool:
        """Whether the anchor has hooks on its output, which are those of sharding where a part of it runs."""
        own = self.anchor.__dict__
        return "_hf_hook" in own or any(own[name] for name in OUTPUT_HOOKS)

    def _run_sharded(self, ending: PartialForward, arguments: Arguments) -> dict[int, Tensor]:
        """Run layers within the hooks of sharding, which get the activations as the output."""

        def forward(*args: object, **kwargs: object) -> dict[int, Tensor]:
            with suppress(StopForward):
                unhooked_forward(self.anchor)(*args, **kwargs)
            return ending.activations

        ending.activations = call_with_hooks(self.anchor, forward, **arguments)
        return ending.activations

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

    @property
    def embedding_width(self) -> int:
        """The channels of the embeddings that the model takes in the place of tokens."""
        width = getattr(self.anchor.get_input_embeddings(), "embedding_dim", None)
        return width if isinstance(width, int) else self.widths[0]

    def block_name(self, index: int) -> str:
        return f"{self.spec.layers_path}.{index}"

    def form_at(self, boundary: int) -> tuple[str, int]:
        return self.spec.layouts[boundary], 0

    def rows_at(self, h: Tensor, prefixes: int, inputs: TextInputs, boundary: int) -> Tensor:
        if self.spec.layouts[boundary] == "NCHW":
            return h.flatten(2).transpose(1, 2).flatten(0, 1)
        if self.spec.layouts[boundary] == "SNLC":
            h = h.transpose(0, 1)
        real = inputs.real
        if real is None and not inputs.shifts_labels:
            return h.flatten(0, -2)
        if real is None:
            real = h.new_ones(h.shape[-3:-1]).bool()
        elif real.shape[-1] < h.shape[-2]:  # padded inside the model, as Longformer does to a multiple of its window
            real = nn.functional.pad(real, (0, h.shape[-2] - real.shape[-1]))
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
        twin.anchor = without(self.anchor, dropped, {*embeddings, spec.layers_path}, type(self.anchor).__name__)
        for name in {name.rpartition(".")[0] for name in dropped} - {"", *embeddings}:
            module = find_submodule(twin.anchor, name)
            if module is not None and not module._modules and not any(True for _ in module.parameters()):
                replace_module(twin.anchor, name, Omitted())
        for name in embeddings:
            replace_module(twin.anchor, name, make_zero_embedding(child(self.anchor, name)))
        # 2. Put placeholders where layers are left out.
        layers = {
            name: layer for name, layer in self.layers._modules.items() if layer is not None and int(name) in kept
        }
        placeholders = {i: make_placeholder(self.layers.layer(i)) for i in range(self.depth) if str(i) not in layers}
        replace_module(twin.anchor, spec.layers_path, LayerList(layers, spec.output_arity, placeholders))
        return twin

    def has_block(self, index: int) -> bool:
        return find_submodule(self.anchor, self.block_name(index)) is not None


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether a model's forward takes an argument, or passes it on to one that does."""
    if name in inspect.signature(model.forward).parameters:
        return True
    inside = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    if not isinstance(inside, nn.Module) or not takes_further_arguments(model):
        return False
    return name in inspect.signature(inside.forward).parameters


def takes_further_arguments(model: PreTrainedModel) -> bool:
    """Whether a model's forward takes arguments that it does not name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())
