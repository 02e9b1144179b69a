"""Images for training and evaluation, by timm's readers and transforms.

Imports timm, the network, `config` and `processes`.
"""

from __future__ import annotations

import os
import statistics
from typing import TYPE_CHECKING, Any

from timm.data import create_dataset, create_transform, resolve_data_config

from .config import DataConfig
from .processes import world_size

if TYPE_CHECKING:
    from ..network.network import SNNet


def image_config(model: SNNet) -> dict[str, Any]:
    """How images are prepared for a network, as timm's `resolve_data_config` has it, at the network's own size.

    For a grey network with the mean and std of colours it is their average, as in timm's own loader.
    """
    config: dict[str, Any] = resolve_data_config({}, model=model)
    config |= {"input_size": (model.in_chans, *model.image_size)}
    for key in ("mean", "std"):
        if len(config[key]) != model.in_chans:
            config[key] = (statistics.fmean(config[key]),) * model.in_chans
    return config


def build_dataset(config: DataConfig, model: SNNet, training: bool, augment: bool = True) -> Any:
    """The images that a configuration names, transformed as the network's own configuration asks.

    A reader of timm's that is an iterable shares its training images out to the processes by itself; of its
    validation images every process reads all, and `evaluate` shares them out.

    Args:
        config: names the data as timm's scripts do: `data_dir` is a folder of class folders, or
            `dataset` names a reader (`"torch/cifar10"`, `"hfds/user/name"`, `"wds/…"`, `"tfds/…"`).
        model: says image size, mean, std and evaluation crop.
        training: the training split, in random order where a reader has an order of its own; else the
            validation split.
        augment: the training images; else they are prepared as for evaluation.

    Raises:
        OSError: if the folder is not there.
        ValueError: if the configuration names no data, or they have more classes than the network.
    """
    if not config.dataset and not config.data_dir:
        raise ValueError(
            "the recipe names no images: set data_dir to a folder of class folders, or dataset as for timm."
        )
    if not config.dataset and not os.path.exists(str(config.data_dir)):
        raise FileNotFoundError(f"there is no folder {config.data_dir!r}: set data_dir to a folder of class folders.")
    further: dict[str, Any] = dict(config.dataset_args or {})
    dataset = create_dataset(
        config.dataset or "",
        root=config.data_dir,
        split=config.train_split if training else config.val_split,
        is_training=training,
        batch_size=config.micro_batch(world_size()),
        seed=config.seed,
        input_img_mode="L" if model.in_chans == 1 else "RGB",
        **further,
    )
    reader: Any = getattr(dataset, "reader", None)
    if not training and hasattr(reader, "dist_num_replicas"):
        reader.dist_rank, reader.dist_num_replicas = 0, 1
    classes = getattr(dataset, "classes", None) or getattr(reader, "class_to_idx", None) or ()
    if len(classes) > model.num_classes:
        raise ValueError(
            f"the images have {len(classes)} classes, the network {model.num_classes}: make it with "
            f"num_classes={len(classes)} (in a recipe, model_args: {{num_classes: {len(classes)}}})."
        )
    dataset.transform = _make_transform(config, model, augmented=training and augment)
    return dataset


def _make_transform(config: DataConfig, model: SNNet, augmented: bool) -> Any:
    """timm's transform of one image to what the network takes."""
    data = image_config(model)
    shape = {key: data[key] for key in ("input_size", "mean", "std")}
    if not augmented:
        return create_transform(**shape, interpolation=data["interpolation"], crop_pct=data["crop_pct"])
    return create_transform(
        **shape,
        is_training=True,
        interpolation=config.train_interpolation,
        auto_augment=config.auto_augment,
        color_jitter=config.color_jitter,
        hflip=config.hflip,
        train_crop_mode=config.crop_mode,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        re_prob=config.erase,
        re_mode=config.erase_mode,
    )
