"""SIGTERM and Ctrl-C during a run, which ends it after the current step with a checkpoint; and one run per output.

Under a launcher all processes agree after each step whether to end, so that they write the checkpoint together.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ..data.processes import world_size
from ..errors import OutputInUseError, RunInterrupted
from ..files import lock_folder

__all__ = ["SIGNALS", "Interruption", "RunInterrupted", "lock_output"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """The signal that asks a run to end.

    Attributes:
        number: the number of the signal; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._group: Any = None

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Record signals instead of dying of them; a second one ends a single process at once."""
        if threading.current_thread() is not threading.main_thread():  # only this one may set handlers
            yield
            return
        if world_size() > 1 and dist.is_gloo_available():
            self._group = dist.new_group(backend="gloo")  # on the CPU, without a wait for a device
        before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.number and world_size() == 1:
            raise KeyboardInterrupt
        self.number = self.number or number

    def agreed(self) -> int:
        """Find the signal that any process has received, the same on all of them; 0 for none.

        A signal during the agreement counts the next time.
        """
        if self._group is None:
            return self.number
        numbers = torch.tensor(self.number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group)
        return int(numbers)


def lock_output(folder: Path) -> int | None:
    """Lock a folder for one run, until the returned descriptor is closed or the process dies.

    Raises:
        OutputInUseError: if another run holds it.
    """
    lock = lock_folder(folder)
    if isinstance(lock, BlockingIOError):
        raise OutputInUseError(
            f"another run is training into {str(folder.parent)!r}: wait for its end, or give another output."
        )
    return lock
