"""Which images, in which batches and how augmented, as plain values that are checked when they are read.

The images' half of `training.config.TrainConfig`, and all that evaluation needs to find its images. Fields are
named as the options of timm's scripts where those have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .fields import check, option, read

if TYPE_CHECKING:
    from typing_extensions import Self

READERS = ("torch", "hfds", "hfids", "wds", "tfds")  # timm takes any other name for a folder of images
DATASET_ARGS = ("download", "input_key", "target_key", "class_map", "num_samples")

_images = partial(option, group="images")
_augmentation = partial(option, group="augmentation")


@dataclass(frozen=True)
class DataConfig:
    """Which images, in which batches and how augmented; each field says what it is in its `metadata["help"]`.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a value is out of range.
    """

    dataset: str | None = _images(None, "a timm reader: torch/…, hfds/…, wds/…, tfds/…; none for a folder of images")
    data_dir: str | None = _images(None, "a folder of class folders, or the reader's root")
    train_split: str = _images("train", "the split to train on")
    val_split: str = _images("validation", "the split to evaluate on")
    dataset_args: Mapping[str, bool | int | str] | None = _images(
        None,
        "further arguments of the reader: download (for torch/, tfds/), input_key and target_key (columns of hfds/, "
        "wds/), class_map, num_samples",
    )
    batch_size: int = _images(
        1024, "images in one step, over all processes and accumulated micro-batches together", range=(1, math.inf)
    )
    accumulate: int = _images(
        1, "micro-batches in which a step is worked off, to save memory; it changes nothing else", range=(1, math.inf)
    )
    workers: int = _images(4, "processes that read images, no more than there are CPUs", range=(0, math.inf))
    seed: int = _images(0, "of the order of images, of augmentation and of the stitches")

    smoothing: float = _augmentation(0.1, "label smoothing", range=(0, 1))
    mixup: float = _augmentation(0.8, "alpha of Mixup; 0 for none", range=(0, math.inf))
    cutmix: float = _augmentation(1.0, "alpha of CutMix; 0 for none", range=(0, math.inf))
    repeated_aug: int = _augmentation(
        1, "how many differently augmented copies of an image an epoch holds (of fewer images)", range=(1, math.inf)
    )
    auto_augment: str | None = _augmentation("rand-m9-mstd0.5-inc1", "timm's policy; null for none")
    color_jitter: float = _augmentation(0.3, "strength of changes of colour", range=(0, math.inf))
    hflip: float = _augmentation(0.5, "chance of a horizontal flip", range=(0, 1))
    crop_mode: str = _augmentation(
        "rrc", "random resized crop, or timm's crops that keep the ratio", choices=("rrc", "rkrc", "rkrr")
    )
    crop_scale: tuple[float, float] = _augmentation((0.08, 1.0), "smallest and largest crop, of the image's area")
    crop_ratio: tuple[float, float] = _augmentation((0.75, 4 / 3), "narrowest and widest crop, width over height")
    erase: float = _augmentation(0.25, "chance of random erasing", range=(0, 1))
    erase_mode: str = _augmentation("pixel", "what fills the hole", choices=("const", "rand", "pixel"))
    train_interpolation: str = _augmentation(
        "bicubic",
        "how crops are resized; random draws bilinear or bicubic",
        choices=("bilinear", "bicubic", "random", "nearest", "box", "hamming", "lanczos"),
    )

    def __post_init__(self) -> None:
        check(self)
        prefix, slash, _ = (self.dataset or "").partition("/")
        if self.dataset and not (slash and prefix.lower() in READERS):
            raise ValueError(
                f"dataset={self.dataset!r} names no reader: expected {', '.join(f'{name}/…' for name in READERS)}; "
                "leave it out for a folder of images."
            )
        unknown = sorted(set(self.dataset_args or ()) - set(DATASET_ARGS))
        if unknown:
            raise ValueError(f"dataset_args has {', '.join(unknown)}: expected some of {', '.join(DATASET_ARGS)}.")
        for name in ("crop_scale", "crop_ratio"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name}={pair} is not a range: expected two numbers, the smaller first, above 0.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read plain values, as YAML or JSON give them; unknown names are refused.

        Raises:
            TypeError: naming what has the wrong type.
            ValueError: naming what is unknown, out of range or contradictory.
        """
        return cls(**read(cls, values))

    def micro_batch(self, processes: int) -> int:
        """Images that one of so many processes has at a time; 1 at least."""
        return max(self.batch_size // (self.accumulate * processes), 1)
