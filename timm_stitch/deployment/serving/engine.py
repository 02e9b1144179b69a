"""Requests in the order of their deadlines, and one thread that answers them through the network.

Which stitch runs, on how many requests, and what is passed over, a policy decides before each call. Nothing here knows
of a protocol: the web server and Ray hold the same engine.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..policies import LatencyTable, Policy, Slowdown

_logger = logging.getLogger(__name__)

SCANNED = 4  # how many times a batch is looked for among those that wait, when some want other stitches


class OverloadError(RuntimeError):
    """A request that could not be answered in time, and was given up."""


class Served(NamedTuple):
    """A network as the engine runs it; replaced as one.

    Args:
        run: logits, shape (B, classes), of images, shape (B, C, H, W), through a stitch; on the CPU both.
        policy: chooses stitches.
        table: of the stitches that the policy chooses among.
    """

    run: Callable[[Tensor, int], Tensor]
    policy: Policy
    table: LatencyTable


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Args:
        logits: shape (N, classes), of its N images.
        stitch_id: which answered.
        waited: seconds until its turn, from when it came to the engine.
        took: seconds of the call.
        batch: images of the call, its own and others'.
        late: after its deadline.
    """

    logits: Tensor
    stitch_id: int
    waited: float
    took: float
    batch: int
    late: bool


@dataclass(eq=False)
class Request:
    """Images that one stitch is to classify.

    Args:
        images: shape (N, C, H, W), prepared, on the CPU.
        deadline: when the answer is due, by `time.monotonic`.
        allowed: the stitches that may answer; default all.
    """

    images: Tensor
    deadline: float
    allowed: frozenset[int] | None = None
    came: float = field(default_factory=time.monotonic)
    answer: Future[Answer] = field(default_factory=Future)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Call:
    """A call of the network, told to who watches.

    Args:
        stitch_id: which ran; None where all were passed over.
        met, late, passed, failed: how many images were answered in time, too late, or not, and whether by choice.
        took: seconds of the call.
        expected: seconds that the table says; None of a stitch that it does not have.
        slowdown: how much slower than profiled the machine is, as plans have it.
        waiting: images that wait now.
    """

    stitch_id: int | None
    met: int
    late: int
    passed: int
    failed: int
    took: float
    expected: float | None
    slowdown: float
    waiting: int


