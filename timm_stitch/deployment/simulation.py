"""A simulation of requests to one or many replicas under a policy: how many are answered in time, and how accurately.

Time is a number and no network runs: a minute of a thousand replicas takes seconds.
"""

from __future__ import annotations

import csv
import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .policies import LatencyTable, Policy, Slowdown

Rate = Callable[[float], float]  # requests a second, at a time in seconds


def gamma_arrivals(rate: float, seconds: float, cv2: float = 1.0, seed: int = 0) -> list[float]:
    """Draw arrival times with independent intervals.

    Args:
        rate: the mean number of requests per second.
        seconds: the length of the simulated time.
        cv2: the squared coefficient of variation of the intervals: 1 for a Poisson process, more for bursts.
        seed: the seed of the random numbers.

    Examples:
        >>> [round(at, 2) for at in gamma_arrivals(rate=2.0, seconds=2.0)]
        [0.93, 1.64, 1.91]
    """
    draw, at = random.Random(seed), 0.0
    times: list[float] = []
    while True:
        at += draw.gammavariate(1 / cv2, cv2 / rate)
        if at >= seconds:
            return times
        times.append(at)


def varying_arrivals(rate: Rate, seconds: float, cv2: float = 1.0, seed: int = 0) -> list[float]:
    """Draw arrival times whose rate changes: `gamma_arrivals` of one request per second, with time stretched.

    Args:
        rate: the number of requests per second at each time, positive; see `burst`, `accelerating` and `diurnal`.
        seconds: the length of the simulated time.
        cv2: the squared coefficient of variation of the intervals, as in `gamma_arrivals`.
        seed: the seed of the random numbers.
    """
    step, expected, at, times = seconds / 10_000, 0.0, 0.0, []
    edges = [0.0]
    while at < seconds:
        expected += rate(at + step / 2) * step
        at += step
        edges.append(expected)
    place = 0
    for wanted in gamma_arrivals(1.0, edges[-1], cv2, seed):
        while edges[place + 1] <= wanted:
            place += 1
        inside = (wanted - edges[place]) / (edges[place + 1] - edges[place])
        times.append((place + inside) * step)
    return times


def burst(rate: float, factor: float, start: float, stop: float) -> Rate:
    """Make a rate that is `factor` times as high from `start` to `stop`."""
    return lambda at: rate * (factor if start <= at < stop else 1.0)


def accelerating(rate: float, factor: float, seconds: float) -> Rate:
    """Make a rate that grows steadily to `factor` times itself."""
    return lambda at: rate * (1 + (factor - 1) * at / seconds)


def diurnal(rate: float, factor: float, period: float) -> Rate:
    """Make a rate that swings about its mean as over a day; the highest is `factor` times the lowest."""
    swing = (factor - 1) / (factor + 1)
    return lambda at: rate * (1 - swing * math.cos(2 * math.pi * at / period))


def recorded_arrivals(path: str | Path) -> list[float]:
    """Read arrival times from a file: the first column of each line, in seconds; the first request arrives at 0.

    Raises:
        ValueError: if a line has no time, or the file has none.
    """
    times: list[float] = []
    with Path(path).open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                times.append(float(row[0]))
            except (ValueError, IndexError):
                if number > 1:  # the first line may be a heading
                    raise ValueError(f"line {number} of {str(path)!r} does not begin with a time in seconds.") from None
    if not times:
        raise ValueError(f"{str(path)!r} has no arrival times: expected one per line, in seconds.")
    times.sort()
    return [at - times[0] for at in times]


@dataclass
class Outcome:
    """The outcome of a simulation.

    Attributes:
        requests: the number of requests.
        met: the number answered in time.
        late: the number answered too late.
        dropped: the number dropped.
        stitches: the number of answers in time by each stitch.
    """

    requests: int = 0
    met: int = 0
    late: int = 0
    dropped: int = 0
    stitches: Counter[int] = field(default_factory=Counter)
    _sum: float = 0.0

    @property
    def attainment(self) -> float:
        """The share of requests that were answered in time, in per cent."""
        return 100 * self.met / self.requests if self.requests else 100.0

    @property
    def accuracy(self) -> float:
        """The mean accuracy of the answers in time, in per cent."""
        return self._sum / self.met if self.met else 0.0

    @property
    def score(self) -> float:
        """The expected accuracy of a request: accuracy × attainment, in per cent."""
        return self.accuracy * self.attainment / 100


