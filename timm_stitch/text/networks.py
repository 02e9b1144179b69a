"""Stitched networks of transformers' models: a class for each task, models of transformers themselves.

They are loaded, saved, trained, asked and generated with as any model of transformers; what is stitched in them is that
of `network.stitchable`. An anchor's own forward says what comes out: a stitch gives what its back anchor gives.

Imports transformers, torch and the layers below.
"""

from __future__ import annotations

import copy as copying
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from ..anchors.budget import bounded
from ..anchors.keywords import Keywords
from ..anchors.transformers_opening import probe, reopened
from ..anchors.transformers_view import TransformersView
from ..network.stitchable import StitchableNetwork, StitchIds, is_row
from ..plan.costs import PlanCosts
from ..plan.stitch_plan import Stitch, StitchPlan
from .cache import NAMES
from .checks import check_inputs
from .configuration import SNNetConfig, anchor_dict, check_config
from .counting import measure
from .generating import Generates
from .tasks import ALL, Task, class_of

LENGTH = 128  # tokens for which costs are counted, where nobody says

# What an anchor tells its network, which transformers looks for in direct children alone.
_TOLD = (
    "all_tied_weights_keys", "_no_split_modules", "_keep_in_fp32_modules", "_keep_in_fp32_modules_strict",
    "_skip_keys_device_placement", "_keys_to_ignore_on_load_unexpected", "_keys_to_ignore_on_load_missing",
    "_keys_to_ignore_on_save",
)  # fmt: skip


