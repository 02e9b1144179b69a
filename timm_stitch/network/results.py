"""The measured results of a network, kept with it and with the weights that they belong to."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable
from typing import Any

from ..plan.results import Results, Row, Rows
from .structure import structure_version
from .weights import cached_fingerprint, weights_version

_logger = logging.getLogger(__name__)


class NetworkResults:
    """Measured rows of one network, which count only while its weights and modules are those that were measured.

    Args:
        network: the network that the rows belong to, and that holds them.
    """

    def __init__(self, network: Any) -> None:  # a StitchableNetwork, whose file is above this one
        self._network = network

    @property
    def value(self) -> Results:
        """The rows and the id of their weights, as a plain value."""
        results: Results = self._network._measured
        return results

    @property
    def rows(self) -> dict[int, Row]:
        """All rows by stitch_id, even if the weights have changed since."""
        return dict(self.value.rows)

    def add(self, rows: Iterable[Row], weights_id: str | None = None) -> None:
        """Add measured rows to those of the same weights.

        Times of further batch sizes are added. Times of another device or precision are dropped, for all stitches.

        Args:
            rows: dicts of `stitch_id` and measured figures, from `evaluate`, `profile` or a file.
            weights_id: the fingerprint of the weights that rows without one belong to; default the network's own.

        Raises:
            ValueError: if the rows belong to several weights, or to stitches that the plan does not have.
        """
        self.replace(self.merged(rows, weights_id))

    def merged(self, rows: Iterable[Row], weights_id: Hashable = None) -> Results:
        """Compute the results that `add` would store."""
        rows = list(rows)
        unknown = [row.get("stitch_id") for row in rows if row.get("stitch_id") not in self._network.plan]
        if unknown:
            raise ValueError(f"the rows hold stitches that the plan does not have: {unknown[:6]}.")
        if rows and weights_id is None and not all(row.get("weights") for row in rows):
            weights_id = cached_fingerprint(self._network)
        return self.value.updated(Results.of(rows, weights_id))

    def replace(self, results: Results) -> None:
        """Replace all rows by these results, which belong to the modules that the network has now."""
        self._network._measured = results
        self._network._measured_structure = structure_version(self._network) if results.rows else None

    def adopt(self, rows: Iterable[Row]) -> None:
        """Replace all rows by those of the weights that the network has now.

        Unlike `add`, this computes no fingerprint: the version of the weights in memory identifies them.
        """
        plan = self._network.plan
        own = [row for row in rows if row.get("stitch_id") in plan]
        self.replace(Results.of(own, weights_version(self._network)) if own else Results())

    def clear(self) -> None:
        """Drop all rows."""
        self.replace(Results())

    def current(self) -> dict[int, Row]:
        """Get the rows by stitch_id if they belong to the present weights and modules; else none, with a warning."""
        if self._are_current():
            return self.rows
        _logger.warning(
            "the weights or modules have changed since they were measured, so their figures are left out: evaluate."
        )
        return {}

    def current_rows(self) -> Rows:
        """List the rows of `current`, each with its `stitch_id`."""
        return [{"stitch_id": stitch_id, **row} for stitch_id, row in self.current().items()]

    def check(self) -> dict[int, Row]:
        """Get the rows by stitch_id; refuse results that belong to other weights or modules than the network has now.

        Raises:
            ValueError: naming the weights.
        """
        if not self._are_current():
            weights_id = self.value.weights_id if isinstance(self.value.weights_id, str) else "before they changed"
            raise ValueError(
                f"the results of this network belong to other weights ({weights_id}) than it has now: "
                "evaluate it again."
            )
        return self.rows

    def _are_current(self) -> bool:
        if not self.value.rows:
            return True
        if self._network._measured_structure != structure_version(self._network):
            return False
        weights_id = self.value.weights_id
        now = cached_fingerprint(self._network) if isinstance(weights_id, str) else weights_version(self._network)
        return weights_id == now