class Replica:
    """A machine: waiting requests, and a policy that answers them one call after another.

    Args:
        table: the latencies of calls.
        policy: the policy that chooses the calls.
        slowdowns: an endless iterator of each call's factor over the table; default a machine as fast as its table.
    """

    def __init__(self, table: LatencyTable, policy: Policy, slowdowns: Iterator[float] | None = None) -> None:
        self.table, self.policy, self.slowdowns = table, policy, slowdowns
        self.waiting: list[float] = []  # deadlines, ascending
        self.free_at, self.slowdown = 0.0, Slowdown()

    def work(self, now: float) -> float:
        """Estimate the seconds until a request that arrives now is answered."""
        return max(self.free_at - now, 0.0) + len(self.waiting) * self.table.each[0] * self.slowdown.median

    def run(self, now: float, outcome: Outcome) -> None:
        """Answer some waiting requests; the machine is free again at `free_at`."""
        decision = self.policy.choose(now, self.waiting, self.slowdown)
        outcome.dropped += decision.dropped
        batch = self.waiting[decision.dropped : decision.dropped + decision.batch]
        del self.waiting[: decision.dropped + decision.batch]
        if not batch:
            return
        expected = self.table.seconds(decision.table_index, len(batch))
        spent = expected * (next(self.slowdowns) if self.slowdowns is not None else 1.0)
        self.slowdown.note(spent, expected)
        self.free_at = now + spent
        met = sum(deadline >= self.free_at for deadline in batch)
        outcome.met += met
        outcome.late += len(batch) - met
        outcome.stitches[self.table.stitch_ids[decision.table_index]] += met
        outcome._sum += met * self.table.accuracies[decision.table_index]


def simulate(
    arrivals: Iterable[float], replicas: Sequence[Replica], target_ms: float, choices: int = 2, seed: int = 0
) -> Outcome:
    """Simulate requests to replicas.

    Args:
        arrivals: the arrival times in seconds, ascending.
        replicas: the machines.
        target_ms: the latency target of each request, in milliseconds.
        choices: the number of replicas drawn at random for a request, which goes to the one with the least work.
        seed: the seed of the random numbers.

    Examples:
        >>> from timm_stitch.deployment.policies import DrainPolicy
        >>> table = LatencyTable([{"stitch_id": 0, "top1": 70.0, "latency_ms": 10.0}])
        >>> outcome = simulate([0.0, 0.001, 1.0], [Replica(table, DrainPolicy(table))], target_ms=15)
        >>> outcome.met, outcome.late
        (2, 1)
    """
    outcome, draw, everyone = Outcome(), random.Random(seed), range(len(replicas))
    busy: list[tuple[float, int]] = []  # when a replica is free again, and which

    def until(now: float) -> None:
        while busy and busy[0][0] <= now:
            at, number = heapq.heappop(busy)
            start(number, at)

    def start(number: int, now: float) -> None:
        replica = replicas[number]
        while replica.waiting and replica.free_at <= now:
            replica.run(now, outcome)
        if replica.free_at > now:
            heapq.heappush(busy, (replica.free_at, number))

    for at in arrivals:
        if busy and busy[0][0] <= at:
            until(at)
        drawn = everyone if len(replicas) <= choices else [int(draw.random() * len(replicas)) for _ in range(choices)]
        number = min(drawn, key=lambda n: replicas[n].work(at)) if len(drawn) > 1 else drawn[0]
        replica = replicas[number]
        outcome.requests += 1
        replica.waiting.append(at + target_ms / 1e3)
        if replica.free_at <= at:
            start(number, at)
    until(math.inf)
    return outcome
