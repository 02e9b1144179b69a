"""`check`: a look at images before they are used. Imports the layers below."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import yaml

from ..data.config import DataConfig
from ..data.look import look_at_split, warnings_of
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
            dataset=options.dataset, data_dir=options.data_dir, train_split=split,
            dataset_args=yaml.safe_load(options.dataset_args),
        )  # fmt: skip
        splits.append(look_at_split(config, training=True))
    told = warnings_of(splits)
    if options.json:
        print(json.dumps({"splits": splits, "warnings": told}))
    else:
        for found in splits:
            print(_line(found))
        for line in told:
            print(f"warning: {line}")
    bad = sum(len(found.get("unreadable", ())) for found in splits)
    if bad:
        raise ValueError(f"{bad} images cannot be read: replace or remove them.")


def _line(found: dict[str, Any]) -> str:
    """A split in one line."""
    parts = [f"{found['split']}: {found['images']:,} images of {len(found['classes'])} classes"]
    for what in ("sizes", "modes"):
        counts = list(found.get(what, {}).items())
        more = f" and {len(counts) - 4} other" if len(counts) > 4 else ""
        parts.append(f"{what} {', '.join(f'{name} ({count})' for name, count in counts[:4])}{more}" if counts else "")
    return "; ".join(part for part in parts if part)