class Engine:
    """Answers requests until it is closed.

    Args:
        served: the network.
        most_waiting: images that may wait; what comes then is refused at once.
        watch: is told of each call, in the engine's thread.

    Attributes:
        died: by a fault of its own, with which nothing is answered any more.
    """

    def __init__(
        self, served: Served, most_waiting: int = 1000, watch: Callable[[Call], None] = lambda call: None
    ) -> None:
        self.served, self.most_waiting, self.watch = served, most_waiting, watch
        self.slowdown = Slowdown()
        self._deadlines: list[float] = []  # of each image that waits, ascending
        self._owners: list[Request] = []  # whose image it is; those of one request stand together
        self._changed = threading.Condition()
        self._closing = self.died = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many images wait."""
        return len(self._deadlines)

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return not self._closing

    def submit(self, request: Request) -> Future[Answer]:
        """Let a request wait for its turn.

        Returns:
            What will hold its `Answer`, or raise `OverloadError` if it was passed over, or what the network raised.

        Raises:
            OverloadError: if too many wait already, or the engine is closed.
        """
        with self._changed:
            if not self.alive:
                raise OverloadError("the server is shutting down: ask another one.")
            if len(self._deadlines) + len(request) > self.most_waiting:
                raise OverloadError(f"{len(self._deadlines)} images wait already: try again later.")
            place = bisect_right(self._deadlines, request.deadline)
            self._deadlines[place:place] = [request.deadline] * len(request)
            self._owners[place:place] = [request] * len(request)
            self._changed.notify()
        return request.answer

    def replace(self, served: Served) -> None:
        """Answer through another network from the next call on; what waits is kept."""
        with self._changed:
            self.served, self.slowdown = served, Slowdown()

    def close(self, seconds: float) -> None:
        """Take no more requests, answer what waits for at most so many seconds, and give up the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        with self._changed:
            left = self._remove(range(len(self._owners)))
        _give_up(left, "the server is shutting down: ask another one.")

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
                served = self.served
                passed, batch, stitch_id, expected = self._choose(served)
            _give_up(passed, "it could not be answered in time: try again later, or allow more time.")
            self._answer(served, batch, stitch_id, expected, sum(map(len, passed)))

    def _choose(self, served: Served) -> tuple[list[Request], list[Request], int, float | None]:
        """What is passed over, what runs together, through which stitch, and how long the table says that takes."""
        decision = served.policy.choose(time.monotonic(), self._deadlines, self.slowdown)
        end = decision.passed
        while end and self._owners[end - 1] is self._owners[end]:  # a request is passed over whole
            end -= 1
        passed = self._remove(range(end))
        head, table = self._owners[0], served.table

        def own(request: Request) -> int:
            """The stitch that a request gets now."""
            return _nearest(table, decision.level, request.allowed)

        stitch_id = own(head)
        level = table.stitch_ids.index(stitch_id) if stitch_id in table.stitch_ids else None
        if level == decision.level:
            most = decision.take
        elif level is not None:
            slack = (head.deadline - time.monotonic()) / self.slowdown.careful
            most = table.largest_within(level, slack, table.best_batch[level])
        else:  # one that the policy does not know
            most = 1
        batch = self._remove(_fitting(self._owners, lambda request: own(request) == stitch_id, most))
        count = sum(map(len, batch))
        return passed, batch, stitch_id, None if level is None else table.seconds(level, count)

    def _remove(self, places: Sequence[int]) -> list[Request]:
        """Take images at ascending places, of whole requests, out of those that wait; returns the requests."""
        requests = list(dict.fromkeys(self._owners[place] for place in places))
        if places and places[-1] == len(places) - 1:
            del self._deadlines[: len(places)], self._owners[: len(places)]
        else:
            for place in reversed(places):
                del self._deadlines[place], self._owners[place]
        return requests

    def _answer(
        self, served: Served, batch: Sequence[Request], stitch_id: int, expected: float | None, passed: int
    ) -> None:
        """Run requests together, and give each its part."""
        batch = [request for request in batch if request.answer.set_running_or_notify_cancel()]
        count, met, late, failed, began = sum(map(len, batch)), 0, 0, 0, time.monotonic()
        took = 0.0
        if batch:
            try:
                parts = [request.images for request in batch]
                logits = served.run(parts[0] if len(parts) == 1 else torch.cat(parts), stitch_id)
                ended = time.monotonic()
                took, start = ended - began, 0
                for request in batch:
                    due, own = ended > request.deadline, logits[start : start + len(request)]
                    start += len(request)
                    met, late = met + len(request) * (not due), late + len(request) * due
                    request.answer.set_result(Answer(own, stitch_id, began - request.came, took, count, due))
            except Exception as error:  # one call's fault is not the next one's
                failed = count
                _logger.exception("stitch %d failed on %d images", stitch_id, count)
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)
        if expected is not None and took and not failed:
            self.slowdown.note(took, expected)
        which, plan = stitch_id if batch else None, self.slowdown.careful
        self.watch(Call(which, met, late, passed, failed, took, expected, plan, self.waiting))


def _nearest(table: LatencyTable, level: int, allowed: frozenset[int] | None) -> int:
    """The stitch nearest to a level's that is allowed, better a cheaper one."""
    if allowed is None or table.stitch_ids[level] in allowed:
        return table.stitch_ids[level]
    known = [k for k in table.stitch_ids if k in allowed]  # the cheapest first
    cheaper = [k for k in table.stitch_ids[:level] if k in allowed]
    return cheaper[-1] if cheaper else known[0] if known else min(allowed)


def _fitting(owners: Sequence[Request], fits: Callable[[Request], bool], most: int) -> Sequence[int]:
    """The places of the most urgent images that fit, of whole requests: at most so many, or the first one's."""
    places: list[int] = []
    place, end = 0, min(len(owners), SCANNED * max(most, 1))
    while place < end and (len(places) < most or not places):
        request = owners[place]
        count = len(request)
        if fits(request):
            if places and len(places) + count > most:
                break  # it begins the next batch
            places.extend(range(place, place + count))
        place += count
    return places


def _give_up(requests: Iterable[Request], why: str) -> None:
    for request in requests:
        if request.answer.set_running_or_notify_cancel():
            request.answer.set_exception(OverloadError(why))
