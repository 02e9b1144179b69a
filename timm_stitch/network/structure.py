"""The identity of a network's modules: which there are, of which shapes and settings, without the values of weights."""

from __future__ import annotations

import hashlib
from types import FunctionType, MethodType

from torch import nn

# Settings that change how a module computes, not what it gives.
_PASSING = ("training", "grad_checkpointing", "gradient_checkpointing", "fused_attn")


def structure_version(network: nn.Module) -> bytes:
    """Compute a cheap value that changes with a network's modules: their names, types, shapes and plain settings.

    Replaced, pruned and patched modules change it; values of weights, devices, hooks and modes do not.
    """
    digest = hashlib.blake2b(digest_size=16)
    numbers: dict[int, int] = {}  # by the id of a tensor: tied ones are one
    for name, module in network.named_modules():
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__}".encode())
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    number = numbers.setdefault(id(tensor), len(numbers))
                    digest.update(f" {key}{tuple(tensor.shape)}{number}".encode())
        for key, value in module.__dict__.items():
            if module is not network and key[0] != "_" and key not in _PASSING and "cache" not in key:
                digest.update(f" {key}={_plain(value)}".encode())
    return digest.digest()


def _plain(value: object) -> object:
    """Represent a setting, or a function put in the place of a method; None for other values."""
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, FunctionType):
        return value.__qualname__, value.__code__.co_code, _plain(value.__code__.co_consts)
    return value if isinstance(value, (bool, int, float, str)) else None
