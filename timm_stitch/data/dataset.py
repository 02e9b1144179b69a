"""Images for training and evaluation, by timm's readers and transforms."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.data import ImageDataset, create_dataset, create_transform, resolve_data_config

from ..errors import library_errors
from .augmentation import patch_posterize
from .classes import SPLITS, check_split, class_names, folder_classes, ordered, positions, split_folder
from .config import DataConfig, check_data_dir
from .folders import check_links
from .images import Images, Labels, read_image
from .joint_transforms import EvaluationTransform, ToTensors, TrainingTransform
from .pairs import PairedImages, pair_files
from .processes import world_size

if TYPE_CHECKING:
    from ..families.timm_models.network import SNNet
    from ..network.objective import Objective


_logger = logging.getLogger(__name__)

_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos", "random")  # of timm


def image_config(model: SNNet) -> dict[str, Any]:
    """Resolve the preparation of images for a network, by timm's `resolve_data_config`, at the network's own size.

    For a grey network with mean and std of three colours, these are averaged, as in timm's own loader.

    Raises:
        ValueError: if the network's `pretrained_cfg`, which may be a stranger's, names a preparation that there is not.
    """
    config: dict[str, Any] = resolve_data_config({}, model=model)
    config |= {"input_size": (model.in_chans, *model.image_size)}
    _check_preparation(config, model.in_chans)
    for key in ("mean", "std"):
        if len(config[key]) != model.in_chans:
            config[key] = (statistics.fmean(config[key]),) * model.in_chans
    return config


def _check_preparation(config: Mapping[str, Any], channels: int) -> None:
    """Check what timm's transform is made of: it would raise anything, or resize an image to billions of pixels."""
    for key, (least, most) in {"mean": (-1e3, 1e3), "std": (1e-6, 1e6), "crop_pct": (0.1, 10.0)}.items():
        numbers = (config[key],) if key == "crop_pct" else config[key]
        several = isinstance(numbers, (list, tuple)) and (key == "crop_pct" or len(numbers) in (1, 3, channels))
        if not several or not all(isinstance(n, (int, float)) and least <= n <= most for n in numbers):
            count = "a number" if key == "crop_pct" else f"{channels} numbers"
            raise ValueError(
                f"this network's pretrained_cfg must have {key} of {count} from {least:g} to {most:g}, got "
                f"{config[key]!r:.60}: set model.pretrained_cfg[{key!r}]."
            )
    if config["interpolation"] not in _INTERPOLATIONS:
        raise ValueError(
            f"this network's pretrained_cfg must have interpolation as one of {', '.join(_INTERPOLATIONS)}, got "
            f"{config['interpolation']!r:.60}: set model.pretrained_cfg['interpolation']."
        )


def build_dataset(config: DataConfig, model: SNNet, training: bool, augment: bool = True) -> Any:
    """Build the dataset that a configuration names, with images transformed for a network.

    An iterable reader of timm's distributes its training images over the processes by itself. Every process reads all
    of its validation images, which `evaluate` distributes.

    Args:
        config: the configuration: `data_dir` is a folder of class folders, or `dataset` names a reader of timm's
            (`"torch/cifar10"`, `"hfds/user/name"`, `"wds/…"`, `"tfds/…"`). For dense networks `data_dir` is a folder
            of `images` and `masks` or `depth`.
        model: the network, with its image size, mean, std and evaluation crop.
        training: whether to take the training split, shuffled if the reader has an order of its own, instead of the
            validation split.
        augment: whether to augment the training images; else they are prepared as for evaluation.

    Raises:
        OSError: if the folder does not exist.
        ValueError: if the configuration names no data, there is no such split, or the images' classes are not the
            network's.
    """
    objective = model.objective
    if objective is not None:
        return _build_pairs(config, model, objective, training, augment)
    check_data_dir(config)
    dataset = open_dataset(config, training, "L" if model.in_chans == 1 else "RGB")
    names = class_names(dataset)
    dataset.target_transform = Labels(model.num_classes, _class_positions(config, model, training, names))
    dataset.transform = _make_transform(config, model, augmented=training and augment)
    return dataset


