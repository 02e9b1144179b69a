"""Requests that come to one replica or many, played through a policy: how many are answered in time, and how well.

Time is a number, and nothing runs: a minute of a thousand replicas takes seconds.
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
    """Times of requests with independent distances.

    Args:
        rate: requests a second, on average.
        seconds: for how long.
        cv2: the squared coefficient of variation of the distances: 1 for a Poisson process, more for bursts.
        seed: of what is random.
    """
    draw, at = random.Random(seed), 0.0
    found: list[float] = []
    while True:
        at += draw.gammavariate(1 / cv2, cv2 / rate)
        if at >= seconds:
            return found
        found.append(at)


def varying_arrivals(rate: Rate, seconds: float, cv2: float = 1.0, seed: int = 0) -> list[float]:
    """Times of requests whose rate changes: `gamma_arrivals` of one request a second, with time stretched.

    Args:
        rate: requests a second at each time, positive; see `burst`, `accelerating` and `diurnal`.
        seconds: for how long.
        cv2, seed: as of `gamma_arrivals`.
    """
    step, passed, at, found = seconds / 10_000, 0.0, 0.0, []
    edges = [0.0]
    while at < seconds:
        passed += rate(at + step / 2) * step
        at += step
        edges.append(passed)
    place = 0
    for wanted in gamma_arrivals(1.0, edges[-1], cv2, seed):
        while edges[place + 1] <= wanted:
            place += 1
        inside = (wanted - edges[place]) / (edges[place + 1] - edges[place])
        found.append((place + inside) * step)
    return found


def burst(rate: float, factor: float, start: float, stop: float) -> Rate:
    """A rate that is `factor` times as high from `start` to `stop`."""
    return lambda at: rate * (factor if start <= at < stop else 1.0)


def accelerating(rate: float, factor: float, seconds: float) -> Rate:
    """A rate that grows steadily to `factor` times itself."""
    return lambda at: rate * (1 + (factor - 1) * at / seconds)


def diurnal(rate: float, factor: float, period: float) -> Rate:
    """A rate that swings about its mean as days do; the highest is `factor` times the lowest."""
    swing = (factor - 1) / (factor + 1)
    return lambda at: rate * (1 - swing * math.cos(2 * math.pi * at / period))


def recorded_arrivals(path: str | Path) -> list[float]:
    """Times of requests from a file: the first column of each line, in seconds, from the first request on.

    Raises:
        ValueError: if a line has no time, or there is none.
    """
    found = []
    with Path(path).open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                found.append(float(row[0]))
            except (ValueError, IndexError):
                if number > 1:  # the first line may be a heading
                    raise ValueError(f"line {number} of {str(path)!r} does not begin with a time in seconds.") from None
    if not found:
        raise ValueError(f"{str(path)!r} holds no times of requests: expected one a line, in seconds.")
    found.sort()
    return [at - found[0] for at in found]


@dataclass
class Outcome:
    """What came of all requests.

    Attributes:
        requests: how many there were.
        met: how many were answered in time.
        late: how many were answered too late.
        passed: how many were passed over.
        accuracy: the mean accuracy of the answers in time, in per cent.
        stitches: how many answers in time each stitch gave.
    """

    requests: int = 0
    met: int = 0
    late: int = 0
    passed: int = 0
    stitches: Counter[int] = field(default_factory=Counter)
    _sum: float = 0.0

    @property
    def attainment(self) -> float:
        """The share of requests that were answered in time, in per cent."""
        return 100 * self.met / self.requests if self.requests else 100.0

    @property
    def accuracy(self) -> float:
        return self._sum / self.met if self.met else 0.0

    @property
    def score(self) -> float:
        """Accuracy × attainment, in per cent: what a request may expect."""
        return self.accuracy * self.attainment / 100


class Replica:
    """One machine: requests that wait, and a policy that answers them one call after another.

    Args:
        table: what calls take.
        policy: chooses.
        slowdowns: of each call over the table's, without end; default a machine that is as fast as its table.
    """

    def __init__(self, table: LatencyTable, policy: Policy, slowdowns: Iterator[float] | None = None) -> None:
        self.table, self.policy, self.slowdowns = table, policy, slowdowns
        self.waiting: list[float] = []  # deadlines, ascending
        self.free_at, self.slowdown = 0.0, Slowdown()

    def work(self, now: float) -> float:
        """About how long it takes until a request that comes now is answered."""
        return max(self.free_at - now, 0.0) + len(self.waiting) * self.table.each[0] * self.slowdown.usual

    def run(self, now: float, outcome: Outcome) -> None:
        """Answer some of what waits; the machine is free again at `free_at`."""
        decision = self.policy.choose(now, self.waiting, self.slowdown)
        outcome.passed += decision.passed
        batch = self.waiting[decision.passed : decision.passed + decision.take]
        del self.waiting[: decision.passed + decision.take]
        if not batch:
            return
        expected = self.table.seconds(decision.level, len(batch))
        spent = expected * (next(self.slowdowns) if self.slowdowns is not None else 1.0)
        self.slowdown.note(spent, expected)
        self.free_at = now + spent
        met = sum(deadline >= self.free_at for deadline in batch)
        outcome.met += met
        outcome.late += len(batch) - met
        outcome.stitches[self.table.stitch_ids[decision.level]] += met
        outcome._sum += met * self.table.accuracies[decision.level]


def simulate(
    arrivals: Iterable[float], replicas: Sequence[Replica], promise_ms: float, choices: int = 2, seed: int = 0
) -> Outcome:
    """Play requests through replicas, each of which is told of those that come to it.

    Args:
        arrivals: times in seconds, ascending.
        replicas: the machines.
        promise_ms: within how many milliseconds each request is to be answered.
        choices: of how many replicas, each drawn at random from all, the one with the least work gets a request.
        seed: of what is random.
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
        replica.waiting.append(at + promise_ms / 1e3)
        if replica.free_at <= at:
            start(number, at)
    until(math.inf)
    return outcome
