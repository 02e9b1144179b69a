"""Copies of networks on the meta device, where tensors have shapes and no storage, to measure on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from .modules import hooks_of

Module = TypeVar("Module", bound=nn.Module)


def meta_copy(model: Module, buffers: bool = True) -> Module:
    """Copy a model to the meta device, without hooks, checkpointing and compilation.

    Args:
        model: the model, on any device; not changed.
        buffers: whether buffers and other tensors lose their memory too; else they are copied with their values.
    """
    memo: dict[int, object] = {}  # by the id of an original: its copy
    for module in model.modules():
        memo |= {id(hooks): type(hooks)() for hooks in hooks_of(module).values()}  # a user's hooks see no meta tensors
        for parameter in module._parameters.values():
            if parameter is not None:
                memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for tensor in _other_tensors(module):
            if buffers:
                memo.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
            elif not tensor.is_leaf:  # which deepcopy refuses
                memo[id(tensor)] = tensor.detach().clone()
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        module._compiled_call_impl = None
        if getattr(module, "grad_checkpointing", False):
            module.__dict__["grad_checkpointing"] = False
    return twin


def _other_tensors(module: nn.Module) -> list[Tensor]:
    """List the buffers of a module, and the tensors in its other attributes, such as caches."""
    tensors: list[object] = list(module._buffers.values())
    for name, value in module.__dict__.items():
        if isinstance(value, Mapping):
            tensors += () if name in ("_parameters", "_buffers", "_modules") else value.values()
        else:
            tensors += value if isinstance(value, (list, tuple)) else (value,)
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


def is_on_meta(module: nn.Module) -> bool:
    """Whether any tensor of a module is on the meta device."""
    return any(tensor.is_meta for tensors in (module.parameters(), module.buffers()) for tensor in tensors)


def cast_like(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast weights to the dtypes that a network has; tensors that agree are not copied."""

    def cast(name: str, value: Tensor) -> Tensor:
        like = own.get(name)
        return value.to(like.dtype) if isinstance(value, Tensor) and isinstance(like, Tensor) else value

    return {name: cast(name, value) for name, value in state_dict.items()}