def _build_pairs(config: DataConfig, model: SNNet, objective: Objective, training: bool, augment: bool) -> PairedImages:
    """Build the images with masks or depths that a configuration names, transformed for a dense network."""
    if config.dataset or not config.data_dir:
        raise ValueError(
            f"dataset={config.dataset!r} has no masks or depths: set data_dir to a folder of 'images' and 'masks' or "
            "'depth'."
        )
    folder, data = pair_files(config, training), image_config(model)
    if folder.kind != objective.labels:
        raise ValueError(
            f"{config.data_dir!r} has a {folder.kind} for each image, and the network learns a {objective.labels}: "
            "give the other data_dir, or create the network with the other task."
        )
    pairs = PairedImages(
        folder, config, objective.classes, objective.none, "L" if model.in_chans == 1 else "RGB", training
    )
    tensors = ToTensors(data["mean"], data["std"])
    if not training:
        pairs.transform = evaluation_transform(model, config.short_side)
        return pairs
    if not augment:
        config = replace(config, scale_range=(1.0, 1.0), hflip=0.0, color_jitter=0.0)
    size = config.crop_size or model.image_size
    pairs.transform = TrainingTransform(config, (size[0], size[1]), pairs.none, tensors)
    return pairs


def evaluation_transform(
    model: SNNet, short_side: int | None = None, size: tuple[int, int] | None = None
) -> EvaluationTransform:
    """Make the transform of whole images for a dense network.

    Args:
        model: the network.
        short_side: the shorter side to which images are resized; default their own.
        size: the size to which they are resized; default that which the network takes, if it has one and does not
            predict by sliding windows.
    """
    data = image_config(model)
    slides = getattr(getattr(model, "inference", None), "mode", "whole") == "slide"
    fixed = None if slides else next((view.image_size for view in model.views if view.image_size), None)
    divisor = max(model.plan.anchors[-1].reductions)
    return EvaluationTransform(short_side, divisor, size or fixed, ToTensors(data["mean"], data["std"]))


def open_dataset(config: DataConfig, training: bool, mode: str = "RGB") -> Any:
    """Open the dataset that a configuration names, without transforms.

    Args:
        config: the configuration of the images.
        training: whether to open the training split instead of the validation split.
        mode: Pillow's mode of the images.

    Raises:
        OSError: if the folder does not exist.
        ValueError: if there is no such split, the reader cannot read the files, or links in the folder lead back.
    """
    split = config.train_split if training else config.val_split
    check_data_dir(config)
    if not config.dataset and os.path.isdir(str(config.data_dir)):
        check_links(split_folder(str(config.data_dir), split))
    check_split(config.dataset or "", split)
    further: dict[str, Any] = dict(config.dataset_args or {})
    try:
        dataset = create_dataset(
            config.dataset or "", root=config.data_dir, split=split, is_training=training,
            batch_size=config.micro_batch(world_size()), seed=config.seed, input_img_mode=mode,
            **further,
        )  # fmt: skip
    except (LookupError, AssertionError, TypeError, AttributeError, RuntimeError) as error:  # readers raise any
        raise ValueError(
            f"cannot open the images {config.dataset or config.data_dir!r} (split {split!r}), "
            f"{type(error).__name__} {error}: check data_dir, the files in it (of wds/ the _info.json) and "
            "dataset_args (input_key and target_key name columns)."
        ) from error
    reader: Any = getattr(dataset, "reader", None)
    if not training and hasattr(reader, "dist_num_replicas"):
        reader.dist_rank, reader.dist_num_replicas = 0, 1
    if isinstance(dataset, ImageDataset):
        dataset = Images(reader, mode)
    elif hasattr(dataset, "loader"):
        dataset.loader = partial(read_image, mode=mode)
    return dataset


