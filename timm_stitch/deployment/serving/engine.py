"""A queue of requests in the order of their deadlines, and one thread that answers them through the network.

Before each call a policy decides which stitch runs, on how many requests, and which requests are dropped. The engine
knows no protocol: the web server and Ray run the same one.

The file is long because one thread's loop, its queue and what both know of a request read best together.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from ..policies import LatencyTable, Slowdown
from .deployments import Deployment, Inputs

_logger = logging.getLogger(__name__)

SCANNED = 4  # batches that are searched for requests that allow the same stitch


class OverloadError(RuntimeError):
    """A request that cannot be answered in time, and is dropped."""


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Args:
        logits: the logits of its N images or texts, shape (N, classes); of dense networks the class numbers or depths
            (N, H, W), of others for texts the embeddings (N, width).
        stitch_id: the stitch that computed them.
        waited_s: the seconds from the request's arrival to the start of the call.
        duration_s: the seconds of the call.
        batch: the number of images or texts in the call, those of other requests included.
        late: whether the call ended after the deadline.
    """

    logits: Tensor
    stitch_id: int
    waited_s: float
    duration_s: float
    batch: int
    late: bool


@dataclass(eq=False)
class Request:
    """Images or texts that one stitch is to classify; its length is their work, in units of the latency table.

    Args:
        inputs: prepared inputs on the CPU.
        deadline: the time when the answer is due, by `time.monotonic`.
        allowed: the stitches that may answer; default all.
        arrived_at: the time of arrival, by `time.monotonic`.
        deployment: the network that answers, for which they are prepared; default the one that serves now.
        weight: the work of one of them, in units of the table: 1 for an image, more for a long text. Requests of
            different weights share no call, so that texts of a call have similar lengths.

    Attributes:
        count: the number of images or texts.
    """

    inputs: Inputs
    deadline: float
    allowed: frozenset[int] | None = None
    arrived_at: float = field(default_factory=time.monotonic)
    deployment: Deployment | None = None
    weight: int = 1
    answer: Future[Answer] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.count = len(self.inputs)

    def __len__(self) -> int:
        return self.count * self.weight


@dataclass(frozen=True)
class Call:
    """A call of the network, as reported to an observer.

    Args:
        stitch_id: the stitch that ran; None if all requests were dropped.
        met: the number of images or texts answered in time.
        late: the number of images or texts answered too late.
        dropped: the number of images or texts dropped by the policy.
        failed: the number of images or texts on which the network failed.
        duration_s: the seconds of the call.
        expected: the seconds that the table predicts; None for a stitch outside the table.
        slowdown: the factor over the profiled latencies that plans assume.
        waiting: the number of images or texts that wait now.
    """

    stitch_id: int | None
    met: int
    late: int
    dropped: int
    failed: int
    duration_s: float
    expected: float | None
    slowdown: float
    waiting: int


