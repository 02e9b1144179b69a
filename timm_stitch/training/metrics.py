"""How a run is going: losses by groups of like macs, on a bar and in Accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available
from torch import Tensor

from ..data.processes import summed
from ..plan.costs import short
from .config import TrainConfig

GROUPS = 4


class LossMeter:
    """Sums of losses by MACs group; on the device, so that a step waits for nothing.

    Args:
        groups: the ids of each group's stitches.
        macs: the multiply-adds of each stitch.
        device: the device of the losses.
    """

    def __init__(self, groups: Sequence[Sequence[int]], macs: Mapping[int, int], device: torch.device) -> None:
        self.number = {stitch_id: i for i, group in enumerate(groups) for stitch_id in group}
        self.names = [f"≤{short(max(macs[i] for i in group)).replace(' ', '')}" for group in groups]
        self.epoch = torch.zeros(2, len(groups), device=device)
        self.recent = torch.zeros(2, len(groups), device=device)

    def add(self, losses: Mapping[int, Tensor]) -> None:
        """Take in the losses of the stitches of one micro-batch."""
        for stitch_id, loss in losses.items():
            number = self.number[stitch_id]
            self.recent[0, number] += loss.detach()
            self.recent[1, number] += 1

    def read(self) -> tuple[float, dict[str, float]]:
        """The mean loss of all processes since the last reading, and that of each group with any."""
        sums: list[list[float]] = summed(self.recent).tolist()
        total, count = sums
        self.epoch += self.recent
        self.recent.zero_()
        by_group = {name: t / c for name, t, c in zip(self.names, total, count, strict=True) if c}
        return sum(total) / max(sum(count), 1), by_group

    def epoch_mean(self) -> float:
        """The mean loss of the epoch over all processes; begins the next."""
        sums: list[list[float]] = summed(self.epoch).tolist()
        total, count = sums
        self.epoch.zero_()
        return sum(total) / max(sum(count), 1)


def tracker_names(config: TrainConfig) -> list[str]:
    """Accelerate's names of the trackers that a run asks for."""
    if config.trackers == "auto":
        return ["tensorboard"] if config.output and is_tensorboard_available() else []
    names = [config.trackers] if isinstance(config.trackers, str) else list(config.trackers or ())
    return [name for name in names if name != "none"]


def start_trackers(accelerator: Accelerator, config: TrainConfig) -> None:
    """Start the trackers with the run's values.

    Raises:
        ImportError: if one that was asked for is not installed.
    """
    made = [str(tracker) for tracker in accelerator.log_with]
    missing = [name for name in tracker_names(config) if name not in (*made, "all")]
    if missing:
        raise ImportError(f"trackers={config.trackers!r}: {', '.join(missing)} is not installed here; pip install it.")
    if accelerator.log_with:
        values = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in asdict(config).items()}
        accelerator.init_trackers("timm_stitch", config=values)


def close_trackers(accelerator: Accelerator) -> None:
    """Close the trackers; the process group stays (`end_training` would take it down)."""
    for tracker in getattr(accelerator, "trackers", []):
        tracker.finish()