class StitchedModel(StitchableNetwork, PreTrainedModel):
    """What the networks of all tasks have.

    Args:
        config: the anchors, their openings and the plan.
        views: the anchors, opened; default built as the configuration says, without weights of their own.

    Raises:
        ValueError: if the configuration asks for more than a network, or the anchors do not fit the plan.
    """

    config_class = SNNetConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    task: Task
    predicts = False  # whether what a position gives is about the next one
    length = LENGTH

    def __init__(self, config: SNNetConfig, views: Sequence[TransformersView] | None = None) -> None:
        asked = getattr(config, "_attn_implementation_internal", None)
        super().__init__(config)
        self._at_hand = views is not None
        if views is None:
            views, plan = self._build(config, asked)
        else:
            plan = StitchPlan.from_dict(config.plan or {})
        for number, view in enumerate(views):
            view.number = number
        self._assemble(views, plan, True, config.stitch_id)
        if config.only is not None:
            self.__dict__.update(self.extract(config.only).__dict__)
        self._tell()
        self.post_init()

    def _build(self, config: SNNetConfig, asked: Any) -> tuple[list[TransformersView], StitchPlan]:
        """The anchors that a configuration asks for."""
        configs, openings, plan = check_config(config)
        views = []
        classes: list[Any] = config.classes or []
        kinds = [class_of(self.task, c.model_type, name) for c, name in zip(configs, classes, strict=True)]
        if str(torch.get_default_device()) != "meta":
            with bounded(), torch.device("meta"):  # without memory, before there is any
                for kind, own in zip(kinds, configs, strict=True):
                    kind(copying.deepcopy(own))
        with bounded():
            for kind, own, opening in zip(kinds, configs, openings, strict=True):
                own.dtype = None
                attention = {} if asked is None else {"attn_implementation": asked}
                views.append(reopened(kind._from_config(own, **attention), opening))
        return views, plan

    def _tell(self) -> None:
        """Let transformers know of the anchors in the list what it looks for in children."""
        for name in _TOLD:
            keyed = name in ("all_tied_weights_keys", "_keys_to_ignore_on_save")
            found: Any = {} if name == "all_tied_weights_keys" else set()
            for number, anchor in ((n, a) for n, a in enumerate(self.anchors) if a is not None):
                own = getattr(anchor, name, None) or ()
                if isinstance(found, dict):
                    there = {k for k, _ in anchor.named_parameters(remove_duplicate=False)}
                    tied = {k: v for k, v in dict(own).items() if {k, v} <= there}
                    found.update({f"{number}.{k}": f"{number}.{v}" for k, v in tied.items()})
                else:
                    found.update(f"{number}.{k}" if keyed else k for k in own)
            object.__setattr__(self.anchors, name, found)

    def init_weights(self) -> None:
        """As transformers', but anchors at hand keep the weights that they have."""
        if not self._at_hand:
            super().init_weights()

    def record(self, **args: Any) -> None:
        """Note arguments with which this network would be made again."""
        for name, value in args.items():
            setattr(self.config, name, value)

    def _plan_changed(self) -> None:
        self.record(plan=self.plan.to_dict())

    def get_input_embeddings(self) -> Any:
        """Those of the first anchor."""
        front: Any = self.views[self.plan.stitches[0].front].anchor
        return front.get_input_embeddings()

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def context(self, x: Mapping[str, Any], stitches: Iterable[Stitch]) -> Keywords:
        context = Keywords.of(x, self.predicts)
        for stitch in stitches:
            self.executor.check_anchors(stitch, self._modules["anchors"])
        check_inputs(self, context)
        return context

    def call(self, x: Any, stitch_id: Any = None) -> Any:
        return self(**x, stitch_id=stitch_id)

    def _forward(self, given: Mapping[str, Any], stitch_id: Any, return_dict: bool | None) -> Any:
        """What a stitch gives, or each row its own."""
        batch = {name: value for name, value in given.items() if value is not None}
        several = stitch_id is not None and not isinstance(stitch_id, (int, str)) and is_row(stitch_id)
        count = Keywords.of(batch).batch_size if several else 0
        stitches = self._one_each(stitch_id, count, "rows") if several else [self._stitch(stitch_id)]
        distinct = dict.fromkeys(stitches)
        context = self.context(batch, distinct)
        if len(distinct) > 1:
            self._check_widths(distinct)
            given = {
                k: v for k, v in context.given.items() if k not in (*NAMES, "use_cache")
            }  # a cache is of one stitch
            context = dataclasses.replace(context, given=given)
            out = self.executor.mixed(stitches, context, self._notify)
        else:
            self._notify(stitches[0], context.batch_size)
            out = self._run(stitches[0], context)
        wanted = self.config.return_dict if return_dict is None else return_dict
        return out if wanted else out.to_tuple()

    def _run(self, stitch: Stitch, context: Keywords) -> Any:
        return self.executor.run(stitch, context)

    def _check_widths(self, stitches: Iterable[Stitch]) -> None:
        widths = {self.views[stitch.back].widths[-1] for stitch in stitches}
        if self.task.name == "Model" and len(widths) > 1:
            raise ValueError(
                f"the stitches {sorted(s.stitch_id for s in stitches)} give activations of different widths "
                f"{sorted(widths)}: use ids with one back anchor."
            )

    def kept_state(self) -> dict[str, Tensor]:
        """The weights by name, each once: without the other names of those that are tied."""
        tied = self.__dict__.get("all_tied_weights_keys", {})
        return {name: tensor for name, tensor in self.state_dict().items() if name not in tied}

    # ── one stitch alone, and costs ───────────────────────────────────────────────────────────────

    def extract(self, stitch_id: int | None = None, copy: bool = False) -> Any:
        alone = super().extract(stitch_id, copy)
        alone.config = copying.deepcopy(self.config)
        alone.record(only=alone.stitch_id, stitch_id=alone.stitch_id)
        alone._tell()
        own = dict(alone.named_parameters(remove_duplicate=False))
        tied = self.__dict__.get("all_tied_weights_keys", {})
        alone.all_tied_weights_keys = {name: of for name, of in tied.items() if name in own and of in own}
        return alone

    def costs(self, length: int | None = None) -> PlanCosts:
        """What every part costs for one text of so many tokens, or one image; measured once a length, then kept.

        Args:
            length: in tokens; default `length` of the network, or as many as the anchors take if that is less.
        """
        length = self._length(length)
        kept: dict[Any, PlanCosts] = self.__dict__.setdefault("_costs", {})
        key = self.plan, length
        if key not in kept:
            kept[key] = measure(self, length)
        return kept[key]

    def stitch_table(self, length: int | None = None) -> list[dict[str, Any]]:
        """One row a stitch, in id order, as of `StitchableNetwork`, with costs for texts of so many tokens.

        Args:
            length: in tokens; default `length` of the network, or as many as the anchors take if that is less.
        """
        before = self.length
        self.length = self._length(length)
        try:
            return super().stitch_table()
        finally:
            self.length = before

    def _length(self, length: int | None) -> int:
        most = self.most_positions
        wanted = self.length if length is None else length
        if length is not None and not (1 <= length <= (most or length)):
            raise ValueError(f"length={length} is out of range: the anchors take 1 to {most} tokens.")
        return min(wanted, most) if most else wanted

    def example(self, count: int) -> dict[str, Tensor]:
        """So many random texts of the length that costs are counted for, or images."""
        front: Any = self.views[self.plan.stitches[0].front].anchor
        given = {k: v[:1] for k, v in probe(front, rows=1, length=self.counted_length).items()}
        return {k: v.expand(count, *v.shape[1:]).contiguous() for k, v in given.items()}

    @property
    def counted_length(self) -> int:
        """For texts of how many tokens costs are counted."""
        return self._length(None)

    @property
    def most_positions(self) -> int | None:
        """How many tokens the anchors take at most; None where they say nothing of it."""
        found = [_most_positions(view.anchor) for view in self.views]
        return min((n for n in found if n), default=None)


