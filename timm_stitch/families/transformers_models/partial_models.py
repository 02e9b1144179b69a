"""A model of transformers of which parts are left out: copied without its tensors, with stand-ins for the parts.

An extracted network shares its tensors, and all modules that stay as they are, with the whole network. Only the modules
around what is left out are copied, with their hooks.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import TypeVar, cast

from torch import Tensor, nn

from ...anchors.modules import child, drop_hooks, hooks_of, partial_copy

M = TypeVar("M", bound=nn.Module)

_ZERO_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


class Omitted(nn.Module):
    """A module behind the layers, in the place of one that no stitch of an extracted network needs."""

    def forward(self, h: Tensor, *_: object, **__: object) -> Tensor:
        return h


def without(model: M, dropped: set[str], replaced: set[str], path: str) -> M:
    """Copy a model without the parameters of some names; modules that stay as they are stay the same objects.

    Args:
        model: the model.
        dropped: the names of parameters to leave out.
        replaced: the names of modules that will be replaced in the copy.
        path: the model's name, for errors.
    """
    twin = _clone(model, path)
    twin._parameters = {k: None if k in dropped else v for k, v in model._parameters.items()}
    twin._buffers = dict(model._buffers)
    for name, module in model._modules.items():
        inside, other = ({k[len(name) + 1 :] for k in own if k.startswith(name + ".")} for own in (dropped, replaced))
        if module is not None and name not in replaced and (inside or other):
            twin._modules[name] = without(module, inside, other, f"{path}.{name}")
    return twin


def _clone(module: M, path: str) -> M:
    """Copy a module with its hooks and the methods that it has of its own, and with the same submodules.

    Raises:
        ValueError: if a method was replaced by a function that may belong to the module itself.
    """
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__, _modules=dict(module._modules))
    twin.__dict__.update({name: copy.copy(hooks) for name, hooks in hooks_of(module).items()})
    if "_hf_hook" in twin.__dict__:  # Accelerate's wrapped forward is bound to the module itself
        twin.__dict__.pop("forward", None)
    twin.__dict__.pop("_compiled_call_impl", None)
    for name, value in list(twin.__dict__.items()):
        if not callable(value) or not callable(getattr(type(module), name, None)) or isinstance(value, nn.Module):
            continue
        if not isinstance(value, MethodType) or value.__self__ is not module:
            raise ValueError(
                f"{path}.{name} was replaced by {getattr(value, '__name__', type(value).__name__)!s:.80}, which a "
                "copy of the module for one stitch cannot take over: replace it in a subclass, or after extract()."
            )
        twin.__dict__[name] = MethodType(value.__func__, twin)
    return twin


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
    twin.__class__ = _zero_class(cls)
    twin._parameters, twin._buffers, twin._modules = {}, dict(embedding._buffers), dict(embedding._modules)
    twin.register_buffer("zero", weight.new_zeros(()), persistent=False)
    # transformers does not initialise it again.
    twin.__dict__.update(table_shape=tuple(weight.shape), _is_hf_initialized=True)
    return twin


def _zero_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Make the class of embeddings that give zeros, from one of embeddings; what is pickled names the latter."""

    def reduce(embedding: nn.Module, _: object) -> tuple[object, ...]:
        return _new_zero_embedding, (cls,), embedding.__dict__

    if cls not in _ZERO_CLASSES:
        _ZERO_CLASSES[cls] = type(cls.__name__, (cls,), {"weight": property(_zeros), "__reduce_ex__": reduce})
    return _ZERO_CLASSES[cls]


def _new_zero_embedding(cls: type[nn.Module]) -> nn.Module:
    return object.__new__(_zero_class(cls))


def _zeros(embedding: nn.Module) -> Tensor:
    return cast("Tensor", embedding.zero).new_zeros(()).expand(embedding.__dict__["table_shape"])
