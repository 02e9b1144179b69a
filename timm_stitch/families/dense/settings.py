"""The plain values that describe a dense network besides the network inside, as they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ...choices import DENSE_TASKS, DenseTask
from ...plan.levels import Ends
from .inference import Inference

Value = bool | int | float | str

MOST_OUTPUTS, MOST_LEVELS, MOST_CHANNELS = 10_000, 64, 65_536


@dataclass(frozen=True)
class DenseSettings:
    """The settings of a dense network.

    Args:
        task: `"segmentation"` or `"depth"`.
        num_classes: the number of classes; 1 for depth.
        head: the name of the head; empty for one of the user's own.
        head_options: the arguments of the head.
        ends: the boundary of each level in each anchor.
        channels: the channels of all levels.
        tie: whether stitching layers are projections where they fit.
        min_depth, max_depth: the range of depths in metres.
        ignore_index: the label of pixels that do not count.
        inference: the way to predict on images.
        label_names: the names of the classes; empty if they are not known.

    Raises:
        ValueError: if an argument has another value than these.
    """

    task: DenseTask = "segmentation"
    num_classes: int = 1
    head: str = ""
    head_options: Mapping[str, Value] = field(default_factory=dict)
    ends: Ends = ()
    channels: tuple[int, ...] = ()
    tie: bool = False
    min_depth: float = 1e-3
    max_depth: float = 10.0
    ignore_index: int = 255
    inference: Inference = field(default_factory=Inference)
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.task not in DENSE_TASKS:
            raise ValueError(f"task must be one of {', '.join(map(repr, DENSE_TASKS))}, got {self.task!r}.")
        number = self.num_classes
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_OUTPUTS:
            raise ValueError(f"num_classes must be from 1 to {MOST_OUTPUTS}, got {number!r}.")
        if self.task == "depth" and number != 1:
            raise ValueError(f"a depth network has one output, got num_classes={number}: leave it out.")
        if self.task == "segmentation" and number < 2:
            raise ValueError("num_classes must be 2 or more for segmentation: count the background as a class.")
        if not 0 < self.min_depth < self.max_depth < float("inf"):
            raise ValueError(
                f"min_depth must be positive and below max_depth, got {self.min_depth} and {self.max_depth}."
            )
        if self.label_names and len(self.label_names) != number:
            raise ValueError(f"label_names has {len(self.label_names)} names for {number} classes: give one for each.")

    def to_dict(self) -> dict[str, Any]:
        """Convert the settings to JSON-serialisable values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> DenseSettings:
        """Build settings from the dict that `to_dict` returned, which may be a stranger's.

        Raises:
            ValueError: if they are no settings, or larger than any network needs.
        """
        if not isinstance(data, Mapping) or set(data) - {f.name for f in fields(cls)}:
            raise ValueError("config.json has no settings of a dense network under 'dense': save the network again.")
        values: dict[str, Any] = dict(data)
        try:
            ends, channels = values.get("ends", ()), values.get("channels", ())
            if not _are_ints(channels, MOST_CHANNELS, 1) or not isinstance(ends, (list, tuple)) or len(ends) > 64:
                raise TypeError
            if not all(_are_ints(own, 65_536, -1) and len(own) == len(channels) for own in ends):
                raise TypeError
            options = values.get("head_options", {})
            if not isinstance(values.get("head", ""), str) or not isinstance(options, Mapping) or len(options) > 32:
                raise TypeError
            for name, value in options.items():
                if not isinstance(name, str) or not isinstance(value, (bool, int, float, str)):
                    raise TypeError
                if isinstance(value, int) and not 0 <= value <= MOST_CHANNELS:
                    raise TypeError
            names = values.get("label_names", ())
            if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
                raise TypeError
            for name in ("min_depth", "max_depth"):
                if isinstance(values.get(name, 1.0), bool) or not isinstance(values.get(name, 1.0), (int, float)):
                    raise TypeError
            ignored = values.get("ignore_index", 255)
            if (
                not isinstance(values.get("tie", False), bool)
                or not isinstance(ignored, int)
                or not -1 <= ignored <= 65535
            ):
                raise TypeError
            values |= {
                "ends": tuple(tuple(own) for own in ends),
                "channels": tuple(channels),
                "head_options": dict(options),
                "inference": Inference(**values.get("inference", {})),
                "label_names": tuple(names),
            }
            return cls(**values)
        except TypeError:
            raise ValueError(
                "config.json has settings of a dense network that timm_stitch does not write: save the network again."
            ) from None


def _are_ints(values: object, most: int, least: int) -> bool:
    return (
        isinstance(values, (list, tuple))
        and 0 < len(values) <= MOST_LEVELS
        and all(isinstance(n, int) and not isinstance(n, bool) and least <= n <= most for n in values)
    )