def _most_positions(model: Any) -> int | None:
    """How many tokens a model takes at most, where it says so."""
    try:
        most = getattr(model.config, "max_position_embeddings", None)
    except NotImplementedError:  # XLNet's way to say that it has no limit
        return None
    if not isinstance(most, int) or most <= 0:
        return None
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    first = [pad + 1 for m in tables if (pad := getattr(m, "padding_idx", None)) is not None]  # as RoBERTa counts
    return most - max(first, default=0)


class _OfText(StitchedModel):
    """Networks that are given the ids of tokens."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        stitch_id: StitchIds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one stitch, or each row its own.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, labels, return_dict: as of any model
                of transformers; (B, L), of `labels` also (B,).
            stitch_id: for this call only; an int, or one id a row (a list or 1-D tensor of length B; rows whose
                stitches begin alike run together that far). Default: the stitch that was set.
            **kwargs: for the anchors' own forward.

        Returns:
            What the stitch's back anchor gives: an output with `logits`, and `loss` if there are labels.

        Raises:
            ValueError: if an id is not in the plan, there is not one a row, or the anchors do not take these inputs.
        """
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "position_ids": position_ids, "inputs_embeds": inputs_embeds, "labels": labels, **kwargs,
        }  # fmt: skip
        return self._forward(given, stitch_id, return_dict)


class SNNetModel(_OfText):
    """A stitched network of base models, for embeddings; a stitch gives what the back anchor's layers end in."""


class SNNetForSequenceClassification(_OfText):
    """A stitched classifier of texts."""


class SNNetForTokenClassification(_OfText):
    """A stitched classifier of tokens."""


class SNNetForMaskedLM(_OfText):
    """A stitched masked language model."""


class SNNetForQuestionAnswering(StitchedModel):
    """A stitched network that finds answers in texts."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        stitch_id: StitchIds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one stitch, or each row its own; as of the other networks, with `start_logits` and `end_logits`."""
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "position_ids": position_ids, "inputs_embeds": inputs_embeds, "start_positions": start_positions,
            "end_positions": end_positions, **kwargs,
        }  # fmt: skip
        return self._forward(given, stitch_id, return_dict)


class SNNetForImageClassification(StitchedModel):
    """A stitched classifier of images, of transformers' own vision models."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        stitch_id: StitchIds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one stitch, or each image its own; `pixel_values` of shape (B, C, H, W)."""
        return self._forward({"pixel_values": pixel_values, "labels": labels, **kwargs}, stitch_id, return_dict)


class SNNetForCausalLM(Generates, _OfText, GenerationMixin):
    """A stitched causal language model."""

    predicts = True


TASKS = {
    "ForSequenceClassification": SNNetForSequenceClassification,
    "ForTokenClassification": SNNetForTokenClassification,
    "ForQuestionAnswering": SNNetForQuestionAnswering,
    "ForMaskedLM": SNNetForMaskedLM,
    "ForCausalLM": SNNetForCausalLM,
    "ForImageClassification": SNNetForImageClassification,
    "Model": SNNetModel,
}
for _task in ALL:
    TASKS[_task.name].task = _task


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
