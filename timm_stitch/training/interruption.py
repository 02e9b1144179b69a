"""SIGTERM and Ctrl-C during a run: it ends after the step at hand, with a checkpoint; and one run in one output.

Under a launcher all processes agree after each step whether to end, so that they write the checkpoint together.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..data.processes import world_size
from ..errors import OutputInUseError
from ..files import lock_folder

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunInterrupted(KeyboardInterrupt):
    """A run was asked to end, and has ended in good order.

    Args:
        message: what is kept, and how to go on.
        number: of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Interruption:
    """Whether a signal has asked the run to end.

    Attributes:
        number: of the signal; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._group: Any = None

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Notice signals meanwhile instead of dying of them; a second one on a single process ends it at once."""
        if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
            yield
            return
        if world_size() > 1 and dist.is_gloo_available():
            self._group = dist.new_group(backend="gloo")  # on the CPU: to ask costs no wait for a device
        before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _notice(self, number: int, frame: Any) -> None:
        if self.number and world_size() == 1:
            raise KeyboardInterrupt
        self.number = self.number or number

    def agreed(self) -> int:
        """The signal that any of the processes has had, the same on all of them; 0 for none.

        One that comes while they agree counts the next time.
        """
        if self._group is None:
            return self.number
        numbers = torch.tensor(self.number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group)
        return int(numbers)


def lock_output(folder: Path) -> int | None:
    """Hold the only place for a run in a folder, until the descriptor that is returned is closed or the process dies.

    Raises:
        OutputInUseError: if another run holds it.
    """
    lock = lock_folder(folder)
    if isinstance(lock, BlockingIOError):
        raise OutputInUseError(
            f"another run is training into {str(folder.parent)!r}: wait for its end, or give another output."
        )
    return lock
