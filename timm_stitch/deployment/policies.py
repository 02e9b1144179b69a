"""Which stitch answers which requests next, so that each is answered in time and as well as time allows.

A policy sees the deadlines that wait and how much slower than profiled the machine is now, and decides on a stitch, on
how many of the most urgent requests it answers together, and on how many are passed over because they can no longer be
met. It runs nothing and reads no clock, so that a server and a simulation use the same.

Source of the setting: SuperServe (NSDI'25, arXiv:2312.16733), whose SlackFit is rebuilt here from its description.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ..plan.frontier import pareto_frontier, with_score
from ..plan.timings import call_times

SHARE = 0.75  # of the time that is left to each request, what is planned with
SAMPLES = 8  # of the requests that wait, by which it is judged whether all drain in time


class Decision(NamedTuple):
    """What to do now.

    Args:
        level: the place in the table of the stitch that runs.
        take: how many of the most urgent requests it answers together, after those passed over.
        passed: how many of the most urgent are answered by nobody, because they cannot be met.
    """

    level: int
    take: int
    passed: int = 0


class LatencyTable:
    """How long each stitch takes for each number of images, for the stitches that are worth running.

    Args:
        rows: dicts of `stitch_id`, `top1` (per cent; where no row has one, `published_top1` stands in for it), and of
            how long one call takes: `latency_ms_batch_N` with N images, as `profile` gives them, or `latency_ms` with
            `batch_size` images, several rows of one stitch for several batch sizes.

    Attributes:
        batch_sizes: that were measured of any stitch, ascending.
        stitch_ids, accuracies: of the frontier of accuracy over time an image, the fastest first.

    A call of fewer images counts as no longer than one of more: if it took longer, something else ran meanwhile.

    Raises:
        ValueError: if there is no row with all of these, or a figure is no positive number.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        calls: dict[int, dict[int, float]] = {}
        top1: dict[int, float] = {}
        scored = with_score(rows)
        for row in scored:
            stitch_id = int(row["stitch_id"])
            for batch, given in call_times(row).items():
                spent = float(given)
                if not (spent > 0 and batch > 0):
                    raise ValueError(
                        f"stitch {stitch_id} takes {spent} ms for {batch} images: expected positive numbers."
                    )
                calls.setdefault(stitch_id, {})[batch] = spent / 1e3
                top1[stitch_id] = float(row["top1"])
        if not calls:
            missing = "no latency_ms (timm_stitch.profile)" if scored else "no top1 (timm_stitch.evaluate)"
            raise ValueError(
                f"no row has both top1 and latency_ms: evaluate and profile the network first, there is {missing}."
            )
        each = {k: min(spent / batch for batch, spent in times.items()) for k, times in calls.items()}
        known = [{"stitch_id": k, "top1": top1[k], "latency_ms": 1e3 * each[k]} for k in sorted(calls)]
        best = pareto_frontier(known, cost="latency_ms")
        self.stitch_ids = [int(row["stitch_id"]) for row in best]
        self.batch_sizes = sorted({batch for times in calls.values() for batch in times})
        self.accuracies = [top1[k] for k in self.stitch_ids]
        self._batches = [sorted(calls[k]) for k in self.stitch_ids]
        self._times = [
            [min(calls[k][more] for more in calls[k] if more >= b) for b in sorted(calls[k])] for k in self.stitch_ids
        ]
        self.each = [each[k] for k in self.stitch_ids]  # seconds an image, at the best batch
        self.best_batch = [min((calls[k][b] / b, b) for b in calls[k])[1] for k in self.stitch_ids]

    def __len__(self) -> int:
        return len(self.stitch_ids)

    def seconds(self, level: int, count: int) -> float:
        """How long a call with so many images takes, between the batch sizes that were measured in proportion."""
        batches, times = self._batches[level], self._times[level]
        place = bisect_right(batches, count)
        if place == len(batches):
            return times[-1] * count / batches[-1]
        if place == 0:
            return times[0]
        low, high = batches[place - 1], batches[place]
        return times[place - 1] + (times[place] - times[place - 1]) * (count - low) / (high - low)

    def largest_within(self, level: int, seconds: float, most: int) -> int:
        """How many images, at most `most`, a call can take within some seconds; 0 if not even one."""
        batches, times = self._batches[level], self._times[level]
        place = bisect_right(times, seconds)
        if place == 0:
            return 0
        if place == len(times):
            return int(min(batches[-1] * seconds / times[-1] + 1e-9, most))
        low, high, above = batches[place - 1], batches[place], seconds - times[place - 1]
        return min(low + int((high - low) * above / (times[place] - times[place - 1]) + 1e-9), most)