def network_classes(model: SNNet) -> list[str]:
    """List the names of a network's classes; empty if it does not have one for each."""
    names = list((getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ())
    return [str(name) for name in names] if len(names) == model.num_classes else []


def name_classes(model: SNNet, dataset: Any) -> None:
    """Store in a network the names of the classes that it is trained on, in the order of its outputs.

    Args:
        model: the network; if it has the same names in another order, it keeps them.
        dataset: the training images, from `build_dataset`.
    """
    names = classes_by_output(model, dataset)
    if not names or set(names) == set(network_classes(model)):
        return
    model.pretrained_cfg["label_names"] = names
    model.pretrained_cfg.pop("label_descriptions", None)


def classes_by_output(model: SNNet, dataset: Any) -> list[str]:
    """List the names of a dataset's classes in the order of a network's outputs; empty if not every output has one.

    Args:
        model: the network.
        dataset: the images, from `build_dataset`.
    """
    names, positions = class_names(dataset), dataset.target_transform.positions
    if len(names) != model.num_classes:
        return []
    placed = dict(zip(positions or range(len(names)), names, strict=True))
    return [placed[number] for number in range(len(names))]


def _class_positions(config: DataConfig, model: SNNet, training: bool, names: Sequence[str]) -> Sequence[int] | None:
    """Find the number of each of the images' classes in the network, by name if both have names; None to keep them."""
    if not names:
        return None
    what = f"the {'training' if training else 'evaluation'} images"
    if not config.dataset and "" in names:
        raise ValueError(
            f"{what} in {config.data_dir!r} are not all in class folders: move the others into one of them, or set "
            "data_dir to a folder of class folders."
        )
    if len(names) > model.num_classes:
        raise ValueError(
            f"the images have {len(names)} classes, the network {model.num_classes}: create it with "
            f"num_classes={len(names)} (in a recipe, model_args: {{num_classes: {len(names)}}})."
        )
    folder = not config.dataset and not (config.dataset_args or {}).get("class_map")
    order = ordered(names) if folder else list(names)
    wanted = network_classes(model)
    numbers = positions(names, wanted, what) if wanted else None
    if numbers is None and folder and not training:
        trained_on = _training_classes(config)
        numbers = positions(names, trained_on, what) if 0 < len(trained_on) <= model.num_classes else None
    if numbers is not None:
        return numbers
    if wanted and (training or len(names) == len(wanted)):
        _logger.warning("%s have other classes than the network's (%s, not %s).", what, names[0], wanted[0])
    if not training and len(names) < model.num_classes:
        raise ValueError(
            f"{what} have {len(names)} classes, the network {model.num_classes} with "
            f"{'other names' if wanted else 'no names'}, so that their labels cannot be compared: put the training "
            "images next to them (data_dir/train), or save the network with label_names."
        )
    return [order.index(name) for name in names]


def _training_classes(config: DataConfig) -> list[str]:
    """List the classes of the training images in the same folder; empty if there are none."""
    root = Path(str(config.data_dir))
    if not root.is_dir():
        return []
    splits = [root / name for name in (config.train_split, "train", "training")]
    splits += [root.parent / name for name in ("train", "training") if root.name in SPLITS]
    return next((folder_classes(folder) for folder in splits if folder.is_dir()), [])


def _make_transform(config: DataConfig, model: SNNet, augmented: bool) -> Any:
    """Make timm's transform of an image into the network's input."""
    data = image_config(model)
    shape = {key: data[key] for key in ("input_size", "mean", "std")}
    if not augmented:
        return create_transform(**shape, interpolation=data["interpolation"], crop_pct=data["crop_pct"])
    with library_errors(f"timm has no policy auto_augment={config.auto_augment!r}", LookupError, AssertionError):
        augmented_by = create_transform(
            **shape, is_training=True, interpolation=config.train_interpolation, auto_augment=config.auto_augment,
            color_jitter=config.color_jitter, hflip=config.hflip, train_crop_mode=config.crop_mode,
            scale=config.crop_scale, ratio=config.crop_ratio, re_prob=config.erase, re_mode=config.erase_mode,
        )  # fmt: skip
    return patch_posterize(augmented_by)
