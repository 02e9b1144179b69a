"""Policies that choose the stitch and the batch of the next call, so that requests meet their deadlines accurately.

A policy sees the deadlines of waiting requests and how much slower than profiled the machine is. It chooses a stitch,
how many of the most urgent requests the stitch answers together, and how many are dropped because no call can meet
them. It runs nothing and reads no clock, so that a server and a simulation use the same policies.

Source of the setting: SuperServe (NSDI'25, arXiv:2312.16733), whose SlackFit is rebuilt here from its description.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .latency_table import LatencyTable, Slowdown

SHARE = 0.75  # of the time left to each request that a plan may use
SAMPLES = 8  # requests whose deadlines are checked for a plan, of all that wait


class Decision(NamedTuple):
    """The next call.

    Args:
        table_index: the place in the table of the stitch that runs.
        batch: the number of requests that it answers: the most urgent ones after those dropped.
        dropped: the number of the most urgent requests that are dropped, because no call can meet them.
    """

    table_index: int
    batch: int
    dropped: int = 0


class Policy(Protocol):
    """A rule that chooses the next call."""

    def choose(self, now: float, deadlines: Sequence[float], slowdown: Slowdown) -> Decision:
        """Choose the next call.

        Args:
            now: the time, in seconds.
            deadlines: the deadlines of the waiting requests, ascending; at least one.
            slowdown: the factor by which the machine is slower than profiled.
        """
        ...


class DrainPolicy:
    """Runs the most accurate stitch that answers all waiting requests in time, and leaves time for new ones.

    The batch is the largest that the most urgent request allows, up to the stitch's best throughput. If no stitch
    answers all in time, the one with the highest throughput runs, and the fewest requests that it cannot meet are
    dropped. One call always runs, so that the policy notices when the machine is fast again.

    Args:
        table: the latencies of the stitches.
        reserve_ms: the milliseconds before each deadline that are kept for work outside the network.
        share: the share of the time left to each request that a plan may use, 0 to 1. With 1 every answer is just in
            time, and each new request makes one late.
    """

    def __init__(self, table: LatencyTable, reserve_ms: float = 0.0, share: float = SHARE) -> None:
        self.table, self.reserve, self.share = table, reserve_ms / 1e3, share

    def choose(self, now: float, deadlines: Sequence[float], slowdown: Slowdown) -> Decision:
        """Choose the next call, as `Policy.choose`."""
        table, now, share = self.table, now + self.reserve, self.share / slowdown.capped_quantile
        slacks = [(n, share * (deadlines[n] - now)) for n in _sample_places(len(deadlines))]
        first = share * (deadlines[0] - now)
        low, high, batch = -1, len(table) - 1, 0  # the most expensive stitch that drains; none yet
        while low < high:
            middle = (low + high + 1) // 2
            fits = table.largest_within(middle, first, min(len(deadlines), table.best_batch[middle]))
            if fits and _drains(table, middle, 0, fits, len(deadlines), slacks):
                low, batch = middle, fits
            else:
                high = middle - 1
        if low >= 0:
            return Decision(low, batch)
        dropped = _count_hopeless(table, 0, now, deadlines, slowdown.median)
        most = min(len(deadlines) - dropped, table.best_batch[0])
        batch = table.largest_within(0, (deadlines[dropped] - now) / slowdown.median, most)
        return Decision(0, max(batch, 1), dropped)


class FixedPolicy:
    """Runs one stitch, as a server of a single model does, and drops the fewest requests that it cannot meet.

    Args:
        table: the latencies of the stitches.
        index: the place in the table of the stitch that runs.
        reserve_ms: the milliseconds before each deadline that are kept for work outside the network.
    """

    def __init__(self, table: LatencyTable, index: int, reserve_ms: float = 0.0) -> None:
        self.table, self.index, self.reserve = table, index, reserve_ms / 1e3

    def choose(self, now: float, deadlines: Sequence[float], slowdown: Slowdown) -> Decision:
        """Choose the next call, as `Policy.choose`."""
        table, index, now = self.table, self.index, now + self.reserve
        dropped = _count_hopeless(table, index, now, deadlines, slowdown.median)
        most = min(len(deadlines) - dropped, table.best_batch[index])
        count = table.largest_within(index, (deadlines[dropped] - now) / slowdown.capped_quantile, most)
        return Decision(index, max(count, 1), dropped)


def _sample_places(waiting: int) -> list[int]:
    """Choose places of waiting requests to check, evenly spread, the least urgent first."""
    return list(dict.fromkeys((waiting - 1) * k // SAMPLES for k in range(SAMPLES, -1, -1)))


def _drains(
    table: LatencyTable, index: int, dropped: int, first: int, waiting: int, slacks: Sequence[tuple[int, float]]
) -> bool:
    """Whether a stitch answers all requests but the dropped ones in time.

    Args:
        table: the latencies of the stitches.
        index: the place of the stitch in the table.
        dropped: the number of the most urgent requests that are dropped.
        first: the number of requests that the first call answers.
        waiting: the number of waiting requests.
        slacks: the time left to some of them, as (place, seconds), the least urgent first.
    """
    # The queue drains in a first call, then full calls, and a last one with the rest. So the answer to the request at
    # place n comes after the first call and n's full calls, in closed form, and a few requests show whether all meet
    # their deadlines.
    full, done = table.best_batch[index], dropped + first
    each, begun = table.seconds(index, full), table.seconds(index, first)
    calls, rest = divmod(waiting - done, full)
    last = table.seconds(index, rest) if rest else 0.0
    for n, slack in slacks:
        if n < dropped:
            break
        before = (n - done) // full  # full calls between the first one and its own; -1: the first is its own
        if begun + before * each + (each if before < calls else last) > slack:
            return False
    return True


def _count_hopeless(table: LatencyTable, index: int, now: float, deadlines: Sequence[float], slowdown: float) -> int:
    """Count the most urgent requests to drop, so that a stitch answers the others in time; never all.

    These are at least the requests that full calls could not meet, and a few more if the first call can be larger then.
    """
    waiting, full, each = len(deadlines), table.best_batch[index], table.each[index]
    slacks = [(n, (deadlines[n] - now) / slowdown) for n in _sample_places(waiting)]

    def drains(dropped: int) -> bool:
        slack = (deadlines[dropped] - now) / slowdown
        first = table.largest_within(index, slack, min(waiting - dropped, full))
        return first > 0 and _drains(table, index, dropped, first, waiting, slacks)

    hopeless = bisect_right(deadlines, now + table.seconds(index, 1) * slowdown)
    fewest = min(max(hopeless, *(n + 1 - int(max(slack, 0.0) / each) for n, slack in slacks)), waiting - 1)
    low, high = fewest, min(fewest + full, waiting - 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if drains(middle) else (middle + 1, high)
    return low


class SlackFitPolicy:
    """Runs the largest batch in the bucket of latencies just below the slack, as SuperServe describes it.

    Args:
        table: the latencies of the stitches.
        buckets: the number of buckets between the fastest and the slowest call.
        reserve_ms: the milliseconds before each deadline that are kept for work outside the network.
    """

    def __init__(self, table: LatencyTable, buckets: int = 40, reserve_ms: float = 0.0) -> None:
        self.table, self.reserve = table, reserve_ms / 1e3
        calls = [
            (table.seconds(index, count), count, index)
            for index in range(len(table))
            for count in (1, 2, 4, 8, 16, 32)
            if count <= max(table.best_batch[index], 1)
        ]
        self._shortest, longest = min(calls)[0], max(calls)[0]
        self._width = (longest - self._shortest) / buckets or 1.0
        self._calls: list[list[tuple[int, int]]] = [[] for _ in range(buckets + 1)]  # (images, index)
        for spent, count, index in calls:
            self._calls[math.ceil((spent - self._shortest) / self._width - 1e-9)].append((count, index))

    def choose(self, now: float, deadlines: Sequence[float], slowdown: Slowdown) -> Decision:
        """Choose the next call, as `Policy.choose`."""
        now += self.reserve
        dropped = bisect_right(deadlines, now + self._shortest * slowdown.median)
        dropped = min(dropped, len(deadlines) - 1)
        slack = (deadlines[dropped] - now) / slowdown.capped_quantile
        waiting = len(deadlines) - dropped
        for bucket in range(min(int((slack - self._shortest) / self._width), len(self._calls) - 1), -1, -1):
            fitting = [call for call in self._calls[bucket] if call[0] <= waiting]
            if fitting:
                count, index = max(fitting)
                return Decision(index, count, dropped)
        return Decision(0, 1, dropped)
