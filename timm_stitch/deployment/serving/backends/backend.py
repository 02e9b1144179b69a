"""The door between a server and what runs its network: one protocol for torch and for engines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor

from ....choices import ServedPrecision


class Backend(Protocol):
    """Runs stitches of one network, at one precision.

    Attributes:
        engine: the name of the engine, for clients.
        name: the machine, engine, versions, threads and precision. Latencies that were measured under one name are
            never used under another.
    """

    engine: str
    name: str

    @property
    def precision(self) -> ServedPrecision:
        """The precision of its arithmetic."""

    @property
    def ready(self) -> Collection[int]:
        """The ids of the stitches that run in this engine; all others run in torch."""

    def precision_of(self, stitch_id: int) -> ServedPrecision:
        """Return the precision in which a stitch runs; one that is not ready may run in another."""

    def prepare(self, stitch_ids: Sequence[int], batch_sizes: Sequence[int]) -> None:
        """Make these stitches fast from their first call on, for each of these batch sizes."""

    def run(self, images: Tensor, stitch_id: int) -> Tensor:
        """Compute the logits of prepared images by a stitch.

        Args:
            images: images on the CPU, shape (B, C, H, W).
            stitch_id: any stitch of the plan.

        Returns:
            Logits in float32 on the CPU, shape (B, classes), which no later call changes.
        """

    def close(self) -> None:
        """Give up what is being prepared."""
