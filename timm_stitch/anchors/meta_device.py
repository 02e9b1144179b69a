"""Build a network without initialising what a file will overwrite, and without a second copy of its weights.

A network is built on the meta device, where tensors have shapes and no memory; loading then hands it the very
tensors that were read. What no file holds is made afterwards: buffers that timm computes, and classifiers
for another number of classes. Imports torch and timm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from .timm_compat import reinit_non_persistent_buffers


def buildable(modules: Iterable[nn.Module]) -> bool:
    """Whether all that no file holds can be computed after a build on the meta device."""
    return all(
        hasattr(module, "init_non_persistent_buffers")
        for model in modules
        for module in model.modules()
        if any(module._buffers[name] is not None for name in module._non_persistent_buffers_set)
    )


def without_memory(module: nn.Module) -> bool:
    """Whether any tensor of a module is on the meta device."""
    return any(tensor.is_meta for tensors in (module.parameters(), module.buffers()) for tensor in tensors)


def in_dtype_of(state_dict: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Weights in the dtypes that a network has; those that agree are passed on as they are."""

    def fit(name: str, value: Any) -> Any:
        like = own.get(name)
        if not isinstance(value, Tensor) or like is None or value.dtype == like.dtype:
            return value
        return value.to(like.dtype)

    return {name: fit(name, value) for name, value in state_dict.items()}


def finish(model: nn.Module, device: Any = None) -> nn.Module:
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
        left = [name for name, p in module._parameters.items() if p is not None and p.is_meta]
        for name in left:
            old = module._parameters[name]
            module._parameters[name] = nn.Parameter(torch.zeros_like(old, device="cpu"), old.requires_grad)
        if left and isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
        elif left and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    if computed:
        reinit_non_persistent_buffers(model)
    return model.to(device) if device is not None else model
