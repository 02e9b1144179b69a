"""`init`, `train` and `recalibrate`: the verbs that change a network's weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..choices import METHODS
from ..data.fields import about, read_text, type_hints
from ..data.fields import options as declared_by
from ..data.yaml_text import read_argument
from ..training.config import TrainConfig
from ..training.recipe_file import Recipe, read_recipe, shipped_recipes
from .numbers import in_range
from .options import (
    add_images,
    add_model,
    add_plan_options,
    add_verb,
    check_device,
    load_images,
    load_model,
    print_json,
    print_path,
)
from .weights import save_one_stitch

if TYPE_CHECKING:
    from .options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add `init`, `train` and `recalibrate` to the command line."""
    verb = add_verb(
        verbs,
        "init",
        run_init,
        "initialise stitching layers by least squares and save the network",
        "init deit_tiny_patch16_224 deit_small_patch16_224 --data-dir images --output net",
    )
    add_model(verb)
    add_plan_options(verb)
    add_images(verb, "train")
    verb.add_argument(
        "--images", type=int, action=in_range(1), default=100, help="images to fit the layers to (default: 100)"
    )
    verb.add_argument("--method", choices=METHODS, default="joint", help="fit all layers jointly, or each alone")
    verb.add_argument(
        "--seed", type=int, action=in_range(), default=0, help="seed of the choice of images (default: 0)"
    )
    verb.add_argument("--output", required=True, help="folder for the network")

    verb = add_verb(
        verbs,
        "train",
        run_train,
        "train by a recipe; each of its fields is an option --name value",
        "train deit_tsb --data-dir imagenet --epochs 15 --output my-snnet",
        usage="timm-stitch train RECIPE [--json] [--FIELD VALUE …]",
        allow_abbrev=False,
    )
    verb.add_argument(
        "recipe", help="YAML file of the fields below, or one of " + ", ".join(shipped_recipes()), metavar="RECIPE"
    )
    verb.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    _add_fields(verb)

    verb = add_verb(
        verbs,
        "recalibrate",
        run_recalibrate,
        "measure BatchNorm's statistics again, for all stitches or one",
        "recalibrate net --data-dir images --output net2",
    )
    add_model(verb)
    add_images(verb, "train")
    verb.add_argument(
        "--images", type=int, action=in_range(1), default=1024, help="images to measure on (default: 1024)"
    )
    verb.add_argument(
        "--stitch-id", type=int, action=in_range(0), help="stitch to measure alone and save to a safetensors file"
    )
    verb.add_argument(
        "--seed", type=int, action=in_range(), default=0, help="seed of the choice of images (default: 0)"
    )
    verb.add_argument("--output", required=True, help="folder for the network, or the file of one stitch")


def run_init(options: argparse.Namespace) -> None:
    """Initialise by least squares and save."""
    import torch

    from ..data.loader import first_images
    from ..hub.saving import save_pretrained
    from ..training.least_squares import least_squares_init

    model = load_model(options, "named_data")
    torch.manual_seed(options.seed)
    images = first_images(load_images(options, model, shuffled=True), options.images)
    least_squares_init(model, images, method=options.method, progress=True)
    save_pretrained(model, options.output)


def run_train(options: argparse.Namespace) -> None:
    """Train by a recipe."""
    from ..data.processes import rank
    from ..training.recipe import train_recipe

    check_device(options.device)
    fields = _read_fields(options)
    if fields.get("output") is None and read_recipe(options.recipe, fields).config.output is None:
        raise ValueError(
            "train has no place for the network and would throw it away: give --output FOLDER (in a recipe, output: "
            "FOLDER)."
        )
    _, log = train_recipe(options.recipe, fields, device=options.device)
    if rank() == 0:
        if options.json:
            print_json(log)
        else:
            print(f"{log['steps']} steps in {log['seconds']:.0f} s, loss {log['loss']:.3f}")


def _add_fields(verb: argparse.ArgumentParser) -> None:
    """Add an option for each field of a recipe, with the field's declared help."""
    groups: dict[str, Any] = {}
    for config in (Recipe, TrainConfig):
        for name, field in declared_by(config).items():
            heading = field.metadata["group"]
            if heading not in groups:
                groups[heading] = verb.add_argument_group(heading)
            text = f"{field.metadata['help']} ({about(field)})".replace("%", "%%")
            flag = f"--{name.replace('_', '-')}"
            groups[heading].add_argument(flag, dest=name, default=argparse.SUPPRESS, metavar="VALUE", help=text)
            if "_" in name:  # the name in a recipe works, too
                verb.add_argument(f"--{name}", dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _read_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Read the fields of a recipe that the command line gives, as values: `--lr 1e-4 --epochs=3`.

    Raises:
        ValueError: if there are other words.
    """
    unknown = [flag[2:].partition("=")[0].replace("-", "_") for flag in options.unknown if flag.startswith("--")]
    TrainConfig.from_dict(dict.fromkeys(unknown))  # refuses names that are unknown
    if options.unknown:
        raise ValueError(
            f"cannot read {' '.join(options.unknown)}: give fields as --name value, e.g. --lr 1e-4 --epochs 15."
        )
    hints = type_hints(Recipe) | type_hints(TrainConfig)
    names = [name for config in (Recipe, TrainConfig) for name in declared_by(config) if name in options]
    texts = {name: getattr(options, name) for name in names}
    return {name: read_text(text, read_argument(text), hints[name]) for name, text in texts.items()}


def run_recalibrate(options: argparse.Namespace) -> None:
    """Measure BatchNorm's statistics again and save."""
    import torch

    from ..data.loader import first_images
    from ..hub.saving import save_pretrained
    from ..training.recalibration import recalibrate

    model = load_model(options, "recalibrate")
    whole = None
    if options.stitch_id is not None:
        from ..hub.stitch_files import describe_whole

        whole = describe_whole(model)
        model = model.extract(options.stitch_id, copy=True)
    torch.manual_seed(options.seed)
    images = first_images(load_images(options, model, shuffled=True), options.images)
    if not recalibrate(model, images, options.stitch_id, progress=not options.json):
        raise ValueError("this network has no BatchNorm: there is nothing to recalibrate.")
    if options.stitch_id is not None:
        save_one_stitch(model, options, whole)
    else:
        print_path(save_pretrained(model, options.output), options.json)
