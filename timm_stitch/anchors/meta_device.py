"""Networks without memory: copies on the meta device for measuring, where tensors have shapes and no storage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .modules import hooks_of

Module = TypeVar("Module", bound=nn.Module)


def meta_copy(model: Module, buffers: bool = True) -> Module:
    """A copy on the meta device, without hooks, checkpointing and compilation; the original is not touched.

    Args:
        model: on any device.
        buffers: whether those are copied without memory too; else they are copied as they are.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        memo |= {id(hooks): type(hooks)() for hooks in hooks_of(module).values()}  # a user's see no meta tensors
        for parameter in module._parameters.values():
            if parameter is not None:
                memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        loose = [t for v in module.__dict__.values() for t in (v if isinstance(v, (list, tuple)) else (v,))]
        for tensor in (*module._buffers.values(), *loose) if buffers else ():
            if isinstance(tensor, Tensor):
                memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        module._compiled_call_impl = None
        if getattr(module, "grad_checkpointing", False):
            module.__dict__["grad_checkpointing"] = False
    return twin


def is_on_meta(module: nn.Module) -> bool:
    """Whether any tensor of a module is on the meta device."""
    return any(tensor.is_meta for tensors in (module.parameters(), module.buffers()) for tensor in tensors)


def cast_like(state_dict: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Weights in the dtypes that a network has; those that agree are passed on as they are."""

    def fit(name: str, value: Any) -> Any:
        like = own.get(name)
        if not isinstance(value, Tensor) or like is None or value.dtype == like.dtype:
            return value
        return value.to(like.dtype)

    return {name: fit(name, value) for name, value in state_dict.items()}
