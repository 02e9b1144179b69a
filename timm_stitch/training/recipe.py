"""Recipes: one YAML file of plain values says which network to make and how to train it.

A recipe holds `model`, `model_args`, `pretrained`, `init_images` and the fields of `TrainConfig`.
Those of the papers are shipped in the folder `recipes`; `timm-stitch train NAME` runs them.

Imports PyYAML and `config`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import yaml

from .config import TrainConfig

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A network and how to train it.

    Args:
        model: what `timm.create_model` makes it by.
        config: the training run.
        model_args: further arguments of `create_model`, such as `drop_path_rate`, one for each anchor.
        pretrained: begin from pretrained weights.
        init_images: how many images initialise the stitching layers by least squares; 0 leaves them as they are.
            Default 100, or 0 where the model's weights include trained stitching layers.
    """

    model: str
    config: TrainConfig
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    init_images: int = 100


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_recipe(recipe: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe, by a shipped name or a path, and check every value.

    Args:
        recipe: a name of `shipped_recipes`, or the path of a YAML file.
        overrides: values to use instead of the file's.

    Raises:
        OSError: if there is no such recipe.
        TypeError: if a value has the wrong type.
        ValueError: if it is no recipe, a field is unknown or given twice, or two contradict each other.
    """
    shipped = shipped_recipes()
    path = Path(recipe)
    if not path.exists():
        if str(recipe) not in shipped:
            raise FileNotFoundError(
                f"there is no recipe {str(recipe)!r}: expected a YAML file, or {', '.join(shipped)}."
            )
        path = shipped[str(recipe)]
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Strict)
    except yaml.YAMLError as error:
        raise ValueError(f"{str(recipe)!r} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{str(recipe)!r} is no recipe: expected a YAML file of fields and values.")
    values |= overrides or {}
    own: dict[str, Any] = {}
    for name, kind, default in (
        ("model", str, None),
        ("model_args", dict, {}),
        ("pretrained", bool, True),
        ("init_images", int, -1 if "init_images" not in values else None),
    ):
        value = values.pop(name, default)
        if name == "model" and value is None:
            raise ValueError(
                f"{str(recipe)!r} names no model: expected model: snnet_deit_tsb.anchors_in1k, or another."
            )
        if value == -1 and default == -1:  # stitching layers that come trained are left as they are
            value = 0 if own["pretrained"] and _comes_trained(own["model"]) else 100
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
            raise TypeError(f"{name}={value!r} does not fit in {str(recipe)!r}: expected {kind.__name__}.")
        own[name] = value
    config = TrainConfig.from_dict(values)
    if config.distillation != "none" and config.teacher is None:
        raise ValueError(f"distillation={config.distillation!r} has no teacher: set teacher to a timm model's name.")
    return Recipe(config=config, **own)


def _comes_trained(model: str) -> bool:
    """Whether a model's name stands for weights of stitching layers too: a folder, a Hub name, a tag of its own."""
    if ":" in model or Path(model).is_dir():
        return True
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model.split(".")[0]) else None
    return bool(cfg is not None and cfg.has_weights)


class _Strict(yaml.SafeLoader):
    """YAML in which a field can be given once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"fields given twice: {', '.join(twice)}. Keep one of each.")
        return super().construct_mapping(node, deep)
