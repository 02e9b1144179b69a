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

import timm
from safetensors.torch import save_file
from torch import Tensor, nn

from ..evaluation.plotting import plot_curve
from ..families.timm_models.arguments import check_arguments
from ..families.timm_models.network import SNNet
from ..families.timm_models.timm_compat import save_config_for_hf
from ..files import files_in
from ..network.stitchable import StitchableNetwork
from ..network.weights import fingerprint, split_norm
from ..plan.results import Results
from .json_files import CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE, is_plain, plain_training
from .model_card import render_card

CARD_FILE, CURVE_FILE = "README.md", "curve.png"
_RUNTIME = ("device", "dtype", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")

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
    mark = fingerprint(model)
    images = {"dataset": dataset, "split": split, "revision": dataset_revision}
    rows, known = _rows(model, results or (), mark, {k: v for k, v in images.items() if v})
    _check_labels(model, label_names)
    stitches = {
        "version": 1,
        "weights": mark,
        "training": plain_training(model.trained),
        "plan": model.plan.to_dict(),
        "stitches": rows,
    }
    base_models = _base_models(model, repo_id) if base_models is None else base_models
    about = {"repo_id": repo_id, "license": license, "base_models": base_models}
    model_args = rebuild_args(model) if isinstance(model, SNNet) else None
    _write(model, Path(folder), model_args, stitches, label_names, about)
    model.results = known
    return Path(folder)


def _check_labels(model: StitchableNetwork, label_names: Sequence[str] | None) -> None:
    if label_names is not None and isinstance(model, SNNet) and len(label_names) != model.num_classes:
        raise ValueError(
            f"label_names has {len(label_names)} names for {model.num_classes} classes: give one for each."
        )


def _write(
    model: StitchableNetwork,
    folder: Path,
    model_args: dict[str, Any] | None,
    stitches: Mapping[str, Any],
    label_names: Sequence[str] | None,
    about: Mapping[str, Any],
) -> None:
    """Write the files of a folder, all of them or none; `about` is what the card says beside what is in them."""
    old = folder / CARD_FILE
    existing = old.read_text(encoding="utf-8") if old.is_file() else None
    with files_in(folder) as beside:
        if isinstance(model, SNNet):
            save_file(_weights(model), beside / WEIGHTS_FILE)
            save_config_for_hf(model, str(beside / CONFIG_FILE), model_args=model_args)
            config = _edit_config(beside / CONFIG_FILE, model, label_names)
        else:
            config = _write_transformers(model, beside, label_names)
        (beside / STITCHES_FILE).write_text(json.dumps(stitches, indent=1) + "\n", encoding="utf-8")
        title = (about["repo_id"] or folder.name).rpartition("/")[2]
        picture = _draw(stitches["stitches"], beside / CURVE_FILE, title)
        card = render_card(stitches, config, picture=picture, existing=existing, **about)
        (beside / CARD_FILE).write_text(card, encoding="utf-8")
        if not picture:
            (folder / CURVE_FILE).unlink(missing_ok=True)


def _write_transformers(model: Any, beside: Path, label_names: Sequence[str] | None) -> dict[str, Any]:
    """The files of a network of transformers' models but for rows and card; returns what is in config.json."""
    from ..families.transformers_models.files import write_network

    return write_network(model, beside, WEIGHTS_FILE, label_names)


def _rows(
    model: StitchableNetwork, results: Iterable[Mapping[str, Any]], mark: str, images: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Results]:
    """One row a stitch for `stitches.json`, and what is known of these weights: given results over remembered ones."""
    given = [dict(row) for row in results]
    foreign = {str(row["weights"]) for row in given if row.get("weights")} - {mark}
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
    before = model.results
    try:
        model.remember([{**images, **row} for row in given], mark)
        return model.stitch_table(), model.results
    finally:
        model.results = before


def _weights(model: SNNet) -> dict[str, Tensor]:
    """The tensors as a file has them: each contiguous and with memory of its own, whatever they are in the network."""
    found: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in split_norm(model.state_dict())[0].items():  # config.json says of the norm
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in places or memory.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        places.add(memory.data_ptr())
        found[name] = tensor
    return found


def _edit_config(path: Path, model: SNNet, label_names: Sequence[str] | None) -> dict[str, Any]:
    """Change what timm wrote to what both timm and transformers read; returns it."""
    config: dict[str, Any] = json.loads(path.read_text())
    # transformers passes num_classes itself and trips over a second one; timm reads it from the top level.
    config["model_args"].pop("num_classes", None)
    if len({_pooling(anchor) for anchor in model.anchors}) > 1:  # each anchor pools in its own way
        config["model_args"].pop("global_pool", None)
    own: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    for field in ("label_names", "label_descriptions"):
        config["pretrained_cfg"].pop(field, None)
        if (known := own.get(field)) and len(known) == model.num_classes:
            config.setdefault(field, known)
    if label_names is not None:
        config["label_names"] = list(label_names)
        config.pop("label_descriptions", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
    return config


def _pooling(anchor: nn.Module) -> str:
    """How an anchor pools, by timm's name."""
    pool: Any = getattr(anchor, "global_pool", None)
    return str(getattr(pool, "pool_type", pool) if isinstance(pool, nn.Module) else pool)


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


def check_savable(model: StitchableNetwork) -> None:
    """Refuse, before there is anything to save, a network that could not be made again.

    Raises:
        ValueError: saying why.
    """
    if isinstance(model, SNNet):
        rebuild_args(model)
    else:
        from ..families.transformers_models.files import check_whole

        check_whole(model)


def rebuild_args(model: SNNet) -> dict[str, Any]:
    """The arguments with which timm makes this network again.

    Raises:
        ValueError: if an anchor is not one that timm can make by name, or making it again by name gives
            another network.
    """
    if any(view.is_partial for view in model.views):
        raise ValueError(
            f"this is a part of a larger network (stitch {model.stitch_id}), which timm cannot make again: save "
            "the larger one, from which from_hub(folder, extract=…) loads this stitch alone; or keep this one's "
            "weights with safetensors.torch.save_file(model.state_dict(), path)."
        )
    args = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in _RUNTIME}
    args.update(stitch_id=model.stitch_id, stitched_norm=model.stitched_norm)
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    name = str(cfg["architecture"])
    if name != "snnet":
        _check_rebuilt(model, name, args)
        return args  # timm made it by name, and recorded how
    if "anchors" in args:
        specs = [{"architecture": a} if isinstance(a, str) else dict(a) for a in args["anchors"]]
        args["anchors"] = [{k: v for k, v in spec.items() if k not in _RUNTIME} for spec in specs]
    else:
        args |= {"anchors": [_anchor_args(anchor) for anchor in model.anchors], "plan": model.plan.to_dict()}
    _check_rebuilt(model, name, args)
    return args


def _check_rebuilt(model: SNNet, name: str, args: Mapping[str, Any]) -> None:
    """Make the network again without memory, and compare."""
    check_arguments(args, name)
    shape = {"num_classes": model.num_classes, "in_chans": model.in_chans}
    again = timm.create_model(name, device="meta", **{**shape, **args, **shape})
    own, theirs = model.state_dict(), again.state_dict()
    differ = sorted({*own} ^ {*theirs} | {k for k in own if k in theirs and own[k].shape != theirs[k].shape})
    if differ or again.plan != model.plan:
        raise ValueError(
            f"timm would make another network from these anchors' names ({len(differ)} tensors differ, e.g. "
            f"{(differ or ['the plan'])[0]!r}): change anchors by arguments of timm.create_model, not by replacing "
            "modules."
        )


def _anchor_args(anchor: nn.Module | None) -> dict[str, Any]:
    name = (getattr(anchor, "pretrained_cfg", None) or {}).get("architecture")
    recorded = getattr(anchor, "_model_args", None)
    if anchor is None or not name or recorded is None:
        raise ValueError(
            f"timm cannot make the anchor {type(anchor).__name__} again by name, so a folder would be unreadable: "
            "create the anchors with timm.create_model('deit_tiny_patch16_224', embed_dim=…, depth=…)."
        )
    return {"architecture": name, **{k: v for k, v in recorded.items() if k not in _RUNTIME}}
