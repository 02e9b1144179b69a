"""Networks by the names of their anchors: folders of transformers' models, and those on the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from ...plan.enumeration import PlanOptions
from .network import StitchedModel
from .stitching import stitch_transformers


def make_network(names: Sequence[str], device: str, arguments: Mapping[str, Any]) -> StitchedModel:
    """Stitch models that lie in folders or on the Hub; each is of the class that its configuration names.

    Args:
        names: the folders and repositories, with `local-dir:` or `hf-hub:` before them, fastest first.
        device: the device of the network.
        arguments: the fields of `PlanOptions`, and `stitch_id`.

    Raises:
        ValueError: if an argument is unknown, or a model names no class of transformers.
    """
    known = {name: arguments[name] for name in PlanOptions.__dataclass_fields__ if name in arguments}
    unknown = sorted(set(arguments) - {*known, "stitch_id"})
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} cannot be set for models of transformers: save the models as you want them, then "
            "name their folders."
        )
    models = [_load_anchor(name.partition(":")[2]) for name in names]
    network: Any = stitch_transformers(models, PlanOptions(**known), arguments.get("stitch_id"), ())
    return network if device in ("cpu", "meta") else network.to(device)  # type: ignore[no-any-return]


def _load_anchor(place: str) -> Any:
    """Load one model with its own weights; no code comes with it."""
    repo_id, _, revision = (place, "", "") if Path(place).is_dir() else place.partition("@")
    where: dict[str, Any] = {"revision": revision} if revision else {}
    config = transformers.AutoConfig.from_pretrained(repo_id, trust_remote_code=False, **where)
    kind = getattr(transformers, str((config.architectures or [""])[0]), None)
    if kind is None:
        raise ValueError(f"{place!r} names no class of transformers ({config.architectures}): save the model again.")
    return kind.from_pretrained(repo_id, use_safetensors=True, **where)
