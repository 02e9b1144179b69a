"""Counts multiply-adds while operations run, by PyTorch's own registry of what each costs.

PyTorch's `FlopCounterMode` would also hook every module of the process to tell which one an operation belongs to, and
fails where a module gets a view of a parameter without gradients (attention pooling's queries). Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Macs(TorchDispatchMode):
    """Counts multiply-adds of matrix products and convolutions, and of what is named besides.

    Args:
        further: of further operations what each costs, in flops, of which two are one multiply-add.

    Attributes:
        flops: so far.
    """

    def __init__(self, further: Mapping[Any, Callable[..., int]] | None = None) -> None:
        super().__init__()
        self.flops, self._further = 0, further or {}

    @property
    def total(self) -> int:
        """Multiply-adds so far."""
        return self.flops // 2

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = self._further.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if count is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out
