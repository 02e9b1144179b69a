"""The configuration of a stitched network of transformers' models, written and read.

A saved one may be a stranger's: `saved_fields` bounds what its fields may hold. Anchors are of classes that
transformers itself has for their model type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ...errors import one_line_errors
from ...plan.bounds import MOST_ANCHORS, MOST_BLOCKS, MOST_NAME
from ...plan.stitch_plan import StitchPlan
from ..family import Config
from .anchor_fields import COMMON_FIELDS, AnchorFields
from .saved_fields import (
    MOST_LETTERS,
    MOST_LEVELS,
    SHOWN,
    check_anchor,
    check_class_count,
    check_own,
    check_value_count,
    has_field,
    keep_known,
)
from .task_names import MODEL_TYPE
from .views import AnchorSpec, TransformersView

_DROPPED = ("_name_or_path", "_model_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
# `check_config` checks the first four; the origin of a network is shown and not read.
_CHECKED_ELSEWHERE = ("anchors", "classes", "openings", "plan", "model_type", "_name_or_path")


class SNNetConfig(AnchorFields, PreTrainedConfig):
    """What a stitched network of transformers' models is made of.

    Args:
        anchors: the configuration of each anchor, a dict with its `model_type`.
        classes: the class of each anchor.
        openings: the specs of the anchors (`AnchorSpec.to_dict()`).
        plan: the stitches (`StitchPlan.to_dict()`).
        stitch_id: the stitch of calls that name none.
        only: the one stitch that an extracted network has; None for a whole one.
        length: the tokens of the text for which costs are counted; None for the default.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 as transformers has it

    anchors: list[Any] | None = None
    classes: list[Any] | None = None
    openings: list[Any] | None = None
    plan: dict[str, Any] | None = None
    stitch_id: int | None = None
    only: int | None = None
    length: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.anchors:
            for name, value in _common_fields(self.anchors, self.openings).items():
                kwargs.setdefault(name, value)
        super().__post_init__(**kwargs)
        self.record_changes()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read what `to_dict` wrote, as transformers does, after checking a file that may be a stranger's.

        Raises:
            ValueError: if it holds more than what the network is.
        """
        check_own({name: value for name, value in config_dict.items() if name not in _CHECKED_ELSEWHERE})
        changes = {name: kwargs.pop(name) for name in list(kwargs) if _is_anchor_field(name, config_dict)}
        with one_line_errors("this config.json is not that of a network"):
            result = super().from_dict(config_dict, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for name, value in changes.items():
            setattr(config, name, value)
        return result

    def anchor_dicts(self) -> list[Any]:
        return [_anchor_dict(config) for config in self.anchor_configs]


def _is_anchor_field(name: str, config: Mapping[str, Any]) -> bool:
    """Whether an argument of `from_pretrained` is a field of the anchors of a `config.json`."""
    if name in ("num_labels", "output_attentions"):  # transformers takes these before there is a configuration
        return True
    anchors = config.get("anchors")
    kinds = [a.get("model_type") for a in anchors if isinstance(a, Mapping)] if isinstance(anchors, list) else []
    known = [kind for kind in kinds if isinstance(kind, str) and kind in CONFIG_MAPPING]
    return not hasattr(SNNetConfig, name) and any(has_field(CONFIG_MAPPING[kind], name) for kind in known)


def _common_fields(anchors: list[Any], openings: list[Any] | None) -> dict[str, object]:
    """The fields that transformers expects of every configuration: those of the last anchor."""
    last = anchors[-1] if isinstance(anchors[-1], Mapping) else {}
    arity = openings[-1].get("forms") if openings and isinstance(openings[-1], Mapping) else None
    depth = {"num_hidden_layers": len(arity)} if isinstance(arity, (list, tuple)) and arity else {}
    present = {name: last[name] for name in COMMON_FIELDS if last.get(name) is not None}
    return {**depth, **present, "tie_word_embeddings": False}


def make_config(views: Sequence[TransformersView], plan: StitchPlan, stitch_id: int | None) -> SNNetConfig:
    """Make the configuration of a network of these anchors."""
    last = views[-1].anchor
    labels = {name: getattr(last.config, name) for name in ("id2label", "label2id", "problem_type")}
    config = SNNetConfig(
        anchors=[_anchor_dict(view.anchor.config) for view in views],
        classes=[type(view.anchor).__name__ for view in views],
        openings=[view.spec.to_dict() for view in views],
        plan=plan.to_dict(),
        stitch_id=stitch_id,
        **{name: value for name, value in labels.items() if value is not None},
    )
    config.dtype = next(last.parameters()).dtype
    config._attn_implementation = last.config._attn_implementation
    return config


def _anchor_dict(config: PreTrainedConfig) -> Config:
    """The configuration of an anchor as it is kept: without its origin, and what its type does not have.

    Raises:
        ValueError: if it could not be read again.
    """
    values = config.to_dict()
    if (values.get("quantization_config") or {}).get("quant_method") == "gguf":  # transformers reads that into floats
        del values["quantization_config"]
    kept = keep_known(type(config), {k: v for k, v in values.items() if k not in _DROPPED})
    check_anchor("the anchor", kept)
    return kept


def check_config(config: SNNetConfig) -> tuple[list[PreTrainedConfig], list[AnchorSpec], StitchPlan]:
    """Read the anchors' configurations, their specs and the plan, if a configuration asks for no more than a network.

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
    check_value_count([anchors, openings])  # of all anchors together
    for i, anchor in enumerate(anchors):
        check_anchor(f"anchor {i} in config.json", anchor)
    check_class_count(anchors)
    configs = []
    for anchor in anchors:
        fields = {name: _decode(value) for name, value in anchor.items() if name not in ("model_type", *SHOWN)}
        configs.append(CONFIG_MAPPING[anchor["model_type"]].from_dict(fields))
    config.apply_changes(configs)
    if config.num_labels != configs[-1].num_labels:
        raise ValueError(
            f"the configuration has num_labels={config.num_labels} and the anchors {configs[-1].num_labels}: load the "
            "network without num_labels or id2label, or stitch anchors that have as many."
        )
    specs = [_read_spec(f"opening {i} in config.json", data) for i, data in enumerate(openings)]
    return configs, specs, StitchPlan.from_dict(config.plan or {})


