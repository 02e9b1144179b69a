"""Keep an SN-Net in a folder that timm, transformers and people can read.

A folder holds `model.safetensors` (weights), `config.json` in timm's own form, and `stitches.json` (the
plan, the costs, every row known, and the fingerprint of the weights they belong to).

Imports timm, safetensors and the layers below.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from timm.models import save_for_hf
from torch import nn

from .evaluation import fingerprint
from .network import SNNet

STITCHES_FILE = "stitches.json"


def save_pretrained(
    model: SNNet, folder: str | os.PathLike[str], results: Iterable[Mapping[str, Any]] | None = None
) -> Path:
    """Write a network to a folder from which `timm.create_model("local-dir:FOLDER", pretrained=True)` makes it.

    Args:
        model: the network; its anchors must be models that timm can make by name.
        folder: where. The files are written beside and renamed one by one; other files are left alone.
        results: rows from `evaluate` to keep with it.

    Returns:
        The folder.

    Raises:
        ValueError: if timm cannot rebuild an anchor by name, or the results belong to other weights.
    """
    folder = Path(folder)
    mark = fingerprint(model)
    rows = [dict(row) for row in results or []]
    foreign = {row["weights"] for row in rows if row.get("weights")} - {mark}
    if foreign:
        raise ValueError(f"these results belong to other weights ({', '.join(foreign)}): evaluate this network again.")
    known = {row["stitch_id"]: {k: v for k, v in row.items() if k != "weights"} for row in rows}
    table = [row | known.get(row["stitch_id"], {}) for row in model.stitch_table()]
    model_args = rebuild_args(model)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".writing-{os.getpid()}"
    try:
        save_for_hf(model, str(beside), model_args=model_args, safe_serialization=True)
        config_file = beside / "config.json"
        config = json.loads(config_file.read_text())
        # transformers passes num_classes itself and trips over a second one; timm reads it from the top level.
        config["model_args"].pop("num_classes", None)
        config_file.write_text(json.dumps(config, indent=2) + "\n")
        stitches = {"weights": mark, "plan": model.plan.to_dict(), "stitches": table}
        (beside / STITCHES_FILE).write_text(json.dumps(stitches, indent=1) + "\n")
        for file in beside.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    model.known.update(known)
    return folder


def rebuild_args(model: SNNet) -> dict[str, Any]:
    """The arguments with which timm makes this network again.

    Raises:
        ValueError: if an anchor is not one that timm can make by name.
    """
    args = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in ("device", "dtype")}
    args.update(stitch_id=model.stitch_id, stitched_norm=model.norms_stitched)
    if model.pretrained_cfg["architecture"] != "snnet" or "anchors" in args:  # type: ignore[index]
        return args  # timm made it by name, and recorded how
    return args | {"anchors": [_anchor_args(anchor) for anchor in model.anchors], "plan": model.plan.to_dict()}


def _anchor_args(anchor: nn.Module | None) -> dict[str, Any]:
    name = (getattr(anchor, "pretrained_cfg", None) or {}).get("architecture")
    recorded = getattr(anchor, "_model_args", None)
    if anchor is None or not name or recorded is None:
        raise ValueError(
            f"timm cannot make the anchor {type(anchor).__name__} again by name, so a folder would be unreadable: "
            "create the anchors with timm.create_model('deit_tiny_patch16_224', embed_dim=…, depth=…)."
        )
    return {"architecture": name, **recorded}
