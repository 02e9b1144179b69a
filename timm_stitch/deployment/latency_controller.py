"""A controller that holds a latency target while load and machine change, by moving along the frontier.

The policies decide; the controller keeps the state between calls, and the patience.
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

CALM = 0.99  # of the dropped images, the share that still counts after one more call without any
MOST_DROPPED = 100_000  # dropped images that count


class LatencyController:
    """Chooses the stitch of each request so that requests stay within a latency target.

    The measured latency of each request, over the profiled one, shows how much slower the machine is now. The
    controller runs the most accurate stitch that, so slowed, answers the images of a request within the target, and
    with them the images that were dropped lately (`DrainPolicy`). It moves to a faster stitch at once, and to a more
    accurate one after `patience` requests in a row that it would have met with `margin`. Dropped images are forgotten
    slowly, a hundredth with each request.

    Args:
        model: the network, or another callable of images and `stitch_id`; its own stitch stays as it is set.
        target_ms: the latency target of a request, in milliseconds.
        rows: the rows of a `LatencyTable`, from `profile` and `evaluate` together; default the network's own table.
            Rows that name their weights must be of the network's. If several batch sizes were profiled, the expected
            latency is that of a request's number of images, else the one that was profiled.
        window: the number of last requests by which the slowdown is estimated.
        quantile: the quantile of them that counts, 0.5 to 1. A busy machine stalls now and then; the median forgives
            that, 1 does not.
        margin: the share of the target that must stay free before moving up, 0 to 1.
        patience: the number of requests in a row before moving up.

    Attributes:
        table: the latencies of the stitches of the frontier.

    Raises:
        ValueError: if accuracy or latency is not known, the rows belong to other weights, or an argument is out of
            range.

    Examples:
        >>> rows = [
        ...     {"stitch_id": 0, "top1": 70.0, "latency_ms": 10.0},
        ...     {"stitch_id": 7, "top1": 80.0, "latency_ms": 40.0},
        ... ]
        >>> network = lambda images, stitch_id: None
        >>> controller = timm_stitch.LatencyController(network, target_ms=50, rows=rows, window=1)
        >>> controller.stitch_id
        7
        >>> controller.observe(latency_ms=80)  # the machine is half as fast: stitch 7 would take 80 ms
        0
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
        for name, value, fits, expected in (
            ("target_ms", target_ms, target_ms > 0, "positive"),
            ("window", window, window >= 1, "1 or more"),
            ("quantile", quantile, 0.5 <= quantile <= 1, "from 0.5 to 1"),
            ("margin", margin, 0 <= margin < 1, "at least 0 and below 1"),
            ("patience", patience, patience >= 1, "1 or more"),
        ):
            if not fits:
                raise ValueError(f"{name} must be {expected}, got {value}.")
        if rows is None and hasattr(model, "results"):  # a callable without results of its own has none to check
            model.results.check()
        known = model.stitch_table() if rows is None else list(rows)
        if not known:
            raise ValueError("rows is empty: give rows of stitch_id, latency_ms and top1, or leave it out.")
        if rows is not None and hasattr(model, "state_dict"):  # an exported file has no weights to compare
            check_weights(model, known, "these rows")
        self.model, self.target_ms, self.patience = model, target_ms, patience
        self.table = LatencyTable(known)
        self._policy = DrainPolicy(self.table, share=1.0)
        self._with_margin = DrainPolicy(self.table, share=1 - margin)
        self._slowdown = Slowdown(window, quantile, most=math.inf)
        self._dropped, self._waited = 0.0, 0
        self._index = self._within(self._policy, self._count(None))

    @property
    def stitch_id(self) -> int:
        """The stitch of the next request."""
        return self.table.stitch_ids[self._index]

    @property
    def slowdown(self) -> float:
        """The factor by which the machine is slower than profiled, from the last requests."""
        return self._slowdown.capped_quantile

    def choose(self, images: int) -> int:
        """Choose the stitch of the next request, with some images: that of `stitch_id`, or a faster one."""
        fits = self._within(self._policy, self._count(images))
        if fits < self._index:
            self._index, self._waited = fits, 0
        return self.stitch_id

    def __call__(self, images: Any, dropped: int = 0) -> Any:
        """Run one request through the stitch for its number of images, and observe its latency.

        The clock stops when the call returns: on a GPU, take the logits to the CPU and use `observe`.

        Args:
            images: the images, shape (B, C, H, W); for models of transformers a mapping of tensors with B rows.
            dropped: the number of images dropped since the last call, as in `observe`.

        Returns:
            The network's output: logits, shape (B, num_classes), or an output with them.
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
        """Observe a request of the current stitch, and choose the next one.

        Args:
            latency_ms: the latency of the request, in milliseconds.
            dropped: the number of images dropped since the last call, because they could no longer be answered in
                time. They are demand too: a faster stitch runs until none was dropped for long.
            images: the number of images of the request; default the smallest batch size that was profiled.

        Returns:
            The id of the next stitch.

        Raises:
            ValueError: if an argument is negative, or there are no images.
        """
        for name, value in (("latency_ms", latency_ms), ("dropped", dropped)):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}.")
        count = self._count(images)
        expected = self.table.seconds(self._index, count)
        self._slowdown.note(max(latency_ms / 1e3, 1e-3 * expected), expected)  # a clock may show no time
        self._note_dropped(dropped, count)
        fits, comfortably = self._within(self._policy, count), self._within(self._with_margin, count)
        if fits < self._index:
            self._index, self._waited = fits, 0
        elif comfortably > self._index:
            self._waited += 1
            if self._waited >= self.patience:
                self._index, self._waited = comfortably, 0
        else:
            self._waited = 0
        return self.stitch_id

    def _count(self, images: int | None) -> int:
        """Count the images of a request; if one batch size alone was profiled, a request counts as that."""
        if images is not None and images < 1:
            raise ValueError(f"images must be 1 or more, got {images}.")
        sizes = self.table.batch_sizes
        return sizes[0] if images is None or len(sizes) == 1 else images

    def _note_dropped(self, dropped: int, count: int) -> None:
        """Remember dropped images: at least so many that the current stitch cannot answer all in time."""
        if dropped:
            enough = self._answered(self._index) - count + 1
            self._dropped = min(max(self._dropped + dropped, enough), self._answered(0), MOST_DROPPED)
        else:
            self._dropped *= CALM if self._dropped > 1 else 0.0

    def _answered(self, index: int) -> int:
        """Compute how many images a stitch now answers within the target."""
        return int(self.target_ms / 1e3 / (self.table.each[index] * self.slowdown))

    def _within(self, policy: DrainPolicy, count: int) -> int:
        """Find the most accurate stitch that answers a request and the dropped images in time; else the fastest."""
        target = self.target_ms / 1e3
        index = policy.choose(0.0, [target] * (count + math.ceil(self._dropped)), self._slowdown).table_index
        # The policy may plan several calls; a request is one.
        return self.table.slowest_within(policy.share * target / self.slowdown, count, up_to=index)
