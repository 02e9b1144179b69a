"""How long does a call take, against another, and how much memory? Every benchmark measures with these functions.

A machine's speed drifts, so calls are timed in turns and compared with their neighbours: `time_in_turns`, then
`compare`. Two versions of the package are compared the same way, in processes that alternate: `compare_checkouts`.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]


def time_result(
    call: Callable[[], T], clock: Clock = time.perf_counter, wait: Callable[[], object] = lambda: None
) -> tuple[T, float]:
    """Time one call: its result, and seconds.

    Args:
        call: the call.
        clock: `time.perf_counter`, or `time.process_time` for the processor's time alone.
        wait: waits for what a call leaves running, as a GPU does.
    """
    wait()
    began = clock()
    result = call()
    wait()
    return result, clock() - began


def time_in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time each call once a round, in milliseconds.

    The order is drawn for every two rounds, and reversed in the second, so that no call profits from its place.

    Args:
        calls: the calls by name.
        rounds: the number of rounds that count.
        warm_up: the number of rounds before these.
        clock: as in `time_result`.
        wait: as in `time_result`.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warm_up, rounds):
        order = random.Random(turn // 2).sample(sorted(calls), len(calls))
        for name in order[:: -1 if turn % 2 else 1]:
            _, seconds = time_result(calls[name], clock, wait)
            if turn >= 0:
                times[name].append(1e3 * seconds)
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Take the median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Describe values by their minimum, median and maximum."""
    figures = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


@dataclass(frozen=True)
class Quartiles:
    """The median of some values between their lower and upper quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"

    def as_list(self, digits: int = 3) -> list[float]:
        """Round the three for a row: the lower quartile, the median, the upper quartile."""
        return [round(value, digits) for value in (self.low, self.median, self.high)]


def quartiles(values: Iterable[float]) -> Quartiles:
    """Take the quartiles; of one value, that value."""
    values = list(values)
    return Quartiles(*statistics.quantiles(values, n=4)) if len(values) > 1 else Quartiles(*values * 3)


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Quartiles:
    """Take the quartiles of the ratios of neighbours: times of the same round."""
    return quartiles(a / b for a, b in zip(ours, theirs, strict=True))


def memory_mb(field: str = "VmHWM", pid: int | str = "self") -> float:
    """Read a process's memory in MB from Linux.

    Args:
        field: "VmHWM" for the peak, "VmRSS" for now. (`getrusage` would give the parent's peak where that was higher.)
        pid: the process; by default this one.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


# A child's program: the setup, then calls that are timed; its arguments are JSON.
CHILD = """
import json, statistics, sys, time
from pathlib import Path
from typing import TypeVar
setup, statement, calls = json.loads(sys.argv[1])
names, times = {}, []
exec(setup, names)
code = compile(statement, "<statement>", "exec")
for _ in range(calls):
    began = time.perf_counter()
    exec(code, names)
    times.append(time.perf_counter() - began)
package = sys.modules.get("timm_stitch")
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
row = {"ms": 1e3 * statistics.median(times), "peak_mb": int(peak.split()[1]) / 1024}
print(json.dumps(row | {"package": package and package.__file__}))
"""


def run_snippet(checkout: Path, statement: str, setup: str = "", calls: int = 1) -> dict[str, float]:
    """Time a statement in a new process that imports the package from a checkout.

    Returns:
        `ms`, the median of the calls, and `peak_mb`, the process's peak memory.

    Raises:
        RuntimeError: if the package came from elsewhere.
    """
    checkout = checkout.resolve()
    out = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([setup, statement, calls])],
        cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    row = json.loads(out.stdout.splitlines()[-1])
    package = row.pop("package")
    if package and not Path(package).is_relative_to(checkout):
        raise RuntimeError(f"expected timm_stitch from {checkout}, got {package}")
    return row


def compare_checkouts(
    ours: Path, theirs: Path, statement: str, setup: str = "", rounds: int = 5, calls: int = 1
) -> dict[str, object]:
    """Time a statement with two versions of the package, in processes that alternate.

    Args:
        ours: the root of a checkout.
        theirs: the root of the checkout to compare with.
        statement: the code to time.
        setup: the code that runs before it, once a process.
        rounds: the number of processes of each version.
        calls: the number of calls a process, of which the median counts.

    Returns:
        The spread of milliseconds and of peak memory in MB for each, and the quartiles of the ratios ours / theirs.
    """
    checkouts = {"ours": ours, "theirs": theirs}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    calls_by_name = {
        name: (lambda name=name: rows[name].append(run_snippet(checkouts[name], statement, setup, calls)))
        for name in checkouts
    }
    time_in_turns(calls_by_name, rounds, warm_up=0)
    found: dict[str, object] = {}
    for figure in ("ms", "peak_mb"):
        values = {name: [row[figure] for row in rows[name]] for name in checkouts}
        found |= {f"{name}_{figure}": spread(values[name]) for name in checkouts}
        found[f"quartiles_of_ratio_of_{figure}"] = compare(values["ours"], values["theirs"]).as_list()
    return found
