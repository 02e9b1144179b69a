"""Hold a latency target while load and machine change, by moving along the frontier.

What is decided is decided by `policies`; this keeps the state between calls, and the patience.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from ..evaluation.selection import check_weights
from ..plan.results import Row
from .policies import DrainPolicy, LatencyTable, Slowdown

CALM = 0.99  # of what was dropped, what still counts after one more call without
MOST_DROPPED = 100_000  # that count


class LatencyController:
    """Chooses the stitch of each request so that requests stay within a latency target.

    What is measured of each request, over what was profiled of its stitch, says how much slower the machine is
    now. The best stitch of the frontier runs that answers, so slowed, what waits within the target: the images of the
    request, and those that had to be dropped lately, which a faster stitch would have answered (`DrainPolicy`). It
    goes down at once, and up only after `patience` requests in a row that a more expensive stitch would have met with
    `margin`. What was dropped is forgotten slowly, by a hundredth with each request.

        controller = LatencyController(model, target_ms=50)
        logits = controller(images)

    Args:
        model: the network, or what else is called with images and `stitch_id`; its own setting is left alone.
        target_ms: how long one request may take, in milliseconds.
        rows: of a `LatencyTable`, as `profile` and `evaluate` give them together; default what the network's table
            knows. Those that say which weights they belong to (`weights`) must be of the network's. If several batch
            sizes were profiled, a request takes what its number of images takes; with one alone, what was profiled.
        window: how many of the last requests the slowdown is judged by.
        quantile: which of them counts, 0.5 to 1. A busy machine stalls now and then whatever runs; the median
            forgives that, 1 does not.
        margin: the share of the target that is to stay free before going up, 0 to 1.
        patience: requests in a row before going up.

    Attributes:
        table: of the stitches of the frontier.

    Raises:
        ValueError: if accuracy or latency is not known, the rows belong to other weights, or an argument is out of
            range.
    """

    def __init__(
        self,
        model: Any,
        target_ms: float,
        *,
        rows: Iterable[Row] | None = None,
        window: int = 5,
        quantile: float = 0.6,
        margin: float = 0.1,
        patience: int = 5,
    ) -> None:
        if not (target_ms > 0 and window >= 1 and 0.5 <= quantile <= 1 and 0 <= margin < 1 and patience >= 1):
            raise ValueError(
                f"target_ms={target_ms}, window={window}, quantile={quantile}, margin={margin}, patience={patience}: "
                "expected a positive target, window and patience of 1 or more, 0.5 <= quantile <= 1, 0 <= margin < 1."
            )
        if rows is None and hasattr(model, "results"):  # what only runs a network has a table of its own
            model.results.check()
        known = model.stitch_table() if rows is None else list(rows)
        if not known:
            raise ValueError("rows is empty: give rows of stitch_id, latency_ms and top1, or leave it out.")
        if rows is not None and hasattr(model, "state_dict"):  # an exported file has no weights to look at
            check_weights(model, known, "these rows")
        self.model, self.target_ms, self.patience = model, target_ms, patience
        self.table = LatencyTable(known)
        self._policy = DrainPolicy(self.table, share=1.0)
        self._careful = DrainPolicy(self.table, share=1 - margin)
        self._slowdown = Slowdown(window, quantile, most=math.inf)
        self._dropped, self._waited = 0.0, 0
        self._level = self._within(self._policy, self._count(None))

    @property
    def stitch_id(self) -> int:
        """The stitch of the next request."""
        return self.table.stitch_ids[self._level]

    @property
    def slowdown(self) -> float:
        """How much slower than profiled the machine is now, by the last requests."""
        return self._slowdown.careful

    def choose(self, images: int) -> int:
        """The stitch of the next request if it has so many images: as `stitch_id`, or a faster one."""
        fits = self._within(self._policy, self._count(images))
        if fits < self._level:
            self._level, self._waited = fits, 0
        return self.stitch_id

    def __call__(self, images: Any, dropped: int = 0) -> Any:
        """Run one request through the stitch for its number of images, and take its time into account.

        The clock is stopped when the call returns: on a GPU, take the logits to the CPU and use `observe`.

        Args:
            images: of shape (B, C, H, W); of models of transformers a mapping of tensors with B rows.
            dropped: as of `observe`.

        Returns:
            What the network gives, logits of shape (B, num_classes) or an output with them.
        """
        first = next(iter(images.values()), None) if isinstance(images, Mapping) else images
        shape: Any = getattr(first, "shape", ())
        count = int(shape[0]) or None if len(shape) else None
        stitch_id = self.stitch_id if count is None else self.choose(count)
        call = partial(self.model, **images) if isinstance(images, Mapping) else partial(self.model, images)
        began = time.perf_counter()
        logits = call(stitch_id=stitch_id)
        self.observe(1e3 * (time.perf_counter() - began), dropped, count)
        return logits

    def observe(self, latency_ms: float, dropped: int = 0, images: int | None = None) -> int:
        """Take a request of the present stitch into account.

        Args:
            latency_ms: how long it took, in milliseconds.
            dropped: how many images were given up since the last call, because they could no longer be answered in
                time. They are demand too: a faster stitch runs until there was none for long.
            images: how many it had; default the smallest number that was profiled.

        Returns:
            The next stitch.

        Raises:
            ValueError: if one is negative, or there are no images.
        """
        if not (latency_ms >= 0 and dropped >= 0):
            raise ValueError(f"latency_ms={latency_ms}, dropped={dropped}: expected none below 0.")
        count = self._count(images)
        expected = self.table.seconds(self._level, count)
        self._slowdown.note(max(latency_ms / 1e3, 1e-3 * expected), expected)  # a clock may say that none passed
        self._note_dropped(dropped, count)
        fits, comfortably = self._within(self._policy, count), self._within(self._careful, count)
        if fits < self._level:
            self._level, self._waited = fits, 0
        elif comfortably > self._level:
            self._waited += 1
            if self._waited >= self.patience:
                self._level, self._waited = comfortably, 0
        else:
            self._waited = 0
        return self.stitch_id

    def _count(self, images: int | None) -> int:
        """How many images a request counts for; where one batch size was profiled, that."""
        if images is not None and images < 1:
            raise ValueError(f"images={images}: expected 1 or more.")
        sizes = self.table.batch_sizes
        return sizes[0] if images is None or len(sizes) == 1 else images

    def _note_dropped(self, dropped: int, count: int) -> None:
        """Keep in mind what was dropped: at least what shows that the present stitch does not answer all in time."""
        if dropped:
            enough = self._answered(self._level) - count + 1
            self._dropped = min(max(self._dropped + dropped, enough), self._answered(0), MOST_DROPPED)
        else:
            self._dropped *= CALM if self._dropped > 1 else 0.0

    def _answered(self, level: int) -> int:
        """How many images a stitch now answers within the target."""
        return int(self.target_ms / 1e3 / (self.table.each[level] * self.slowdown))

    def _within(self, policy: DrainPolicy, count: int) -> int:
        """The place of the best stitch that answers a request and what was dropped in time; the fastest if none."""
        target = self.target_ms / 1e3
        level = policy.choose(0.0, [target] * (count + math.ceil(self._dropped)), self._slowdown).level
        while level and self.table.seconds(level, count) * self.slowdown > policy.share * target:
            level -= 1  # where the policy would answer them in several calls
        return level
