"""A bound on what is built in this thread: how many modules, and how many numbers in them.

Arguments that are each within their bounds can still ask for a product without end. What they build is counted while it
is built, on the meta device, so that nothing has taken memory when it is refused.
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
        ValueError: when it becomes too much.
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
    """Have torch tell of every module and parameter; outside of `bounded` nothing comes of it."""
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
            f"these arguments ask for more than {MOST_MODULES:,} modules or {MOST_NUMBERS:,} weights, which no network "
            "of this package needs: give smaller anchors."
        )
