"""The configuration of images, batches and augmentation: plain values that are checked when they are read.

It is the images' half of `training.config.TrainConfig`, and all that evaluation needs to find its images. Fields have
the names of the options of timm's scripts, if those have them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..choices import CropInterpolation, CropMode, EraseMode
from .fields import check, option, options, read

if TYPE_CHECKING:
    from typing_extensions import Self

READERS = ("torch", "hfds", "hfids", "wds", "tfds")  # timm takes any other name for a folder of images
DATASET_ARGS = ("download", "input_key", "target_key", "class_map", "num_samples")

_images = partial(option, group="images")
_augmentation = partial(option, group="augmentation")
_dense = partial(option, group="masks and depth")


# The fields of the augmentation that images with masks or depths do not get.
_OF_CLASSES = (
    "smoothing", "mixup", "cutmix", "auto_augment", "crop_mode", "crop_scale", "crop_ratio", "erase", "erase_mode",
    "train_interpolation",
)  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    """The configuration of images, batches and augmentation; each field has its help in `metadata["help"]`.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a value is out of range.

    Examples:
        >>> DataConfig(data_dir="imagenet", batch_size=64, accumulate=2).micro_batch(processes=4)
        8
    """

    dataset: str | None = _images(None, "timm reader: torch/…, hfds/…, wds/…, tfds/…; none for a folder of images")
    data_dir: str | None = _images(None, "folder of class folders, or the reader's root")
    train_split: str = _images("train", "split to train on")
    val_split: str = _images("validation", "split to evaluate on")
    dataset_args: Mapping[str, bool | int | str] | None = _images(
        None,
        "further arguments of the reader: download (for torch/, tfds/), input_key and target_key (columns of hfds/, "
        "wds/), class_map, num_samples",
    )
    batch_size: int = _images(1024, "images per step, over all processes and micro-batches", range=(1, math.inf))
    accumulate: int = _images(
        1, "micro-batches per step, which save memory and change nothing else", range=(1, math.inf)
    )
    workers: int = _images(4, "processes that read images, at most one per CPU", range=(0, math.inf))
    seed: int = _images(0, "seed of the order of images, of augmentation and of the stitches")

    smoothing: float = _augmentation(0.1, "label smoothing", range=(0, 1))
    mixup: float = _augmentation(0.8, "alpha of Mixup; 0 for none", range=(0, math.inf))
    cutmix: float = _augmentation(1.0, "alpha of CutMix; 0 for none", range=(0, math.inf))
    repeated_aug: int = _augmentation(
        1, "differently augmented copies of an image per epoch (of fewer images)", range=(1, math.inf)
    )
    auto_augment: str | None = _augmentation("rand-m9-mstd0.5-inc1", "timm's policy; null for none")
    color_jitter: float = _augmentation(0.3, "strength of colour jitter", range=(0, math.inf))
    hflip: float = _augmentation(0.5, "chance of a horizontal flip", range=(0, 1))
    crop_mode: CropMode = _augmentation(
        "rrc",
        "kind of crop: random resized, or timm's crops that keep the ratio",
        choices=CropMode,
    )
    crop_scale: tuple[float, float] = _augmentation((0.08, 1.0), "smallest and largest crop, of the image's area")
    crop_ratio: tuple[float, float] = _augmentation((0.75, 4 / 3), "narrowest and widest crop, width over height")
    erase: float = _augmentation(0.25, "chance of random erasing", range=(0, 1))
    erase_mode: EraseMode = _augmentation("pixel", "what fills the hole", choices=EraseMode)
    train_interpolation: CropInterpolation = _augmentation(
        "bicubic",
        "how crops are resized; random draws bilinear or bicubic",
        choices=CropInterpolation,
    )

    crop_size: tuple[int, ...] | None = _dense(
        None, "height and width of training crops in pixels; null for the network's own image size"
    )
    short_side: int | None = _dense(
        None,
        "shorter side in pixels to which images are resized first, the longer at most four times as long; null keeps "
        "their own size",
        range=(1, 16384),
    )
    scale_range: tuple[float, float] = _dense(
        (0.5, 2.0), "smallest and largest random scale; for depth near 1, since another scale is another camera"
    )
    cat_max_ratio: float = _dense(
        0.75, "largest share of one class in a crop, in ten tries; 1 takes the first crop", range=(0, 1)
    )
    ignore_label: int = _dense(255, "label of pixels that do not count", range=(0, 65535))
    reduce_zero_label: bool = _dense(
        False, "whether 0 is no class: it becomes ignore_label, and all others one less, as in ADE20K"
    )
    depth_scale: float = _dense(0.001, "metres for one unit of the depth files' 16 bits", range=(1e-9, 1e6))
    eigen_crop: bool = _dense(False, "whether only Eigen's crop of NYUv2's images counts in evaluation")

    def __post_init__(self) -> None:
        check(self)
        if self.crop_size is not None and not (len(self.crop_size) == 2 and min(self.crop_size) > 0):
            raise ValueError(f"crop_size must be a height and a width, such as [512, 512], got {self.crop_size}.")
        if max(self.crop_size or (1,)) > 16384:
            raise ValueError(f"crop_size must be at most 16384 pixels, got {self.crop_size}.")
        if self.scale_range[-1] > 16:
            raise ValueError(f"scale_range must be at most 16, got {self.scale_range}.")
        prefix, slash, _ = (self.dataset or "").partition("/")
        if self.dataset and not (slash and prefix.lower() in READERS):
            raise ValueError(
                f"dataset must begin with {', '.join(f'{name}/…' for name in READERS)}, got {self.dataset!r}: "
                "leave it out for a folder of images."
            )
        unknown = sorted(set(self.dataset_args or ()) - set(DATASET_ARGS))
        if unknown:
            raise ValueError(f"dataset_args must have names of {', '.join(DATASET_ARGS)}, got {', '.join(unknown)}.")
        for name in ("crop_scale", "crop_ratio", "scale_range"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} must be two positive numbers, the smaller first, got {pair}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Read plain values, as YAML or JSON give them; unknown names are refused.

        Raises:
            TypeError: naming what has the wrong type.
            ValueError: naming what is unknown, out of range or contradictory.
        """
        return cls(**read(cls, values))

    def check_task(self, is_dense: bool) -> None:
        """Refuse fields that have no effect on the networks of a task.

        Args:
            is_dense: whether the network learns masks or depths, and not the classes of images.

        Raises:
            ValueError: naming the field.
        """
        for name, declared in options(type(self)).items():
            value, group = getattr(self, name), declared.metadata["group"]
            foreign = name in _OF_CLASSES if is_dense else group == "masks and depth"
            if foreign and value != declared.default and value:
                others = "the classes of images" if is_dense else "masks or depths"
                raise ValueError(
                    f"{name}={value!r} has no effect: it is for networks that learn {others}, leave it out."
                )

    def micro_batch(self, processes: int) -> int:
        """Compute the images that each of some processes has at a time; at least 1."""
        return max(self.batch_size // (self.accumulate * processes), 1)


def check_data_dir(config: DataConfig) -> None:
    """Refuse a configuration that names no images, or a folder that does not exist.

    Raises:
        OSError: if the folder does not exist.
        ValueError: if no images are named.
    """
    if not config.dataset and not config.data_dir:
        raise ValueError("no images are named: set data_dir to a folder of class folders, or dataset to a timm reader.")
    if not config.dataset and not os.path.exists(str(config.data_dir)):
        raise FileNotFoundError(f"there is no folder {config.data_dir!r}: set data_dir to a folder of class folders.")
