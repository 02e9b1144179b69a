"""Images for training and evaluation, by timm's readers and transforms. Imports timm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.data import create_dataset, create_transform, resolve_data_config

if TYPE_CHECKING:
    from .config import TrainConfig
    from .network import SNNet


def build_dataset(config: TrainConfig, model: SNNet, training: bool) -> Any:
    """The images that a configuration names, transformed as the network's own configuration asks.

    Args:
        config: names the data as timm's scripts do: `data_dir` is a folder of class folders, or
            `dataset` names a reader (`"torch/cifar10"`, `"hfds/user/name"`, `"wds/…"`, `"tfds/…"`).
        model: says image size, mean, std and evaluation crop.
        training: the training split, augmented; else the validation split.

    Raises:
        ValueError: if the configuration names no data.
    """
    if not config.dataset and not config.data_dir:
        raise ValueError(
            "the recipe names no images: set data_dir to a folder of class folders, or dataset as for timm."
        )
    data = resolve_data_config({}, model=model)
    dataset = create_dataset(
        config.dataset or "",
        root=config.data_dir,
        split=config.train_split if training else config.val_split,
        is_training=training,
        batch_size=config.batch_size,
        seed=config.seed,
        input_img_mode="L" if model.in_chans == 1 else "RGB",
    )
    shape: dict[str, Any] = {"input_size": (model.in_chans, *model.image_size)}
    for name in ("mean", "std"):  # of colours for a grey network: their average, as timm's own loader has it
        values = tuple(data[name])
        same = len(values) == model.in_chans
        shape[name] = values if same else (sum(values) / len(values),) * model.in_chans
    if training:
        dataset.transform = create_transform(
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
    else:
        dataset.transform = create_transform(**shape, interpolation=data["interpolation"], crop_pct=data["crop_pct"])
    return dataset
