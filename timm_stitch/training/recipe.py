"""Recipes: YAML files of plain values that name a network and its training.

A recipe holds `model`, `model_args`, `pretrained`, `init_images` and the fields of `TrainConfig`. Those of the papers
are shipped in the folder `recipes`; `train_recipe(NAME)` and `timm-stitch train NAME` run them.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch.utils.data import DataLoader, IterableDataset

from ..data.dataset import build_dataset, classes_by_output
from ..data.fields import check, option, options, read
from ..data.loader import first_images
from ..data.processes import rank
from ..data.yaml_text import load_yaml
from ..families.registry import require
from ..files import PathLike
from ..hub.loading import load
from ..network.stitchable import StitchableNetwork
from .config import TrainConfig
from .least_squares import least_squares_init
from .linear_probe import linear_probe, trained_classifiers
from .run_state import open_checkpoints
from .trainer import train

FOLDER = Path(__file__).parent / "recipes"

_logger = logging.getLogger(__name__)
_network = partial(option, group="network")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network and its training; each field has its help in `metadata["help"]`.

    Args:
        config: the training run.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if it is out of range.
    """

    config: TrainConfig
    model: str = _network(help="name of the network: a registered one, a folder, or hf-hub:USER/NAME")
    model_args: Mapping[str, Any] = _network(
        help="further arguments of create_model, such as drop_path_rate, one for each anchor", factory=dict
    )
    pretrained: bool = _network(True, "start from pretrained weights")
    init_images: int = _network(
        100,
        "images that initialise the stitching layers by least squares; 0, the default if the weights include trained "
        "stitching layers, leaves them as they are",
        range=(0, math.inf),
    )
    init_classifiers: int = _network(
        0,
        "labelled images to which the anchors' classifiers are fitted before training, for new classes; a pretrained "
        "classifier of these classes stays, and 0 leaves all as they are",
        range=(0, math.inf),
    )

    def __post_init__(self) -> None:
        check(self)


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
    model = require(load(spec.model, pretrained=spec.pretrained, device=device, **spec.model_args), "named_data")
    store = open_checkpoints(config) if config.resume else None
    if store is None or store.last is None:
        _initialise(model, spec, progress)
    return model, train(model, config, progress=progress)


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
        least_squares_init(model, first_images(batches(spec.init_images), spec.init_images), progress=progress)


def shipped_recipes() -> dict[str, Path]:
    """List the recipes of the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_recipe(recipe: PathLike, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Read a recipe, by a shipped name or a path, and check every value.

    Args:
        recipe: a name of `shipped_recipes`, or the path of a YAML file.
        overrides: values to use instead of the file's; another `model` drops the file's `init_…`, and the `model_args`
            that make its `snnet`.

    Raises:
        OSError: if there is no such recipe.
        TypeError: if a value has the wrong type.
        ValueError: if it is not a recipe, a field is unknown or given twice, or two contradict each other.
    """
    overrides = dict(overrides or {})
    values = _read_file(recipe)
    if overrides.get("model", values.get("model")) != values.get("model"):
        values = {name: value for name, value in values.items() if name not in _of_own_model(values)}
    values = _shorten_warmup(values, overrides) | overrides
    of_network = {name: values.pop(name) for name in options(Recipe) if name in values}
    if of_network.get("model") is None:
        raise ValueError(f"{str(recipe)!r} names no model: expected model: snnet_deit_tsb.anchors_in1k, or another.")
    comes_trained = of_network.get("pretrained", True) and _comes_trained(str(of_network["model"]))
    if comes_trained and "init_images" not in of_network:
        of_network["init_images"] = 0
    config = TrainConfig.from_dict(values)
    if config.distillation != "none" and config.teacher is None:
        raise ValueError(f"distillation={config.distillation!r} has no teacher: set teacher to a timm model's name.")
    return Recipe(config=config, **read(Recipe, of_network))


def _shorten_warmup(values: dict[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    """Shorten a recipe's warm-up in proportion, if the run is given so few epochs that it would not end."""
    own, epochs, warmup = values.get("epochs"), overrides.get("epochs"), values.get("warmup_epochs")
    numbers = all(isinstance(number, (int, float)) for number in (own, epochs, warmup))
    if "warmup_epochs" in overrides or not numbers or not 0 < epochs <= warmup < own:  # type: ignore[operator]
        return values
    shorter = warmup * epochs / own  # type: ignore[operator]
    _logger.warning("warmup_epochs is %g instead of %g, in proportion to epochs=%s.", shorter, warmup, epochs)
    return values | {"warmup_epochs": shorter}


def _of_own_model(values: Mapping[str, object]) -> tuple[str, ...]:
    """List the fields of a recipe that apply to its own model, not to another one in its place."""
    always = ("init_images", "init_classifiers")
    return (*always, "model_args") if values.get("model") == "snnet" else always


def _read_file(recipe: PathLike) -> dict[str, Any]:
    """Read the values of a recipe's file."""
    shipped, path = shipped_recipes(), Path(recipe)
    if not path.exists():
        if str(recipe) not in shipped:
            raise FileNotFoundError(
                f"there is no recipe {str(recipe)!r}: expected a YAML file, or {', '.join(shipped)}."
            )
        path = shipped[str(recipe)]
    try:
        values = load_yaml(path.read_text(encoding="utf-8"), _Strict)
    except yaml.YAMLError as error:
        raise ValueError(f"{str(recipe)!r} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{str(recipe)!r} is not a recipe: expected a YAML file of fields and values.")
    return values


def _comes_trained(model: str) -> bool:
    """Whether a model's name includes trained stitching layers: a folder, a Hub name, a tag with weights."""
    if ":" in model or Path(model).is_dir():
        return True
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model.split(".")[0]) else None
    return bool(cfg is not None and cfg.has_weights)


class _Strict(yaml.SafeLoader):
    """A YAML loader that refuses a field given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"fields given twice: {', '.join(twice)}. Keep one of each.")
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values