def _decode(value: Any) -> object:
    """Decode numbers that JSON does not have, as transformers writes them, and leave out where models came from."""
    if isinstance(value, Mapping):
        number = value.get("__float__") if len(value) == 1 else None
        if number in ("Infinity", "-Infinity"):
            return float(str(number))
        return {k: _decode(v) for k, v in value.items() if k not in SHOWN}
    return [_decode(v) for v in value] if isinstance(value, (list, tuple)) else value


def _read_spec(where: str, data: Any) -> AnchorSpec:
    try:
        spec = AnchorSpec.from_dict(data)
        counts = (spec.output_arity, spec.widths, spec.reductions, spec.positions)
        texts = ((spec.layers_path,), spec.layouts, spec.before, spec.after, spec.droppable_embeddings)
        plain = all(isinstance(v, int) and 0 <= v <= MOST_LETTERS for values in counts for v in values) and all(
            isinstance(v, str) and len(v) <= 2 * MOST_NAME for values in texts for v in values
        )
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{where} garbles a field ({error!s:.80}): save the network again.") from None
    if not plain or not 1 <= len(spec.output_arity) <= MOST_BLOCKS or max(spec.output_arity) > MOST_LEVELS:
        raise ValueError(f"{where} has strange values: save the network again.")
    if not len(spec.output_arity) + 1 == len(spec.widths) == len(spec.reductions) == len(spec.layouts):
        raise ValueError(f"{where} has not one value for each boundary: save the network again.")
    return spec
