"""From models of transformers at hand to a stitched network."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...network.compatibility import number_duplicates, warn_of_order
from ...plan.enumeration import PlanOptions
from .checks import check_fit, check_tokenizers
from .configuration import make_config
from .network import StitchedModel
from .networks import TASKS
from .opening import open_anchor


def stitch_transformers(
    models: Sequence[PreTrainedModel],
    options: PlanOptions,
    stitch_id: int | None,
    tokenizers: Sequence[PreTrainedTokenizerBase],
) -> StitchedModel:
    """Stitch models of transformers; the arguments are those of `timm_stitch.stitch`.

    Raises:
        TypeError: if a model cannot be opened as an anchor.
        ValueError: if the models do not fit each other, or there is no such plan.
    """
    check_tokenizers(tokenizers, len(models))
    views = [open_anchor(model) for model in models]
    task = check_fit(views)
    anchors = number_duplicates([view.describe(_name(view.anchor)) for view in views])
    network = TASKS[task.name](make_config(views, options.make(anchors), stitch_id), views)
    network.train(models[-1].training)
    if network.can_generate():
        network.generation_config = copy.deepcopy(models[-1].generation_config)
    if tokenizers:
        network.tokenizer = tokenizers[-1]
    if options.plan is None:
        warn_of_order(network)
    return network


def _name(model: PreTrainedModel) -> str:
    """What people call a model: the last part of where it came from, or else its type and size."""
    config = model.config
    origin = str(getattr(config, "_name_or_path", "") or "").rstrip("/").rpartition("/")[2]
    if origin:
        return origin[:100]
    text = config.get_text_config()
    depth, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    return f"{config.model_type}_{depth}x{width}" if depth and width else config.model_type
