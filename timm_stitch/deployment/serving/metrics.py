"""The counts of a server: for Prometheus since its start, and for its page by the second for two minutes.

Needs prometheus_client (`pip install '.[serve]'`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Total

from .deployments import Deployment
from .engine import Call

SECONDS = 120  # shown on the page
_LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Second:
    """The counts of one second.

    Args:
        at: the second, by `time.time`.
        stitches: the number of images that each stitch answered.
        met: the number of images answered in time.
        late: the number of images answered too late.
        dropped: the number of images dropped, or refused at once.
        waiting: the largest number of images that waited.
        slowdown: the last factor over the profiled latencies.
    """

    at: int
    stitches: Counter[int] = field(default_factory=Counter)
    met: int = 0
    late: int = 0
    dropped: int = 0
    waiting: int = 0
    slowdown: float = 1.0


def _none() -> None:
    """Return that nothing is known of what serves."""


class Metrics:
    """The counts of a server; any thread may add to them.

    Args:
        accuracy: a function that returns the known accuracies of the stitches, in per cent.
        deployment: a function that returns what serves now, for its engine, precision and agreement; default none.
        kind: the kind of inputs that is counted: images or texts.
    """

    def __init__(
        self,
        accuracy: Callable[[], Mapping[int, float | None]],
        deployment: Callable[[], Deployment | None] = _none,
        kind: str = "images",
    ) -> None:
        self.accuracy, self.deployment = accuracy, deployment
        kinds = kind.capitalize()
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "timm_stitch"}
        self._images = Total(kind, f"{kinds} by what became of them and the stitch.", ["outcome", "stitch_id"], **own)
        self._requests = Total("requests", "Requests by status of the answer.", ["status"], **own)
        self._latency = Histogram(
            "request_seconds", "From the head of a request to its answer.", buckets=_LATENCIES, **own
        )
        self._batch = Histogram(f"batch_{kind}", f"{kinds} of a call of the network.", buckets=_BATCHES, **own)
        self._call = Histogram("call_seconds", "Duration of a call of the network.", buckets=_LATENCIES, **own)
        self._slowdown = Gauge("slowdown", "How much slower than profiled the machine is.", **own)
        self._waiting = Gauge(f"waiting_{kind}", f"{kinds} that wait for their turn.", **own)
        self.lag = Gauge("loop_lag_seconds", "How late the event loop is.", **own)
        self._expected = Gauge("expected_accuracy_percent", "Mean over the answers of the last two minutes.", **own)
        self._backend = Gauge("backend", "1 for what runs the stitches now.", ["engine", "precision"], **own)
        self._agreement = Gauge("agreement_ratio", f"{kinds} with the class of fp32, of the lowest stitch.", **own)
        self._seconds: deque[Second] = deque(maxlen=SECONDS)
        self._lock = threading.Lock()

    def watch(self, call: Call) -> None:
        """Count a call of the network."""
        which = "" if call.stitch_id is None else str(call.stitch_id)
        for outcome, count in (("met", call.met), ("late", call.late), ("failed", call.failed)):
            if count:
                self._images.labels(outcome, which).inc(count)
        if call.dropped:
            self._images.labels("passed", "").inc(call.dropped)
        if call.met + call.late:
            self._batch.observe(call.met + call.late)
            self._call.observe(call.duration_s)
        self._slowdown.set(call.slowdown)
        self._waiting.set(call.waiting)
        with self._lock:
            now = self._now()
            if call.stitch_id is not None:
                now.stitches[call.stitch_id] += call.met + call.late
            now.met, now.late, now.dropped = now.met + call.met, now.late + call.late, now.dropped + call.dropped
            now.waiting, now.slowdown = max(now.waiting, call.waiting), call.slowdown

    def refused(self, count: int) -> None:
        """Count images that were refused."""
        self._images.labels("refused", "").inc(count)
        with self._lock:
            self._now().dropped += count

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer to a request."""
        self._requests.labels(str(status)).inc()
        if status == 200:
            self._latency.observe(seconds)

    def _now(self) -> Second:
        at = int(time.time())
        if not self._seconds or self._seconds[-1].at != at:
            self._seconds.append(Second(at))
        return self._seconds[-1]

    def _last(self) -> list[Second]:
        """Copy the counts of the last seconds."""
        since = time.time() - SECONDS
        with self._lock:
            return [replace(second, stitches=second.stitches.copy()) for second in self._seconds if second.at >= since]

    def _mean_accuracy(self, seconds: Iterable[Second]) -> float | None:
        """Average the known accuracies over the answers of some seconds."""
        accuracy, answers = self.accuracy(), Counter[int]()
        for second in seconds:
            answers.update(second.stitches)
        known = [(count, top1) for k, count in answers.items() if (top1 := accuracy.get(k)) is not None]
        total = sum(count for count, _ in known)
        return sum(count * top1 for count, top1 in known) / total if total else None

    def recent(self) -> list[dict[str, object]]:
        """Return the counts of each of the last seconds, as plain values."""
        return [
            {
                "at": s.at, "stitches": {str(k): n for k, n in s.stitches.items()}, "met": s.met, "late": s.late,
                "passed": s.dropped, "waiting": s.waiting, "slowdown": round(s.slowdown, 3),
                "top1": self._mean_accuracy([s]),
            }
            for s in self._last()
        ]  # fmt: skip

    def exposition(self) -> bytes:
        """Write all counts in Prometheus's text format."""
        mean = self._mean_accuracy(self._last())
        self._expected.set(float("nan") if mean is None else mean)
        deployment = self.deployment()
        self._backend.clear()
        if deployment is not None and deployment.backend is not None:
            self._backend.labels(deployment.backend.engine, deployment.backend.precision).set(1)
            self._agreement.set(1.0 if deployment.agreement is None else deployment.agreement.lowest)
        return bytes(generate_latest(self.registry))
