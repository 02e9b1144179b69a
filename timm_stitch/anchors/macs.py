"""Counts multiply-adds while operations run, by PyTorch's own registry of their costs.

PyTorch's `FlopCounterMode` would also hook every module of the process, and fails where a module gets a view of a
parameter without gradients (attention pooling's queries). An operation on the meta device takes a millisecond, mostly
in Python, so results are cached by the shapes of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Args = tuple[object, ...]  # the arguments of an operation
Kwargs = Mapping[str, object] | None
FlopCounts = Mapping[Any, Callable[..., int]]  # by operation

# Operations on the meta device by their inputs: flops, and shape, stride and dtype of each result.
_CACHE: dict[object, tuple[int, list[tuple[torch.Size, tuple[int, ...], torch.dtype]]]] = {}
_MOST_CACHED = 20_000


class Macs(TorchDispatchMode):
    """Counts the multiply-adds of matrix products, convolutions and further operations.

    Args:
        further: functions that count the flops of further operations; two flops are one multiply-add.

    Attributes:
        flops: the flops so far.
    """

    def __init__(self, further: FlopCounts | None = None) -> None:
        super().__init__()
        self.flops, self._further = 0, further or {}
        self._kind = tuple(self._further.items())

    @property
    def total(self) -> int:
        """The multiply-adds so far."""
        return self.flops // 2

    def __torch_dispatch__(self, func: OpOverload, types: object, args: Args = (), kwargs: Kwargs = None) -> object:
        kwargs = kwargs or {}
        try:
            key = self._kind, func, _key(args), _key(tuple(kwargs.items()))
            flops, like = _CACHE.get(key, (0, None))
        except TypeError:  # not on the meta device, or with values that cannot be compared
            return self._run(func, args, kwargs)
        if like is not None:
            self.flops += flops
            results = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in like]
            return results[0] if len(func._schema.returns) == 1 else tuple(results)
        began = self.flops
        out = self._run(func, args, kwargs)
        tensors = _new_tensors(func, out, (*args, *kwargs.values()))
        if tensors:
            if len(_CACHE) >= _MOST_CACHED:
                _CACHE.clear()
            _CACHE[key] = self.flops - began, [(x.shape, x.stride(), x.dtype) for x in tensors]
        return out

    def _run(self, func: OpOverload, args: Args, kwargs: Mapping[str, object]) -> object:
        count = self._further.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if count is None and func is not torch.ops.prim.device.default:
            with self:
                decomposed: object = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        out: object = func(*args, **kwargs)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        return out


def _key(value: object) -> object:
    """Make a key of an argument, equal for arguments that lead to results of one shape."""
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or not value.is_meta:
            raise TypeError
        return value.shape, value.stride(), value.dtype
    return tuple(map(_key, value)) if isinstance(value, (tuple, list)) else (type(value), value)


def _new_tensors(func: OpOverload, out: object, inputs: Sequence[object]) -> list[Tensor]:
    """List the results of an operation on the meta device; none if it changes or passes on any of its inputs."""
    schema = func._schema
    results = out if isinstance(out, tuple) else (out,)
    if schema.is_mutable or len(schema.returns) != len(results) or any(r.alias_info for r in schema.returns):
        return []
    leaves = [leaf for value in inputs for leaf in (value if isinstance(value, (tuple, list)) else (value,))]
    storages = {x.untyped_storage()._cdata for x in leaves if isinstance(x, Tensor)}
    tensors = [x for x in results if type(x) is Tensor and x.is_meta and x.untyped_storage()._cdata not in storages]
    return tensors if len(tensors) == len(results) else []


def _elementwise(per_element: int) -> Callable[..., int]:
    def flops(x: Tensor, *args: object, **kwargs: object) -> int:
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
