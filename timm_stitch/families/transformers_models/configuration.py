"""The configuration of a stitched network of transformers' models, written and read.

A saved one may be a stranger's: what may stand in its fields is in `saved_fields`. Anchors are of classes that
transformers itself has for their model type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ...plan.bounds import MOST_ANCHORS, MOST_BLOCKS, MOST_NAME
from ...plan.stitch_plan import StitchPlan
from .saved_fields import MOST_LETTERS, MOST_LEVELS, check_anchor, check_count, check_own, is_kept
from .task_names import MODEL_TYPE
from .views import Opening, TransformersView

_NOT_KEPT = ("_name_or_path", "_model_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
# At the first `check_config` looks; where a network came from is said and not read.
_NOT_LOOKED_AT = ("anchors", "classes", "openings", "plan", "model_type", "_name_or_path")


class SNNetConfig(PreTrainedConfig):
    """What a stitched network of transformers' models is made of.

    Args:
        anchors: the configuration of each anchor, a dict with its `model_type`.
        classes: the class of each anchor.
        openings: how each is opened (`Opening.to_dict()`).
        plan: the stitches (`StitchPlan.to_dict()`).
        stitch_id: the stitch of calls that name none.
        only: the one stitch that an extracted network has; None for a whole one.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 as transformers has it

    anchors: list[Any] | None = None
    classes: list[Any] | None = None
    openings: list[Any] | None = None
    plan: dict[str, Any] | None = None
    stitch_id: int | None = None
    only: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.anchors:
            for name, value in _of_largest(self.anchors, self.openings).items():
                kwargs.setdefault(name, value)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', of what may stand in a stranger's file.

        Raises:
            ValueError: if it says more than what the network is.
        """
        check_own({name: value for name, value in config_dict.items() if name not in _NOT_LOOKED_AT})
        return super().from_dict(config_dict, **kwargs)


def _of_largest(anchors: list[Any], openings: list[Any] | None) -> dict[str, Any]:
    """What transformers asks of a configuration, from those of the anchors: sizes of the last, bounds of all."""
    last = anchors[-1] if isinstance(anchors[-1], Mapping) else {}
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "pad_token_id", "bos_token_id",
             "eos_token_id", "image_size", "num_channels", "patch_size")  # fmt: skip
    found = {name: last[name] for name in names if last.get(name) is not None}
    forms = openings[-1].get("forms") if openings and isinstance(openings[-1], Mapping) else None
    depth = {"num_hidden_layers": len(forms)} if isinstance(forms, (list, tuple)) and forms else {}
    return {**depth, **found, "tie_word_embeddings": False}


def make_config(views: Sequence[TransformersView], plan: StitchPlan, stitch_id: int | None) -> SNNetConfig:
    """The configuration of a network of these anchors."""
    last: Any = views[-1].anchor.config
    known = {name: getattr(last, name) for name in ("id2label", "label2id", "problem_type")}
    config = SNNetConfig(
        anchors=[anchor_dict(view.anchor.config) for view in views],
        classes=[type(view.anchor).__name__ for view in views],
        openings=[view.opening.to_dict() for view in views],
        plan=plan.to_dict(),
        stitch_id=stitch_id,
        **{name: value for name, value in known.items() if value is not None},
    )
    config.dtype = next(views[-1].anchor.parameters()).dtype
    return config


def anchor_dict(config: Any) -> dict[str, Any]:
    """The configuration of an anchor as it is kept: without where it came from, and what its type does not have.

    Raises:
        ValueError: if it could not be read again.
    """
    values = config.to_dict()
    if (values.get("quantization_config") or {}).get("quant_method") == "gguf":  # transformers reads that into floats
        del values["quantization_config"]
    kept = {k: v for k, v in values.items() if k not in _NOT_KEPT and is_kept(config.model_type, k, v)}
    check_anchor("the anchor", kept)
    return kept


def check_config(config: SNNetConfig) -> tuple[list[Any], list[Opening], StitchPlan]:
    """The anchors' configurations, their openings and the plan, if a configuration asks for no more than a network.

    Raises:
        ValueError: naming what is strange.
    """
    anchors, classes, openings = config.anchors, config.classes, config.openings
    if not isinstance(anchors, list) or not isinstance(classes, list) or not isinstance(openings, list):
        raise ValueError("config.json lacks its anchors, classes or openings: expected what save_pretrained writes.")
    if not len(anchors) == len(classes) == len(openings) or not 1 <= len(anchors) <= MOST_ANCHORS:
        raise ValueError(
            f"config.json has {len(anchors)} anchors, {len(classes)} classes and {len(openings)} openings: expected "
            f"as many of each, {MOST_ANCHORS} at most."
        )
    check_count([anchors, openings])
    made = []
    for i, anchor in enumerate(anchors):
        check_anchor(f"anchor {i} in config.json", anchor)
        anchor = _decoded(anchor)
        made.append(
            CONFIG_MAPPING[anchor["model_type"]].from_dict({k: v for k, v in anchor.items() if k != "model_type"})
        )
    opened = [_opening(f"opening {i} in config.json", data) for i, data in enumerate(openings)]
    return made, opened, StitchPlan.from_dict(config.plan or {})


def _decoded(value: Any) -> Any:
    """What JSON has no numbers for, as transformers writes it, as numbers."""
    if isinstance(value, Mapping):
        only = value.get("__float__") if len(value) == 1 else None
        return float(only) if only in ("Infinity", "-Infinity") else {k: _decoded(v) for k, v in value.items()}
    return [_decoded(v) for v in value] if isinstance(value, (list, tuple)) else value


def _opening(where: str, data: Any) -> Opening:
    try:
        opening = Opening.from_dict(data)
        counts = (opening.forms, opening.widths, opening.reductions, opening.positions)
        texts = ((opening.row,), opening.layouts, opening.before, opening.after, opening.tables)
        plain = all(isinstance(v, int) and 0 <= v <= MOST_LETTERS for values in counts for v in values) and all(
            isinstance(v, str) and len(v) <= 2 * MOST_NAME for values in texts for v in values
        )
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{where} garbles a field ({error!s:.80}): save the network again.") from None
    if not plain or not 1 <= len(opening.forms) <= MOST_BLOCKS or max(opening.forms) > MOST_LEVELS:
        raise ValueError(f"{where} has strange values: save the network again.")
    if not len(opening.forms) + 1 == len(opening.widths) == len(opening.reductions) == len(opening.layouts):
        raise ValueError(f"{where} has not one value for each boundary: save the network again.")
    return opening