class Slowdown:
    """How much slower than profiled the machine is, by the last calls.

    Args:
        window: how many calls count.
        quantile: which of them plans are made by; a call now and then is many times slower, whatever runs.
        most: by how much a plan may be more careful than the median.
    """

    def __init__(self, window: int = 40, quantile: float = 0.95, most: float = 4.0) -> None:
        self._last: deque[float] = deque(maxlen=window)
        self.quantile, self.most = quantile, most
        self.usual = self.careful = 1.0

    def note(self, seconds: float, expected: float) -> None:
        """Take a call into account: how long it took, and how long the table says."""
        self._last.append(seconds / expected)
        ordered = sorted(self._last)
        self.usual = ordered[len(ordered) // 2]
        careful = ordered[min(int(self.quantile * len(ordered)), len(ordered) - 1)]
        self.careful = min(careful, self.most * self.usual)


class Policy(Protocol):
    """What chooses."""

    def choose(self, now: float, deadlines: Sequence[float], slowdown: Slowdown) -> Decision:
        """Decide what to do next.

        Args:
            now: the time, in seconds.
            deadlines: of the requests that wait, ascending, at least one.
            slowdown: of the machine.
        """
        ...


class DrainPolicy:
    """The most accurate stitch with which all that waits is answered in time, and some time is left for what comes.

    The batch is the largest that the most urgent request allows, up to the stitch's best throughput. If no stitch
    answers all in time, the one with the highest throughput runs, and as few as it cannot meet are passed over at once;
    but something always runs, so that a machine that is fast again is noticed.

    Args:
        table: of the stitches.
        reserve_ms: of each promise, for what is not the network's time.
        share: of the time that is left to each request, what is planned with, 0 to 1. With all of it every answer
            comes in the last moment, and each request more makes one late; where stitches differ little in cost, much.
    """

    def __init__(self, table: LatencyTable, reserve_ms: float = 0.0, share: float = SHARE) -> None:
        self.table, self.reserve, self.share = table, reserve_ms / 1e3, share

    def choose(self, now: float, deadlines: Sequence[float], slowdown: Slowdown) -> Decision:
        """As `Policy.choose`."""
        table, now, share = self.table, now + self.reserve, self.share / slowdown.careful
        slacks = [(n, share * (deadlines[n] - now)) for n in _some(len(deadlines))]
        first = share * (deadlines[0] - now)
        low, high, take = -1, len(table) - 1, 0  # the dearest level that drains; none yet
        while low < high:
            middle = (low + high + 1) // 2
            fits = table.largest_within(middle, first, min(len(deadlines), table.best_batch[middle]))
            if fits and _drains(table, middle, 0, fits, len(deadlines), slacks):
                low, take = middle, fits
            else:
                high = middle - 1
        if low >= 0:
            return Decision(low, take)
        passed = _passed(table, 0, now, deadlines, slowdown.usual)
        most = min(len(deadlines) - passed, table.best_batch[0])
        take = table.largest_within(0, (deadlines[passed] - now) / slowdown.usual, most)
        return Decision(0, max(take, 1), passed)


class FixedPolicy:
    """One stitch, as a server of a single model; as few as it cannot meet are passed over.

    Args:
        table: of the stitches.
        level: the place of the one that runs.
        reserve_ms: as of `DrainPolicy`.
    """

    def __init__(self, table: LatencyTable, level: int, reserve_ms: float = 0.0) -> None:
        self.table, self.level, self.reserve = table, level, reserve_ms / 1e3

    def choose(self, now: float, deadlines: Sequence[float], slowdown: Slowdown) -> Decision:
        """As `Policy.choose`."""
        table, level, now = self.table, self.level, now + self.reserve
        passed = _passed(table, level, now, deadlines, slowdown.usual)
        most = min(len(deadlines) - passed, table.best_batch[level])
        count = table.largest_within(level, (deadlines[passed] - now) / slowdown.careful, most)
        return Decision(level, max(count, 1), passed)


def _some(waiting: int) -> list[int]:
    """The places of some of those that wait, from one end to the other, the least urgent first."""
    return list(dict.fromkeys((waiting - 1) * k // SAMPLES for k in range(SAMPLES, -1, -1)))


def _drains(
    table: LatencyTable, level: int, passed: int, first: int, waiting: int, slacks: Sequence[tuple[int, float]]
) -> bool:
    """Whether a stitch answers the others in time: a first call, then full ones, and the last with what is left.

    Args:
        table, level: the stitch.
        passed: how many of the most urgent are passed over.
        first: how many the first call answers.
        waiting: how many wait.
        slacks: of some of them, (place, seconds), the least urgent first.
    """
    full, done = table.best_batch[level], passed + first
    each, begun = table.seconds(level, full), table.seconds(level, first)
    calls, rest = divmod(waiting - done, full)
    last = table.seconds(level, rest) if rest else 0.0
    for n, slack in slacks:
        if n < passed:
            break
        before = (n - done) // full  # full calls between the first and the one that answers it; -1: the first does
        if begun + before * each + (each if before < calls else last) > slack:
            return False
    return True


def _passed(table: LatencyTable, level: int, now: float, deadlines: Sequence[float], slowdown: float) -> int:
    """How many of the most urgent are to be passed over, so that a stitch answers the others in time; never all.

    At least those that could not be met if each call were full, and a few more where the first can then be a large one.
    """
    waiting, full, each = len(deadlines), table.best_batch[level], table.each[level]
    slacks = [(n, (deadlines[n] - now) / slowdown) for n in _some(waiting)]

    def drains(passed: int) -> bool:
        slack = (deadlines[passed] - now) / slowdown
        first = table.largest_within(level, slack, min(waiting - passed, full))
        return first > 0 and _drains(table, level, passed, first, waiting, slacks)

    hopeless = bisect_right(deadlines, now + table.seconds(level, 1) * slowdown)
    fewest = min(max(hopeless, *(n + 1 - int(max(slack, 0.0) / each) for n, slack in slacks)), waiting - 1)
    low, high = fewest, min(fewest + full, waiting - 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if drains(middle) else (middle + 1, high)
    return low


class SlackFitPolicy:
    """SuperServe's, as far as it is described: buckets of latency, and in the one below the slack the largest batch.

    Args:
        table: of the stitches.
        buckets: how many, between the fastest and the slowest call.
        reserve_ms: as of `DrainPolicy`.
    """

    def __init__(self, table: LatencyTable, buckets: int = 40, reserve_ms: float = 0.0) -> None:
        self.table, self.reserve = table, reserve_ms / 1e3
        calls = [
            (table.seconds(level, count), count, level)
            for level in range(len(table))
            for count in (1, 2, 4, 8, 16, 32)
            if count <= max(table.best_batch[level], 1)
        ]
        self._shortest, longest = min(calls)[0], max(calls)[0]
        self._width = (longest - self._shortest) / buckets or 1.0
        self._calls: list[list[tuple[int, int]]] = [[] for _ in range(buckets + 1)]  # (images, level)
        for spent, count, level in calls:
            self._calls[math.ceil((spent - self._shortest) / self._width - 1e-9)].append((count, level))

    def choose(self, now: float, deadlines: Sequence[float], slowdown: Slowdown) -> Decision:
        """As `Policy.choose`."""
        now += self.reserve
        passed = bisect_right(deadlines, now + self._shortest * slowdown.usual)
        passed = min(passed, len(deadlines) - 1)
        slack = (deadlines[passed] - now) / slowdown.careful
        waiting = len(deadlines) - passed
        for bucket in range(min(int((slack - self._shortest) / self._width), len(self._calls) - 1), -1, -1):
            fitting = [call for call in self._calls[bucket] if call[0] <= waiting]
            if fitting:
                count, level = max(fitting)
                return Decision(level, count, passed)
        return Decision(0, 1, passed)
