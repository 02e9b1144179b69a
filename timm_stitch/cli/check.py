"""`check`: an inspection of images before they are used."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .numbers import in_range
from .options import add_labels, add_verb, label_fields, print_json

if TYPE_CHECKING:
    from .options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add `check` to the command line."""
    verb = add_verb(
        verbs,
        "check",
        run_check,
        "images and classes of each split, unreadable and skipped files, sizes and modes",
        "check my-images",
    )
    verb.add_argument(
        "data_dir", metavar="DATA",
        help="folder of splits of class folders, of 'images' and 'masks' or 'depth', or the reader's root",
    )  # fmt: skip
    verb.add_argument("--dataset", help="timm reader: torch/…, hfds/…, wds/…, tfds/…")
    verb.add_argument(
        "--splits", nargs="+", default=["train", "validation"], help="splits to check (default: train validation)"
    )
    verb.add_argument("--dataset-args", default="null", metavar="YAML", help="further arguments of the reader")
    verb.add_argument(
        "--num-classes", type=int, action=in_range(1, 65536),
        help="classes in whose range the labels of masks must be (default: not compared)",
    )  # fmt: skip
    add_labels(verb)


def run_check(options: argparse.Namespace) -> None:
    """Print a summary of the images, and fail if some cannot be read."""
    from ..data.config import DataConfig
    from ..data.look import check_unreadable, find_warnings, inspect_split, summary
    from ..data.yaml_text import read_argument

    splits = []
    for split in options.splits:
        config = DataConfig(
            dataset=options.dataset, data_dir=options.data_dir, val_split=split,
            dataset_args=read_argument(options.dataset_args), **label_fields(options),
        )  # fmt: skip
        splits.append(inspect_split(config, training=False, classes=options.num_classes))
    warnings = find_warnings(splits)
    if options.json:
        print_json({"splits": splits, "warnings": warnings})
    else:
        for split in splits:
            print(summary(split))
        for warning in warnings:
            print(f"warning: {warning}")
    check_unreadable(splits)