class Engine:
    """Answers requests until it is closed.

    Args:
        deployment: the network.
        most_waiting: the largest number of images or texts that may wait; more are refused at once.
        watch: a function that is called with each `Call`, in the engine's thread.
        kind: the kind of the inputs, for messages.

    Attributes:
        died: whether a fault of the engine has ended its thread.
        waiting: the number of images or texts that wait.
    """

    def __init__(
        self,
        deployment: Deployment,
        most_waiting: int = 1000,
        watch: Callable[[Call], None] = lambda call: None,
        kind: str = "images",
    ) -> None:
        self.deployment, self.most_waiting, self.watch, self.kind = deployment, most_waiting, watch, kind
        self.slowdown = Slowdown()
        self.waiting = 0
        self._deadlines: list[float] = []  # of each unit of work that waits, ascending
        self._owners: list[Request] = []  # whose unit it is; those of one request stand together
        self._changed = threading.Condition()
        self._closing = self.died = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are accepted."""
        return not self._closing

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request.

        Returns:
            A future of its `Answer`, which raises `OverloadError` if the request is dropped, or the network's error.

        Raises:
            OverloadError: if too many images or texts wait already, or the engine is closed.
        """
        with self._changed:
            if not self.alive:
                raise OverloadError("the server is shutting down: ask another one.")
            if self.waiting + request.count > self.most_waiting:
                raise OverloadError(f"{self.waiting} {self.kind} wait already: try again later.")
            request.deployment = request.deployment or self.deployment
            position, units = bisect_right(self._deadlines, request.deadline), len(request)
            self._deadlines[position:position] = [request.deadline] * units
            self._owners[position:position] = [request] * units
            self.waiting += request.count
            self._changed.notify()
        return request.answer

    def replace(self, deployment: Deployment, old: Deployment | None = None) -> bool:
        """Queue new requests for another network; those that wait are answered by the one for which they came.

        Args:
            deployment: the new network.
            old: the only one to replace; default any.

        Returns:
            Whether it was replaced.
        """
        with self._changed:
            if old is not None and old is not self.deployment:
                return False
            self.deployment, self.slowdown = deployment, Slowdown()
            return True

    def close(self, seconds: float) -> None:
        """Refuse new requests, answer waiting ones for at most some seconds, and drop the others."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        with self._changed:
            left = self._remove(range(len(self._owners)))
        _reject(left, "the server is shutting down: ask another one.")

    # ── the thread ────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        try:
            self._answer_all()
        except BaseException:
            _logger.exception("the engine died")
            self.died = True
            self.close(0.0)

    def _answer_all(self) -> None:
        while True:
            with self._changed:
                while not self._deadlines:
                    if self._closing:
                        return
                    self._changed.wait()
                deployment, dropped, batch, stitch_id, expected = self._choose()
            _reject(dropped, "it could not be answered in time: try again later, or allow more time.")
            self._answer(deployment, batch, stitch_id, expected, sum(request.count for request in dropped))

    def _choose(self) -> tuple[Deployment, list[Request], list[Request], int, float | None]:
        """Choose what runs next.

        Returns:
            The network of the most urgent request, the requests to drop, those to run together, their stitch, and the
            seconds that the table predicts.
        """
        dropped: list[Request] = []
        while True:
            deployment = self._owners[0].deployment or self.deployment
            decision = deployment.policy.choose(time.monotonic(), self._deadlines, self.slowdown)
            end = decision.dropped
            while end and self._owners[end - 1] is self._owners[end]:  # a request is dropped as a whole
                end -= 1
            dropped += self._remove(range(end))
            most_urgent, table = self._owners[0], deployment.table
            if most_urgent.deployment is deployment:
                break

        def stitch_of(request: Request) -> int:
            return _nearest(table, decision.table_index, request.allowed)

        stitch_id = stitch_of(most_urgent)
        index = table.stitch_ids.index(stitch_id) if stitch_id in table.stitch_ids else None
        if index == decision.table_index:
            most = decision.batch
        elif index is not None:
            slack = (most_urgent.deadline - time.monotonic()) / self.slowdown.capped_quantile
            most = table.largest_within(index, slack, table.best_batch[index])
        else:  # a stitch outside the policy's table
            most = 1

        def fits(request: Request) -> bool:
            alike = request.deployment is deployment and request.weight == most_urgent.weight
            return alike and stitch_of(request) == stitch_id

        batch = self._remove(_fitting(self._owners, fits, most))
        units = sum(map(len, batch))
        return deployment, dropped, batch, stitch_id, None if index is None else table.seconds(index, units)

    def _remove(self, positions: Sequence[int]) -> list[Request]:
        """Take the units at ascending positions, of whole requests, out of the queue; returns the requests."""
        requests = list(dict.fromkeys(self._owners[position] for position in positions))
        self.waiting -= sum(request.count for request in requests)
        if positions and positions[-1] == len(positions) - 1:
            del self._deadlines[: len(positions)], self._owners[: len(positions)]
        else:
            for position in reversed(positions):
                del self._deadlines[position], self._owners[position]
        return requests

    def _answer(
        self, deployment: Deployment, batch: Sequence[Request], stitch_id: int, expected: float | None, dropped: int
    ) -> None:
        """Run requests in one call, and give each its part of the logits."""
        batch = [request for request in batch if request.answer.set_running_or_notify_cancel()]
        count, met, late, failed, began = sum(request.count for request in batch), 0, 0, 0, time.monotonic()
        duration_s = 0.0
        if batch:
            try:
                inputs = [request.inputs for request in batch]
                logits = deployment.run(inputs[0] if len(inputs) == 1 else deployment.join(inputs), stitch_id)
                ended = time.monotonic()
                duration_s, start = ended - began, 0
                for request in batch:
                    due, own = ended > request.deadline, logits[start : start + request.count]
                    start += request.count
                    met, late = met + request.count * (not due), late + request.count * due
                    waited_s = began - request.arrived_at
                    request.answer.set_result(Answer(own, stitch_id, waited_s, duration_s, count, due))
            except Exception as error:  # the next call may succeed
                failed = count
                _logger.exception("stitch %d failed on %d %s", stitch_id, count, self.kind)
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)
        if expected is not None and duration_s and not failed and deployment is self.deployment:
            self.slowdown.note(duration_s, expected)
        ran, factor = stitch_id if batch else None, self.slowdown.capped_quantile
        self.watch(Call(ran, met, late, dropped, failed, duration_s, expected, factor, self.waiting))


def _nearest(table: LatencyTable, index: int, allowed: frozenset[int] | None) -> int:
    """Find the allowed stitch nearest to that at an index of the table; a cheaper one if there is one."""
    if allowed is None or table.stitch_ids[index] in allowed:
        return table.stitch_ids[index]
    known = [k for k in table.stitch_ids if k in allowed]  # the cheapest first
    cheaper = [k for k in table.stitch_ids[:index] if k in allowed]
    return cheaper[-1] if cheaper else known[0] if known else min(allowed)


def _fitting(owners: Sequence[Request], fits: Callable[[Request], bool], most: int) -> Sequence[int]:
    """Find the most urgent units of whole requests that fit: at most `most`, or those of the first request."""
    positions: list[int] = []
    position, end = 0, min(len(owners), SCANNED * max(most, 1))
    while position < end and (len(positions) < most or not positions):
        request = owners[position]
        count = len(request)
        if fits(request):
            if positions and len(positions) + count > most:
                break  # it begins the next batch
            positions.extend(range(position, position + count))
        position += count
    return positions


def _reject(requests: Iterable[Request], reason: str) -> None:
    for request in requests:
        if request.answer.set_running_or_notify_cancel():
            request.answer.set_exception(OverloadError(reason))
