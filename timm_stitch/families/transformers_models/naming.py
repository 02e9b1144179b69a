"""Networks by the names of their anchors: folders of transformers' models, and those on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from ...plan.enumeration import PlanOptions
from ..family import Options
from .network import StitchedModel
from .stitching import stitch_transformers


def make_network(names: Sequence[str], device: str, arguments: Options) -> StitchedModel:
    """Stitch models that lie in folders or on the Hub, as `Family.make`; each is of the class that its config names.

    Raises:
        ValueError: if an argument is unknown, or a model names no class of transformers.
    """
    options = {name: arguments[name] for name in PlanOptions.__dataclass_fields__ if name in arguments}
    unknown = sorted(set(arguments) - {*options, "stitch_id"})
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} cannot be set for models of transformers: save the models as you want them, then "
            "name their folders."
        )
    models = [_load_anchor(name.partition(":")[2]) for name in names]
    network = stitch_transformers(models, PlanOptions(**options), arguments.get("stitch_id"), ())
    if device not in ("cpu", "meta"):
        nn.Module.to(network, device)
    return network


def _load_anchor(source: str) -> PreTrainedModel:
    """Load one model with its own weights; no code comes with it."""
    repo_id, _, revision = (source, "", "") if Path(source).is_dir() else source.partition("@")
    where: dict[str, Any] = {"revision": revision} if revision else {}
    config = transformers.AutoConfig.from_pretrained(repo_id, trust_remote_code=False, **where)
    cls = getattr(transformers, str((config.architectures or [""])[0]), None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise ValueError(f"{source!r} names no class of transformers ({config.architectures}): save the model again.")
    model: PreTrainedModel = cls.from_pretrained(repo_id, use_safetensors=True, **where)
    return model
