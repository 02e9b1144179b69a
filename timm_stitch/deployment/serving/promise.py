"""What is promised, and what a request may ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass

POLICIES = ("drain", "fixed")


@dataclass(frozen=True)
class Promise:
    """What a server promises, and what it is bounded by.

    Args:
        latency_ms: within how many milliseconds a request is to be answered that does not say.
        reserve_ms: of these, for what is not the network's time.
        policy: `"drain"`, which chooses stitches by what waits, or `"fixed"`.
        stitch_id: of the fixed policy, or by default the dearest that takes no more than the promise.
        most_waiting: images that may wait at once.
        most_pixels: of one image.
        most_images: of one request.

    Raises:
        ValueError: if one is out of range.
    """

    latency_ms: float
    reserve_ms: float | None = None
    policy: str = "drain"
    stitch_id: int | None = None
    most_waiting: int = 1000
    most_pixels: int = 50_000_000
    most_images: int = 32

    def __post_init__(self) -> None:
        reserve = 0.0 if self.reserve_ms is None else self.reserve_ms
        if not (0 < self.latency_ms < math.inf and 0 <= reserve < self.latency_ms):
            raise ValueError(
                f"latency_ms={self.latency_ms}, reserve_ms={self.reserve_ms}: expected a promise above 0, and a "
                "reserve of 0 or more that is less."
            )
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r} is unknown: expected one of {', '.join(POLICIES)}.")
        if self.stitch_id is not None and self.policy != "fixed":
            raise ValueError(f"stitch_id={self.stitch_id} is for policy='fixed': the others choose.")
        if min(self.most_waiting, self.most_pixels, self.most_images) < 1:
            raise ValueError("most_waiting, most_pixels and most_images are to be 1 or more.")

    @property
    def reserve(self) -> float:
        """In milliseconds; a tenth of the promise where none is given."""
        return self.latency_ms / 10 if self.reserve_ms is None else self.reserve_ms


@dataclass(frozen=True)
class Wishes:
    """What one request may ask for.

    Args:
        latency_ms: its own promise.
        stitch_id: the stitch that is to answer.
        macs: the most multiply-adds an image that may be spent on it.
    """

    latency_ms: float | None = None
    stitch_id: int | None = None
    macs: float | None = None
