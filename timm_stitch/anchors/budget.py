"""A limit on what is built in this thread: modules, the numbers in them, time and memory.

Arguments that are each within their limits can still ask for a huge product. Modules and numbers are counted while they
are built, on the meta device, so a refusal comes before any memory is used. Loops inside a library's own code count
nothing; a second thread looks at the clock and the memory and interrupts them.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

MOST_MODULES, MOST_NUMBERS = 30_000, 1 << 34
MOST_SECONDS, MOST_BYTES = 10.0, 1 << 30  # of one build on the meta device, where the largest models take a second
_LOOK = 0.05  # seconds between two looks


class _Spent(threading.local):
    active = False
    modules = numbers = 0
    most_numbers, owner = MOST_NUMBERS, ""


class _InterruptedError(BaseException):
    """The build took too long or too much; no `except Exception` of a library holds it up."""


_spent = _Spent()


@contextmanager
def bounded(most_numbers: int = MOST_NUMBERS, owner: str = "any network of this package needs") -> Iterator[None]:
    """Refuse to build more than any network needs, in this thread.

    Args:
        most_numbers: the largest number of weights and buffers together; inside another `bounded`, that one's counts.
        owner: the network or file that needs no more, for the error.

    Raises:
        ValueError: when a limit is passed.
    """
    _listen()
    before = _spent.active
    if not before:
        _spent.modules = _spent.numbers = 0
        _spent.most_numbers, _spent.owner = most_numbers, owner
    _spent.active = True
    try:
        yield
    finally:
        _spent.active = before


@contextmanager
def time_limit(seconds: float = MOST_SECONDS, memory: int = MOST_BYTES) -> Iterator[None]:
    """Interrupt Python code of this thread that takes too long, or in which the process grows too much.

    Args:
        seconds: the CPU time of this thread, or, where the system does not tell it, the time.
        memory: the bytes by which the process may grow, where the system tells them.

    Raises:
        ValueError: when a limit is passed.
    """
    done, lock, thread, clock = threading.Event(), threading.Lock(), threading.get_ident(), _thread_clock()
    began, size = clock(), _process_bytes()
    interrupted = False

    def watch() -> None:
        nonlocal interrupted
        while not done.wait(_LOOK):
            if clock() - began > seconds or _process_bytes() - size > memory:
                with lock:
                    if not done.is_set():
                        interrupted = True
                        _raise_in(thread, _InterruptedError)

    watcher = threading.Thread(target=watch, name="time limit", daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            with lock:
                done.set()
            if interrupted:
                _raise_in(thread, None)  # what has not arrived yet
    except _InterruptedError:
        pass
    finally:
        watcher.join()
    if interrupted:
        raise ValueError(
            f"these arguments ask for a network that takes more than {seconds:.0f} s or {memory >> 20:,} MB to lay "
            "out, more than any network of this package needs: give smaller anchors."
        )


def _thread_clock() -> Callable[[], float]:
    """Make a clock of this thread's CPU time, which other threads can read."""
    find_clock = getattr(time, "pthread_getcpuclockid", None)
    if find_clock is None:
        return time.monotonic
    number = find_clock(threading.get_ident())
    return lambda: time.clock_gettime(number)


def _process_bytes() -> int:
    """Read how much memory the process has; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error in another thread at its next step in Python; None takes back one that has not arrived."""
    value = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), value)


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
    if _spent.modules > MOST_MODULES or _spent.numbers > _spent.most_numbers:
        raise ValueError(
            f"these arguments ask for more than {MOST_MODULES:,} modules or {_spent.most_numbers:,} weights, more than "
            f"{_spent.owner}: give smaller anchors."
        )
