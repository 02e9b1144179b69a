"""How benchmarks run parts of themselves in other processes: once, as ranks, or as workers with limits."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
from command_line import Row


def run_script(script: str | Path, *arguments: object, env: Mapping[str, str] | None = None) -> Row:
    """Run a benchmark in a process of its own, and read the row that it prints last."""
    command = [sys.executable, str(script), *map(str, arguments)]
    out = subprocess.run(command, env=os.environ | (env or {}), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def rank_environments(processes: int) -> list[dict[str, str]]:
    """Make the environment variables by which the processes of one run find each other, one dict a rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _work(examine: Callable[..., Row], connection: Any, gigabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))
    while True:
        connection.send(examine(*connection.recv()))


class LimitedWorker:
    """A process that examines one thing after another, and is replaced when it dies or takes too long.

    Args:
        examine: a function of a module, so that another process can import it; it gives a row.
        seconds: the processor time for one thing.
        gigabytes: the address space of the process.
        jobs: the number of things after which a new process takes over, since imports and caches count for its limit.
    """

    def __init__(self, examine: Callable[..., Row], seconds: float, gigabytes: int, jobs: int | None = None) -> None:
        self.examine, self.seconds, self.gigabytes, self.jobs = examine, seconds, gigabytes, jobs
        self.process: Any = None
        self.done = 0

    def run(self, *arguments: Any) -> Row | str:
        """Examine one thing: its row, or the reason why there is none."""
        if self.process is None:
            self.done = 0
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = multiprocessing.Pipe()
            self.process = context.Process(target=_work, args=(self.examine, theirs, self.gigabytes))
            self.process.start()
            theirs.close()
        try:
            self.connection.send(arguments)
            answer = self.connection.recv() if self._answers() else f"more than {self.seconds:.0f} s"
        except (EOFError, OSError):
            answer = f"its process died (limit {self.gigabytes} GiB)"
        self.done += 1
        if isinstance(answer, str) or self.done == self.jobs:
            self.close()
        return answer

    def _answers(self) -> bool:
        times = psutil.Process(self.process.pid).cpu_times
        start = sum(times()[:2])
        while not self.connection.poll(2):
            if sum(times()[:2]) - start > self.seconds:
                return False
        return True

    def close(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
