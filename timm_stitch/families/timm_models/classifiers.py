"""The classifiers of a network's anchors, for code that knows one classifier: timm's `train.py --head-init-scale`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Classifiers(tuple[nn.Module, ...]):
    """The classifiers of all anchors, fastest first; of an anchor with two heads (distilled) both.

    What a module does (`parameters()`, `requires_grad_()`, `apply()`) is done with all of them. What one classifier has
    (`weight`, `bias`, `in_features`) is that of the current stitch; a change of `weight` or `bias` in place, as an
    initialisation makes it, is made in all.

    Args:
        modules: all of them.
        current: that of the current stitch, one of them.
    """

    current: nn.Module

    def __new__(cls, modules: Iterable[nn.Module], current: nn.Module) -> Classifiers:
        found = super().__new__(cls, modules)
        found.current = current
        return found

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.current

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "current":  # of a copy in the making
            raise AttributeError(name)
        together = nn.ModuleList(self)
        if hasattr(together, name):
            return getattr(together, name)
        value = getattr(self.current, name)
        if not isinstance(value, Tensor):
            return value
        return _Together.of(value, [t for module in self if isinstance(t := getattr(module, name, None), Tensor)])


_DATA: Any = Tensor.data


class _Together(Tensor):
    """One classifier's tensor that stands for those of all where it is changed in place."""

    tensors: Sequence[Tensor]

    @classmethod
    def of(cls, tensor: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        found = tensor.as_subclass(cls)
        found.tensors = tensors
        return found

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        changed = kwargs.get("tensor", args[0] if args else None)  # `torch.nn.init` names it
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
            if not isinstance(changed, cls):
                return out
            others = [tensor for tensor in changed.tensors if tensor.data_ptr() != changed.data_ptr()]
            if func is torch.Tensor.detach or func == _DATA.__get__:
                return cls.of(out, [tensor.detach() for tensor in changed.tensors])
            if _in_place(func):
                for tensor in others:
                    given = kwargs | {"tensor": tensor} if "tensor" in kwargs else kwargs
                    func(*(tensor if arg is changed else arg for arg in args), **given)
        return out


def _in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name.endswith("_") and not name.startswith("__") and name != "requires_grad_"
