"""The classifiers of a network's anchors, for code that knows one classifier: timm's `train.py --head-init-scale`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Kwargs = Mapping[str, object]


class Classifiers(tuple[nn.Module, ...]):
    """The classifiers of all anchors, fastest first; an anchor with two heads (distilled) has both here.

    The methods of a module (`parameters()`, `requires_grad_()`, `apply()`) act on all of them. The attributes of one
    classifier (`weight`, `bias`, `in_features`) are those of the current stitch's. A change of `weight` or `bias` in
    place, as an initialisation makes it, changes all classifiers.

    Args:
        modules: all classifiers.
        current: the classifier of the current stitch, one of them.
    """

    current: nn.Module

    def __new__(cls, modules: Iterable[nn.Module], current: nn.Module) -> Classifiers:
        classifiers = super().__new__(cls, modules)
        classifiers.current = current
        return classifiers

    def __getnewargs__(self) -> tuple[tuple[nn.Module, ...], nn.Module]:
        return tuple(self), self.current

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "current":  # in a copy that is not complete yet
            raise AttributeError(name)
        together = nn.ModuleList(self)
        if hasattr(together, name):
            return getattr(together, name)
        value = getattr(self.current, name)
        if not isinstance(value, Tensor):
            return value
        return _SharedTensor.of(value, [t for module in self if isinstance(t := getattr(module, name, None), Tensor)])


_DETACHING = (Tensor.detach, vars(torch._C.TensorBase)["data"].__get__)


class _SharedTensor(Tensor):
    """One classifier's tensor, whose changes in place are made in the tensors of all."""

    tensors: Sequence[Tensor]

    @classmethod
    def of(cls, tensor: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        shared = tensor.as_subclass(cls)
        shared.tensors = tensors
        return shared

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        changed = kwargs.get("tensor", args[0] if args else None)  # `torch.nn.init` names it
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
            if not isinstance(changed, cls):
                return out
            others = [tensor for tensor in changed.tensors if tensor.data_ptr() != changed.data_ptr()]
            if func in _DETACHING and isinstance(out, Tensor):
                return cls.of(out, [tensor.detach() for tensor in changed.tensors])
            if _is_in_place(func):
                for tensor in others:
                    same = kwargs | {"tensor": tensor} if "tensor" in kwargs else kwargs
                    func(*(tensor if arg is changed else arg for arg in args), **same)
        return out


def _is_in_place(func: Callable[..., object]) -> bool:
    name = getattr(func, "__name__", "")
    return name.endswith("_") and not name.startswith("__") and name != "requires_grad_"
