"""Hold a latency target while load and machine change, by moving along the frontier.

Imports `plan.frontier`, and `evaluation.selection` for whose weights rows belong to.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..evaluation.selection import check_weights
from ..plan.frontier import pareto_frontier
from ..plan.results import Row


class LatencyController:
    """Chooses the stitch of each request so that requests stay within a latency target.

    What is measured of each request, over what was profiled of its stitch, says how much slower the machine is
    now. The best stitch of the frontier runs whose profiled latency, so slowed, is within the target. It goes down
    at once, and up only after `patience` requests in a row that a more expensive stitch would have met with `margin`.

        controller = LatencyController(model, target_ms=50)
        logits = controller(images)

    Args:
        model: the network, or what else is called with images and `stitch_id`; its own setting is left alone.
        target_ms: how long one request may take, in milliseconds.
        rows: dicts of `stitch_id`, `latency_ms` and `top1`, as `profile` and `evaluate` give them together; default
            what the network's table knows. Those that say which weights they belong to (`weights`) must be of the
            network's.
        window: how many of the last requests the slowdown is judged by.
        quantile: which of them counts, 0.5 to 1. A busy machine stalls now and then whatever runs; the median
            forgives that, 1 does not.
        margin: the share of the target that is to stay free before going up, 0 to 1.
        patience: requests in a row before going up.

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
        if rows is None and hasattr(model, "check_results"):  # what only runs a network has a table of its own
            model.check_results()
        known = model.stitch_table() if rows is None else list(rows)
        if not known:
            raise ValueError("rows is empty: give rows of stitch_id, latency_ms and top1, or leave it out.")
        if rows is not None and hasattr(model, "state_dict"):  # an exported file has no weights to look at
            check_weights(model, known, "these rows")
        known = [row for row in known if row.get("latency_ms") is not None] or known[:1]
        self.model, self.target_ms = model, target_ms
        self.frontier = pareto_frontier(known, cost="latency_ms")
        self.quantile, self.margin, self.patience = quantile, margin, patience
        self._slowdowns: deque[float] = deque(maxlen=window)
        self._waited = 0
        self._level = self._within(self.target_ms)

    @property
    def stitch_id(self) -> int:
        """The stitch of the next request."""
        return int(self.frontier[self._level]["stitch_id"])

    @property
    def slowdown(self) -> float:
        """How much slower than profiled the machine is now, by the last requests."""
        if not self._slowdowns:
            return 1.0
        ordered = sorted(self._slowdowns)
        return ordered[min(int(self.quantile * len(ordered)), len(ordered) - 1)]

    def __call__(self, images: Any) -> Any:
        """Run one request through the present stitch, and take its time into account.

        The clock is stopped when the call returns: on a GPU, take the logits to the CPU and use `observe`.
        """
        began = time.perf_counter()
        logits = self.model(images, stitch_id=self.stitch_id)
        self.observe(1e3 * (time.perf_counter() - began))
        return logits

    def observe(self, latency_ms: float) -> int:
        """Take the latency of a request of the present stitch into account; returns the next stitch."""
        self._slowdowns.append(latency_ms / self.frontier[self._level]["latency_ms"])
        fits, comfortably = self._within(self.target_ms), self._within(self.target_ms * (1 - self.margin))
        if fits < self._level:
            self._level, self._waited = fits, 0
        elif comfortably > self._level:
            self._waited += 1
            if self._waited >= self.patience:
                self._level, self._waited = comfortably, 0
        else:
            self._waited = 0
        return self.stitch_id

    def _within(self, most: float) -> int:
        """The place on the frontier of the best stitch that now takes no longer; the fastest if none does."""
        slowdown = self.slowdown
        fitting = [i for i, row in enumerate(self.frontier) if row["latency_ms"] * slowdown <= most]
        return fitting[-1] if fitting else 0
