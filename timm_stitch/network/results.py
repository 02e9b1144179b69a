"""What was measured of a network's stitches, kept with the network and with the weights that it belongs to."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable
from typing import Any

from ..plan.results import Results, Row
from .weights import cached_fingerprint, weights_version

_logger = logging.getLogger(__name__)


class NetworkResults:
    """Measured rows of one network, which count only while its weights are those that were measured.

    Args:
        network: the network that the rows belong to; it holds them.
    """

    def __init__(self, network: Any) -> None:  # a StitchableNetwork, whose file is above this one
        self._network = network

    @property
    def kept(self) -> Results:
        """The rows and the id of their weights, as a plain value."""
        kept: Results = self._network._measured
        return kept

    @property
    def rows(self) -> dict[int, Row]:
        """Every kept row by stitch_id, whatever weights the network has now."""
        return dict(self.kept.rows)

    def add(self, rows: Iterable[Row], weights: str | None = None) -> None:
        """Keep measured rows, next to those of the same weights that are known already.

        Times of further batch sizes are added to the known ones. What another device or precision took is dropped,
        for all stitches.

        Args:
            rows: dicts of `stitch_id` and what was measured, from `evaluate`, `profile` or a file.
            weights: the fingerprint of the weights that rows without one belong to; default the network's own.

        Raises:
            ValueError: if the rows belong to several weights, or to stitches that the plan does not have.
        """
        self._network._measured = self.merged(rows, weights)

    def merged(self, rows: Iterable[Row], weights: Hashable = None) -> Results:
        """The results that `add` would keep."""
        rows = list(rows)
        unknown = [row.get("stitch_id") for row in rows if row.get("stitch_id") not in self._network.plan]
        if unknown:
            raise ValueError(f"the rows hold stitches that the plan does not have: {unknown[:6]}.")
        if rows and weights is None and not all(row.get("weights") for row in rows):
            weights = cached_fingerprint(self._network)
        return self.kept.updated(Results.of(rows, weights))

    def replace(self, results: Results) -> None:
        """Keep these results instead of all others."""
        self._network._measured = results

    def adopt(self, rows: Iterable[Row]) -> None:
        """Keep rows, instead of all others, as those of the weights that the network has now.

        Unlike `add` it does not read the weights: their version in memory stands for them.
        """
        plan = self._network.plan
        own = [row for row in rows if row.get("stitch_id") in plan]
        self._network._measured = Results.of(own, weights_version(self._network))

    def clear(self) -> None:
        """Drop all that was measured."""
        self._network._measured = Results()

    def current(self) -> dict[int, Row]:
        """The rows of the weights that the network has now, by stitch_id; of other weights none, with a warning."""
        if self._are_current():
            return dict(self.kept.rows)
        _logger.warning("the weights have changed since they were measured, so their figures are left out: evaluate.")
        return {}

    def current_rows(self) -> list[Row]:
        """The rows of `current`, each with its `stitch_id`."""
        return [{"stitch_id": stitch_id, **row} for stitch_id, row in self.current().items()]

    def check(self) -> None:
        """Refuse to go on where what was measured belongs to other weights than the network has now.

        Raises:
            ValueError: naming the weights.
        """
        if not self._are_current():
            weights = self.kept.weights if isinstance(self.kept.weights, str) else "before they changed"
            raise ValueError(
                f"what is known of this network belongs to other weights ({weights}) than the network now has: "
                "evaluate it again."
            )

    def _are_current(self) -> bool:
        if not self.kept.rows:
            return True
        weights = self.kept.weights
        now = cached_fingerprint(self._network) if isinstance(weights, str) else weights_version(self._network)
        return weights == now
