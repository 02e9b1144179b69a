"""How long calls of each stitch take: as profiled, and how much slower the machine is now."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable

from ..plan.frontier import pareto_frontier, with_score
from ..plan.metrics import main_score
from ..plan.results import Row
from ..plan.timings import call_times


class LatencyTable:
    """The latencies of the stitches on the frontier of accuracy over time per image, for each batch size.

    A call with fewer images counts as no longer than one with more: if it took longer, something else ran meanwhile.

    Args:
        rows: dicts of `stitch_id`, a score (`top1` in per cent, or the first other metric that a row has, such as
            `miou`; if no row has one, `published_top1` or its like stands in for it), and the latency of a call:
            `latency_ms_batch_N` with N images, as `profile` gives them, or `latency_ms` with `batch_size` images,
            several rows of one stitch for several batch sizes.

    Attributes:
        stitch_ids: the ids of the frontier, the fastest first.
        score: the key of the score.
        accuracies: their scores, for `top1` in per cent.
        batch_sizes: the batch sizes that were measured of any stitch, ascending.
        each: their seconds per image at the batch size of the highest throughput.
        best_batch: these batch sizes.

    Raises:
        ValueError: if no row has all of these, or a latency is not positive.

    Examples:
        >>> rows = [
        ...     {"stitch_id": 0, "top1": 70.0, "latency_ms": 10.0},
        ...     {"stitch_id": 1, "top1": 80.0, "latency_ms": 20.0},
        ... ]
        >>> table = LatencyTable(rows)
        >>> table.stitch_ids, table.slowest_within(seconds=0.015)
        ([0, 1], 0)
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        calls: dict[int, dict[int, float]] = {}
        rows = list(rows)
        self.score = main_score(rows)
        scores: dict[int, float] = {}
        scored = with_score(rows, self.score)
        for row in scored:
            stitch_id = int(row["stitch_id"])
            for images, latency in call_times(row).items():
                latency_ms = float(latency)
                if not (latency_ms > 0 and images > 0):
                    raise ValueError(
                        f"latencies and batch sizes must be positive, got {latency_ms} ms for {images} images "
                        f"of stitch {stitch_id}."
                    )
                calls.setdefault(stitch_id, {})[images] = latency_ms / 1e3
                scores[stitch_id] = float(row[self.score])
        if not calls:
            missing = "no latency_ms (timm_stitch.profile)" if scored else f"no {self.score} (timm_stitch.evaluate)"
            raise ValueError(
                f"no row has both {self.score} and latency_ms: evaluate and profile the network first, there is "
                f"{missing}."
            )
        each = {k: min(spent / batch for batch, spent in times.items()) for k, times in calls.items()}
        known = [{"stitch_id": k, self.score: scores[k], "latency_ms": 1e3 * each[k]} for k in sorted(calls)]
        best = pareto_frontier(known, cost="latency_ms", score=self.score)
        self.stitch_ids = [int(row["stitch_id"]) for row in best]
        self.batch_sizes = sorted({batch for times in calls.values() for batch in times})
        self.accuracies = [scores[k] for k in self.stitch_ids]
        self._batches = [sorted(calls[k]) for k in self.stitch_ids]
        self._times = [
            [min(calls[k][more] for more in calls[k] if more >= b) for b in sorted(calls[k])] for k in self.stitch_ids
        ]
        self.each = [each[k] for k in self.stitch_ids]  # seconds an image, at the best batch
        self.best_batch = [min((calls[k][b] / b, b) for b in calls[k])[1] for k in self.stitch_ids]

    def __len__(self) -> int:
        return len(self.stitch_ids)

    def seconds(self, index: int, count: int) -> float:
        """Compute the seconds of a call with `count` images, interpolated between the measured batch sizes."""
        batches, times = self._batches[index], self._times[index]
        place = bisect_right(batches, count)
        if place == len(batches):
            return times[-1] * count / batches[-1]
        if place == 0:
            return times[0]
        low, high = batches[place - 1], batches[place]
        return times[place - 1] + (times[place] - times[place - 1]) * (count - low) / (high - low)

    def slowest_within(self, seconds: float, count: int = 1, up_to: int | None = None) -> int:
        """Find the place of the most accurate stitch whose call takes no longer than some seconds.

        Args:
            seconds: the longest that the call may batch.
            count: the number of images in the call.
            up_to: the last place that is tried; default the last of the table.

        Returns:
            The place in the table; 0, the fastest stitch, if none is fast enough.
        """
        last = len(self) - 1 if up_to is None else up_to
        return next((index for index in range(last, 0, -1) if self.seconds(index, count) <= seconds), 0)

    def largest_within(self, index: int, seconds: float, most: int) -> int:
        """Compute how many images, at most `most`, a call can have within some seconds; 0 if not even one."""
        batches, times = self._batches[index], self._times[index]
        place = bisect_right(times, seconds)
        if place == 0:
            return 0
        if place == len(times):
            return int(min(batches[-1] * seconds / times[-1] + 1e-9, most))
        low, high, above = batches[place - 1], batches[place], seconds - times[place - 1]
        return min(low + int((high - low) * above / (times[place] - times[place - 1]) + 1e-9), most)


class Slowdown:
    """The factor by which the machine is slower than profiled, from the last calls.

    Args:
        window: the number of calls that count.
        quantile: the quantile of their factors that plans use; now and then a call is many times slower.
        most: the largest ratio of that quantile to the median.

    Attributes:
        median: the median factor.
        capped_quantile: the quantile, or `most` times the median if that is less.
    """

    def __init__(self, window: int = 40, quantile: float = 0.95, most: float = 4.0) -> None:
        self._last: deque[float] = deque(maxlen=window)
        self.quantile, self.most = quantile, most
        self.median = self.capped_quantile = 1.0

    def note(self, seconds: float, expected: float) -> None:
        """Add a call: its seconds, and those that the table predicts."""
        self._last.append(seconds / expected)
        ordered = sorted(self._last)
        self.median = ordered[len(ordered) // 2]
        quantile = ordered[min(int(self.quantile * len(ordered)), len(ordered) - 1)]
        self.capped_quantile = min(quantile, self.most * self.median)
