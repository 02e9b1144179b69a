"""Networks without memory: copies for measuring, and builds that a file's own tensors fill.

On the meta device tensors have shapes and no memory. A copy there is measured and recorded without arithmetic. A
network built there is not initialised; loading hands it the very tensors that were read, and what no file holds is
made afterwards: buffers that timm computes, and classifiers for another number of classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from .modules import hooks_of
from .timm_compat import reinit_non_persistent_buffers

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


def can_build_on_meta(modules: Iterable[nn.Module]) -> bool:
    """Whether all that no file holds can be computed after a build on the meta device."""
    return all(
        hasattr(module, "init_non_persistent_buffers")
        for model in modules
        for module in model.modules()
        if any(module._buffers[name] is not None for name in module._non_persistent_buffers_set)
    )


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


def materialize(model: Module, device: Any = None) -> Module:
    """Give memory and values to what is still on the meta device after loading.

    Buffers that timm computes are computed; a linear layer (a classifier for other classes) begins as timm's
    vision transformers begin theirs: truncated normal with deviation 0.02, and zero.

    Args:
        model: loaded, as far as the file went.
        device: where everything goes; default where it is.
    """
    computed = False
    for module in list(model.modules()):
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
                computed = True
        left = {name: p for name, p in module._parameters.items() if p is not None and p.is_meta}
        for name, old in left.items():
            module._parameters[name] = nn.Parameter(torch.zeros_like(old, device="cpu"), old.requires_grad)
        if left and isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
        elif left and callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    if computed:
        reinit_non_persistent_buffers(model)
    return model.to(device) if device is not None else model
