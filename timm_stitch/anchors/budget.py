"""A limit on the modules built in this thread, and on the numbers in them.

Arguments that are each within their limits can still ask for a huge product. Modules are counted while they are built,
on the meta device, so a refusal comes before any memory is used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

MOST_MODULES, MOST_NUMBERS = 30_000, 1 << 34


class _Spent(threading.local):
    active = False
    modules = numbers = 0


_spent = _Spent()


@contextmanager
def bounded() -> Iterator[None]:
    """Refuse to build more than any network needs, in this thread.

    Raises:
        ValueError: when a limit is passed.
    """
    _listen()
    before = _spent.active
    if not before:
        _spent.modules = _spent.numbers = 0
    _spent.active = True
    try:
        yield
    finally:
        _spent.active = before


@cache
def _listen() -> None:
    """Register hooks for every new module, parameter and buffer; they count only inside `bounded`."""
    torch_module.register_module_module_registration_hook(_count_module)
    torch_module.register_module_parameter_registration_hook(_count_numbers)
    torch_module.register_module_buffer_registration_hook(_count_numbers)


def _count_module(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    if _spent.active:
        _spent.modules += 1
        _check()


def _count_numbers(parent: nn.Module, name: str, tensor: Tensor | None) -> None:
    if _spent.active and tensor is not None:
        _spent.numbers += tensor.numel()
        _check()


def _check() -> None:
    if _spent.modules > MOST_MODULES or _spent.numbers > MOST_NUMBERS:
        raise ValueError(
            f"these arguments ask for more than {MOST_MODULES:,} modules or {MOST_NUMBERS:,} weights, more than any "
            "network of this package needs: give smaller anchors."
        )
