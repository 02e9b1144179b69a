"""Save a network to a folder that timm, transformers and people can read.

A folder holds `model.safetensors` (weights), `config.json` in the library's own form, `stitches.json` (the plan, the
costs, all known rows, and the fingerprint of their weights), `README.md` (the model card) and, where accuracies are
known, `curve.png`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..evaluation.plotting import plot_curve
from ..families.family import CONFIG_FILE, STITCHES_FILE
from ..families.registry import family_of
from ..files import PathLike, atomic_files, require_name
from ..network.stitchable import StitchableNetwork
from ..network.weights import cache_fingerprint, fingerprint, kept_state, sum_tensors
from ..plan.metrics import main_score
from ..plan.results import Results, Row, Rows
from .json_files import is_plain, plain_training, sum_json, sum_network
from .model_card import render_card
from .reload_check import check_reloaded

CARD_FILE, CURVE_FILE = "README.md", "curve.png"

_logger = logging.getLogger(__name__)


def save_pretrained(
    model: StitchableNetwork,
    folder: PathLike,
    results: Iterable[Row] | None = None,
    *,
    dataset: str | None = None,
    split: str | None = None,
    dataset_revision: str | None = None,
    base_models: Sequence[str] | None = None,
    license: str | None = None,
    label_names: Sequence[str] | None = None,
    repo_id: str | None = None,
    check: bool = True,
) -> Path:
    """Save a network to a folder from which `from_hub`, timm or transformers loads it.

    timm loads it by `timm.create_model("local-dir:FOLDER", pretrained=True)`, transformers by its Auto classes after
    `import timm_stitch` (for networks of transformers' models `import timm_stitch.text`).

    Args:
        model: the network. timm must be able to make its anchors by name. Networks of transformers' models are saved
            with their tokenizer.
        folder: the folder. Other files in it stay, and so does the user's text in an existing card.
        results: rows of `evaluate` to save, in addition to the network's own results.
        dataset, split, dataset_revision: the images of `results`, for rows that do not name them.
        base_models: the Hub ids whose weights this network began with; default those in its history.
        license: the license of the weights, by the Hub's id; default that in timm's configuration.
        label_names: the names of the classes.
        repo_id: the future `"user/name"` on the Hub, for the card.
        check: whether to load the network from the new files and compare outputs before the folder changes. This
            needs the memory of a second network.

    Returns:
        The folder.

    Raises:
        ValueError: if timm cannot rebuild the network by name, another network would be loaded, the results belong to
            other weights, the labels do not fit, or an existing card cannot be read.
        OSError: if it cannot be written; the folder is then unchanged.

    Examples:
        >>> import tempfile, timm_stitch
        >>> model = timm_stitch.load("snnet_levit_192_256", pretrained=False)
        >>> folder = timm_stitch.save_pretrained(model, tempfile.mkdtemp())
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors', 'stitches.json']
    """
    folder = require_name(folder)
    weights = fingerprint(model)
    cache_fingerprint(model, weights)
    images = {"dataset": dataset, "split": split, "revision": dataset_revision}
    rows, merged = _rows(model, results or (), weights, {k: v for k, v in images.items() if v})
    stitches = {
        "version": 1,
        "weights": weights,
        "tensors": sum_tensors(kept_state(model)),
        "training": plain_training(model.trained),
        "plan": model.plan.to_dict(),
        "stitches": rows,
    }
    base_models = _base_models(model, repo_id) if base_models is None else base_models
    old_card = folder / CARD_FILE
    existing = old_card.read_text(encoding="utf-8") if old_card.is_file() else None
    with atomic_files(folder) as temporary:
        config = family_of(model).write(model, temporary, label_names)
        written = json.loads((temporary / CONFIG_FILE).read_text(encoding="utf-8"))
        sums = {"config": sum_json(written), "network": sum_network(written)}
        sums["sum"] = sum_json(json.loads(json.dumps(stitches)))
        (temporary / STITCHES_FILE).write_text(json.dumps({**stitches, **sums}, indent=1) + "\n", encoding="utf-8")
        if check:
            check_reloaded(model, temporary)
        picture = _draw(rows, temporary / CURVE_FILE, (repo_id or folder.name).rpartition("/")[2])
        card = render_card(
            stitches, config, repo_id=repo_id, base_models=base_models, license=license, picture=picture,
            existing=existing,
        )  # fmt: skip
        (temporary / CARD_FILE).write_text(card, encoding="utf-8")
        if not picture:
            (folder / CURVE_FILE).unlink(missing_ok=True)
    model.results.replace(merged)
    return folder


def _rows(
    model: StitchableNetwork, results: Iterable[Row], weights: str, images: Mapping[str, str]
) -> tuple[Rows, Results]:
    """Make the rows of `stitches.json`, and merge new results over the network's own."""
    new = list(results)
    foreign = {str(row["weights"]) for row in new if row.get("weights")} - {weights}
    if foreign:
        raise ValueError(f"these results belong to other weights ({', '.join(foreign)}): evaluate this network again.")
    unknown = [row.get("stitch_id") for row in new if row.get("stitch_id") not in model.plan]
    if unknown:
        raise ValueError(f"the results hold stitches that the plan does not have: {unknown[:6]}.")
    _check_plain(new)
    if not new:
        table = model.stitch_table()
        _check_plain(table)
        return table, model.results.value
    merged = model.results.merged([{**images, **row} for row in new], weights)
    table = model.table_with(merged.rows)
    _check_plain(table)
    return table, merged


def _check_plain(rows: Iterable[Row]) -> None:
    """Refuse rows that would not load again."""
    for row in rows:
        for key in sorted(row, key=str):
            if not is_plain(str(key), row[key]):
                raise ValueError(
                    f"the row of stitch {row['stitch_id']} has {key}={row[key]!r:.60}, which would not load again: "
                    "expected texts of up to 1,024 letters, finite numbers, positive times, accuracies of 0 to 100."
                )


def _draw(rows: Rows, path: Path, title: str) -> bool:
    """Draw the curve of the rows that have an accuracy; warn if matplotlib is missing."""
    score = main_score(rows)
    evaluated = [row for row in rows if row.get(score) is not None]
    if not evaluated:
        return False
    try:
        plot_curve(evaluated, path, title=title, score=score)
    except ImportError as error:
        _logger.warning("the card has no picture of the curve: %s", error)
        return False
    return True


def _base_models(model: StitchableNetwork, repo_id: str | None) -> list[str]:
    pulled = model.trained.get("pulled_from")
    return [pulled] if pulled and pulled != repo_id else list(model.trained.get("base_models", ()))
