"""The YAML files of recipes: fields of a network and of `TrainConfig`, read and checked without torch.

Those of the papers are in the folder `recipes`; `recipe` runs them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..choices import Method
from ..data.fields import check, option, options, read
from ..data.yaml_text import load_yaml
from ..files import PathLike
from .config import TrainConfig, UnusedFieldError

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
    dense: Mapping[str, Any] | None = _network(
        None,
        "arguments of timm_stitch.dense, which puts a head for segmentation or depth on the network, such as "
        "{head: linear, num_classes: 9}; null for classification",
    )
    pretrained: bool = _network(True, "start from pretrained weights")
    init_images: int = _network(
        100,
        "images that initialise the stitching layers by least squares; 0, the default if the weights include trained "
        "stitching layers, leaves them as they are",
        range=(0, math.inf),
    )
    init_method: Method = _network(  # noqa: RUF009
        "joint",
        "least squares of a shared stitching layer: joint over its stitches, or the average of one solution for each, "
        "as in the authors' code",
        choices=Method,
    )
    init_classifiers: int = _network(
        0,
        "labelled images to which the anchors' classifiers are fitted before training, for new classes; a pretrained "
        "classifier of these classes stays, and 0 leaves all as they are",
        range=(0, math.inf),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.init_method != "joint" and not self.init_images:
            raise UnusedFieldError(
                f"init_method={self.init_method!r} has no effect: set init_images to 1 or more, or leave it out.",
                {"init_method": "init_images"},
            )
        if self.dense is not None and self.init_classifiers:
            raise UnusedFieldError(
                f"init_classifiers={self.init_classifiers} has no effect with dense: leave it out, the head learns.",
                {"init_classifiers": "dense"},
            )


def shipped_recipes() -> dict[str, Path]:
    """List the recipes of the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_recipe(recipe: PathLike, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Read a recipe, by a shipped name or a path, and check every value.

    Args:
        recipe: a name of `shipped_recipes`, or the path of a YAML file.
        overrides: values to use instead of the file's. `model_args` are merged over the file's, where null leaves one
            out. Another `model` drops the file's `init_…`, and the `model_args` that make its `snnet`. Values of the
            file that have no effect with these are left out, with a warning.

    Returns:
        The recipe, with the fields of the run as its `config`.

    Raises:
        OSError: if there is no such recipe.
        TypeError: if a value has the wrong type.
        ValueError: if it is not a recipe, a field is unknown or given twice, or two contradict each other.

    Examples:
        >>> recipe = timm_stitch.read_recipe("deit_tsb", {"data_dir": "imagenet", "epochs": 15})
        >>> recipe.config.teacher, recipe.config.repeated_aug, recipe.model_args
        ('regnety_160.deit_in1k', 3, {'drop_path_rate': 0.1})
    """
    overrides = dict(overrides or {})
    values = _read_file(recipe)
    if overrides.get("model", values.get("model")) != values.get("model"):
        values = _for_another_model(values, overrides)
    if isinstance(values.get("model_args"), Mapping) and isinstance(overrides.get("model_args"), Mapping):
        overrides["model_args"] = _merge(values["model_args"], overrides["model_args"])
    values = _shorten_warmup(values, overrides) | overrides
    while True:
        try:
            return _make_recipe(str(recipe), values)
        except UnusedFieldError as error:
            unused = [name for name, cause in error.causes.items() if cause in overrides and name not in overrides]
            if not unused:
                raise
            name, cause = unused[0], error.causes[unused[0]]
            _logger.warning(
                "the recipe's %s=%r has no effect with %s=%r: left out.", name, values.pop(name), cause, values[cause]
            )


def _make_recipe(name: str, values: Mapping[str, object]) -> Recipe:
    """Split the values of a recipe into those of its network and of its run, and check them."""
    of_network = {field: values[field] for field in options(Recipe) if field in values}
    if of_network.get("model") is None:
        raise ValueError(f"{name!r} names no model: expected model: snnet_deit_tsb.anchors_in1k, or another.")
    comes_trained = of_network.get("pretrained", True) and _comes_trained(str(of_network["model"]))
    if comes_trained and "init_images" not in of_network:
        of_network["init_images"] = 0
    config = TrainConfig.from_dict({field: value for field, value in values.items() if field not in of_network})
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


def _for_another_model(values: dict[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    """Leave out the fields of a recipe that make or initialise its own model, and name the `model_args` in a warning.

    The `model_args` of a registered network, such as drop-path, are settings of its training and stay.
    """
    model, own = overrides["model"], values.get("model_args") or {}
    left_out = {"init_images", "init_method", "init_classifiers"}
    if values.get("model") == "snnet":
        left_out.add("model_args")
        if own:
            _logger.warning("the recipe's model_args (%s) make its own model: not used for %r.", ", ".join(own), model)
    elif own:
        _logger.warning("the recipe's model_args %s apply to %r, too: null leaves one out.", own, model)
    return {name: value for name, value in values.items() if name not in left_out}


def _merge(own: Mapping[str, Any], overrides: Any) -> dict[str, Any]:
    """Merge dictionaries; None as an override leaves a key out."""
    return {key: value for key, value in {**own, **overrides}.items() if value is not None or key not in own}


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
    import timm

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
