"""Keep an SN-Net in a folder that timm, transformers and people can read.

A folder holds `model.safetensors` (weights), `config.json` in timm's own form, `stitches.json` (the plan, the
costs, every row known, and the fingerprint of the weights they belong to), `README.md` (the card) and, where
accuracies are known, `curve.png`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.plotting import plot_curve
from ..families.family import STITCHES_FILE
from ..families.registry import family_of
from ..files import atomic_files
from ..network.stitchable import StitchableNetwork
from ..network.weights import cache_fingerprint, fingerprint
from ..plan.results import Results
from .json_files import is_plain, plain_training
from .model_card import render_card

CARD_FILE, CURVE_FILE = "README.md", "curve.png"

_logger = logging.getLogger(__name__)


def save_pretrained(
    model: StitchableNetwork,
    folder: str | os.PathLike[str],
    results: Iterable[Mapping[str, Any]] | None = None,
    *,
    dataset: str | None = None,
    split: str | None = None,
    dataset_revision: str | None = None,
    base_models: Sequence[str] | None = None,
    license: str | None = None,
    label_names: Sequence[str] | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write a network to a folder from which `from_hub`, timm or transformers makes it again.

    timm by `timm.create_model("local-dir:FOLDER", pretrained=True)`; transformers by its Auto classes, where
    timm_stitch (of transformers' models `timm_stitch.text`) is imported.

    Args:
        model: the network; timm's models as its anchors must be such as timm can make by name. Of transformers' models
            the tokenizer that was stitched with them is saved beside.
        folder: where. The files are written beside and renamed one by one; other files, and what the user
            wrote in a card that is there, are left alone.
        results: rows from `evaluate` to keep with it, beside what the network knows of these weights.
        dataset, split, dataset_revision: the images that `results` come from, for rows that do not say so.
        base_models: Hub ids whose weights this network began with; default what it knows of that.
        license: of the weights, by the Hub's id; default what timm's configuration says.
        label_names: one name for each class.
        repo_id: `"user/name"` where it will be, for the card.

    Returns:
        The folder.

    Raises:
        ValueError: if timm cannot rebuild the network by name, the results belong to other weights, the
            labels do not fit, or a card that is there cannot be read.
        OSError: if it cannot be written; the folder is then as it was.
    """
    weights = fingerprint(model)
    cache_fingerprint(model, weights)
    images = {"dataset": dataset, "split": split, "revision": dataset_revision}
    rows, known = _rows(model, results or (), weights, {k: v for k, v in images.items() if v})
    stitches = {
        "version": 1,
        "weights": weights,
        "training": plain_training(model.trained),
        "plan": model.plan.to_dict(),
        "stitches": rows,
    }
    base_models = _base_models(model, repo_id) if base_models is None else base_models
    about = {"repo_id": repo_id, "license": license, "base_models": base_models}
    _write(model, Path(folder), stitches, label_names, about)
    model.results.replace(known)
    return Path(folder)


def _write(
    model: StitchableNetwork,
    folder: Path,
    stitches: Mapping[str, Any],
    label_names: Sequence[str] | None,
    about: Mapping[str, Any],
) -> None:
    """Write the files of a folder, all of them or none; `about` is what the card says beside what is in them."""
    old = folder / CARD_FILE
    existing = old.read_text(encoding="utf-8") if old.is_file() else None
    with atomic_files(folder) as beside:
        config = family_of(model).write(model, beside, label_names)
        (beside / STITCHES_FILE).write_text(json.dumps(stitches, indent=1) + "\n", encoding="utf-8")
        title = (about["repo_id"] or folder.name).rpartition("/")[2]
        picture = _draw(stitches["stitches"], beside / CURVE_FILE, title)
        card = render_card(stitches, config, picture=picture, existing=existing, **about)
        (beside / CARD_FILE).write_text(card, encoding="utf-8")
        if not picture:
            (folder / CURVE_FILE).unlink(missing_ok=True)


def _rows(
    model: StitchableNetwork, results: Iterable[Mapping[str, Any]], weights: str, images: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Results]:
    """One row a stitch for `stitches.json`, and what is known of these weights: given results over remembered ones."""
    given = [dict(row) for row in results]
    foreign = {str(row["weights"]) for row in given if row.get("weights")} - {weights}
    if foreign:
        raise ValueError(f"these results belong to other weights ({', '.join(foreign)}): evaluate this network again.")
    unknown = [row.get("stitch_id") for row in given if row.get("stitch_id") not in model.plan]
    if unknown:
        raise ValueError(f"the results hold stitches that the plan does not have: {unknown[:6]}.")
    for row in given:
        odd = sorted(str(key) for key, value in row.items() if not is_plain(str(key), value))
        if odd:
            raise ValueError(
                f"the row of stitch {row['stitch_id']} has {odd[0]}={row.get(odd[0])!r:.60}, which would not load "
                "again: expected texts of up to 1,024 letters, finite numbers, positive times, accuracies of 0 to 100."
            )
    if not given:
        return model.stitch_table(), model.results.value
    known = model.results.merged([{**images, **row} for row in given], weights)
    return model.table_with(known.rows), known


def _draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> bool:
    """Draw the curve of those rows that have an accuracy; without matplotlib say so."""
    evaluated = [row for row in rows if row.get("top1") is not None]
    if not evaluated:
        return False
    try:
        plot_curve(evaluated, path, title=title)
    except ImportError as error:
        _logger.warning("the card has no picture of the curve: %s", error)
        return False
    return True


def _base_models(model: StitchableNetwork, repo_id: str | None) -> list[str]:
    pulled = model.trained.get("pulled_from")
    return [pulled] if pulled and pulled != repo_id else list(model.trained.get("base_models", ()))
