"""Networks built on the meta device, which the tensors of a file fill.

A network built there is not initialised. Loading gives it the very tensors that were read. The rest is made
afterwards: buffers that timm computes, and classifiers for another number of classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.layers import trunc_normal_
from torch import nn

from ...anchors.meta_device import Module
from .timm_compat import reinit_non_persistent_buffers


def can_build_on_meta(modules: Iterable[nn.Module]) -> bool:
    """Whether all that no file holds can be computed after a build on the meta device."""
    return all(
        hasattr(module, "init_non_persistent_buffers")
        for model in modules
        for module in model.modules()
        if any(module._buffers[name] is not None for name in module._non_persistent_buffers_set)
    )


def materialize(model: Module, device: torch.device | str | None = None) -> Module:
    """Give memory and values to what is still on the meta device after loading.

    Buffers that timm computes are computed; a linear layer (a classifier for other classes) begins as timm's
    vision transformers begin theirs: truncated normal with deviation 0.02, and zero.

    Args:
        model: the model, with what the file held.
        device: the device to move everything to; default none.
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
