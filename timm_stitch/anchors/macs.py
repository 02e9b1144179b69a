"""Counts multiply-adds while operations run, by PyTorch's own registry of what each costs.

PyTorch's `FlopCounterMode` would also hook every module of the process to tell which one an operation belongs to, and
fails where a module gets a view of a parameter without gradients (attention pooling's queries). On the meta device an
operation takes PyTorch a millisecond, much of which is Python; one that came before with the same shapes is answered
from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Of operations on the meta device: flops, and shape, stride and dtype of each result.
_BEFORE: dict[Any, tuple[int, list[Any]]] = {}
_MOST = 20_000


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
        self._kind = tuple(self._further.items())

    @property
    def total(self) -> int:
        """Multiply-adds so far."""
        return self.flops // 2

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            key = self._kind, func, _key(args), _key(tuple(kwargs.items()))
            flops, like = _BEFORE.get(key, (0, None))
        except TypeError:  # not on the meta device, or of values that cannot be compared
            return self._run(func, args, kwargs)
        if like is not None:
            self.flops += flops
            made = [torch.empty_strided(*shape, dtype=dtype, device="meta") for *shape, dtype in like]
            return made[0] if len(func._schema.returns) == 1 else tuple(made)
        began = self.flops
        out = self._run(func, args, kwargs)
        if _makes_new_tensors(func, out, (*args, *kwargs.values())):
            some = out if isinstance(out, tuple) else (out,)
            if len(_BEFORE) >= _MOST:
                _BEFORE.clear()
            _BEFORE[key] = self.flops - began, [(x.shape, x.stride(), x.dtype) for x in some]
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
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


def _key(value: Any) -> Any:
    """What two arguments have in common that give results of one shape."""
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or not value.is_meta:
            raise TypeError
        return value.shape, value.stride(), value.dtype
    return tuple(map(_key, value)) if isinstance(value, (tuple, list)) else (type(value), value)


def _makes_new_tensors(func: Any, out: Any, inputs: Sequence[Any]) -> bool:
    """Whether an operation changes and passes on nothing that it was given."""
    schema = func._schema
    some = out if isinstance(out, tuple) else (out,)
    if schema.is_mutable or len(schema.returns) != len(some) or any(r.alias_info is not None for r in schema.returns):
        return False
    leaves = [leaf for value in inputs for leaf in (value if isinstance(value, (tuple, list)) else (value,))]
    given = {x.untyped_storage()._cdata for x in leaves if isinstance(x, Tensor)}
    return all(type(x) is Tensor and x.is_meta and x.untyped_storage()._cdata not in given for x in some)


def _elementwise(per_element: int) -> Callable[..., int]:
    def flops(x: Tensor, *args: Any, **kwargs: Any) -> int:
        return 2 * per_element * x.numel()  # PyTorch's registry counts two flops to one multiply-add

    return flops


# fvcore counts an affine layer norm as 5 multiply-adds per element and batch norm in eval mode as 2.
NORMS = {
    torch.ops.aten.native_layer_norm: _elementwise(5),
    torch.ops.aten.native_group_norm: _elementwise(5),
    torch.ops.aten.native_batch_norm: _elementwise(2),
    torch.ops.aten._native_batch_norm_legit_no_training: _elementwise(2),
    torch.ops.aten.cudnn_batch_norm: _elementwise(2),
}
