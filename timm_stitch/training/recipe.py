"""Train by a recipe: make its network, initialise it, train it.

A recipe holds `model`, `model_args`, `pretrained`, `init_images` and the fields of `TrainConfig`. Those of the papers
are shipped in the folder `recipes`; `train_recipe(NAME)` and `timm-stitch train NAME` run them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from ..data.config import check_data_dir
from ..data.dataset import build_dataset, classes_by_output
from ..data.loader import first_images
from ..data.processes import rank
from ..families.dense.creating import dense
from ..families.registry import require
from ..files import PathLike
from ..hub.loading import load
from ..network.stitchable import StitchableNetwork
from .least_squares import least_squares_init
from .linear_probe import linear_probe, trained_classifiers
from .recipe_file import FOLDER, Recipe, read_recipe, shipped_recipes
from .run_state import open_checkpoints
from .trainer import train

__all__ = ["FOLDER", "Recipe", "read_recipe", "shipped_recipes", "train_recipe"]

_logger = logging.getLogger(__name__)


def train_recipe(
    recipe: PathLike, overrides: Mapping[str, object] | None = None, *, device: str = "cpu", progress: bool = True
) -> tuple[StitchableNetwork, dict[str, Any]]:
    """Make the network of a recipe and train it, as `timm-stitch train` does.

    The stitching layers are initialised by least squares first, unless the recipe disables it or a run is resumed.

    Args:
        recipe: the name of a shipped recipe, or the path of a YAML file.
        overrides: values to use instead of the file's, e.g. `{"data_dir": "imagenet", "epochs": 15}`.
        device: the device of the initialisation; Accelerate chooses that of the training.
        progress: whether to show bars.

    Returns:
        The trained network, and the result of `train`: `steps`, `images`, `seconds` and `loss`.

    Raises:
        OSError: if there is no such recipe or no such images.
        TypeError: if a value has the wrong type.
        ValueError: if it is not a recipe, a field is unknown or contradicts another, or the images do not fit.

    Examples:
        >>> network, log = timm_stitch.train_recipe("deit_tsb", {"data_dir": "imagenet"})  # doctest: +SKIP
        >>> timm_stitch.train_recipe("no_such_recipe")
        Traceback (most recent call last):
        FileNotFoundError: there is no recipe 'no_such_recipe': expected a YAML file, or deit3_v2_bl, ...
    """
    spec = read_recipe(recipe, overrides)
    config = spec.config
    check_data_dir(config)  # before weights are fetched
    model = require(_make_network(spec, device), "named_data")
    store = open_checkpoints(config) if config.resume else None
    if store is None or store.last is None:
        _initialise(model, spec, progress)
    return model, train(model, config, progress=progress)


def _make_network(spec: Recipe, device: str) -> StitchableNetwork:
    """Make the network of a recipe, with a head for segmentation or depth if it names one.

    Raises:
        ValueError: if an argument of the head does not fit, or the network has such a head already.
    """
    network = load(spec.model, pretrained=spec.pretrained, device=device, **spec.model_args)
    if spec.dense is None:
        return network
    if network.objective is not None:
        raise ValueError(f"{spec.model!r} has a head for {network.objective.labels}s already: leave dense out.")
    unknown = sorted(set(spec.dense) - set(signature(dense).parameters) | {"model"} & set(spec.dense))
    if unknown:
        raise ValueError(f"dense has unknown arguments {', '.join(unknown)}: expected those of timm_stitch.dense.")
    arguments: dict[str, Any] = dict(spec.dense)
    with torch.random.fork_rng():
        torch.manual_seed(spec.config.seed)
        return dense(network, **arguments)


def _initialise(model: Any, spec: Recipe, progress: bool) -> None:
    """Initialise classifiers and stitching layers, as a recipe says."""
    if not (spec.init_images or spec.init_classifiers):
        return
    data = build_dataset(spec.config, model, training=True, augment=False)
    shuffle = not isinstance(data, IterableDataset)  # which has an order of its own

    def batches(count: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(spec.config.seed)
        return DataLoader(data, min(16, count), shuffle=shuffle, generator=generator)

    if spec.init_classifiers:
        kept = trained_classifiers(model, classes_by_output(model, data)) if spec.pretrained else []
        rates: list[float | None] = []
        if len(kept) < len(model.anchors):
            rates = linear_probe(model, batches(spec.init_classifiers), spec.init_classifiers, keep=kept)
        fitted = [f"anchor {n} ({rate:.1f} % right, left out)" for n, rate in enumerate(rates) if rate is not None]
        report = f"classifiers fitted to these images: {', '.join(fitted) or 'none'}"
        if kept:
            report += f"; kept, as trained on these classes: anchor {', '.join(map(str, kept))}"
        _logger.info(report)
        if progress and rank() == 0:
            print(f"{report}.", file=sys.stderr)
    if spec.init_images:
        images = first_images(batches(spec.init_images), spec.init_images)
        least_squares_init(model, images, method=spec.init_method, progress=progress)
