"""`check`: a look at images before they are used."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ..data.config import DataConfig
from ..data.look import check_unreadable, line_of, look_at_split, warnings_of
from ..data.yaml_text import read_argument
from .options import add_verb

if TYPE_CHECKING:
    from .options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add `check` to the command line."""
    verb = add_verb(
        verbs,
        "check",
        run_check,
        "images and classes of each split, files that cannot be read or are passed over, sizes and modes",
        "check my-images",
    )
    verb.add_argument("data_dir", metavar="DATA", help="a folder of splits of class folders, or the reader's root")
    verb.add_argument("--dataset", help="a timm reader: torch/…, hfds/…, wds/…, tfds/…")
    verb.add_argument("--splits", nargs="+", default=["train", "validation"], help="default: train validation")
    verb.add_argument("--dataset-args", default="null", metavar="YAML", help="of the reader")


def run_check(options: argparse.Namespace) -> None:
    """Print what the images are, and fail where some cannot be read."""
    splits = []
    for split in options.splits:
        config = DataConfig(
            dataset=options.dataset, data_dir=options.data_dir, val_split=split,
            dataset_args=read_argument(options.dataset_args),
        )  # fmt: skip
        splits.append(look_at_split(config, training=False))
    told = warnings_of(splits)
    if options.json:
        print(json.dumps({"splits": splits, "warnings": told}))
    else:
        for found in splits:
            print(line_of(found))
        for line in told:
            print(f"warning: {line}")
    check_unreadable(splits)
