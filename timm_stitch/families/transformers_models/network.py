"""What stitched networks of transformers' models are, whatever their task: models of transformers themselves.

They are loaded, saved, trained, asked and generated with as any model of transformers; what is stitched in them is that
of `network.stitchable`. An anchor's own forward says what comes out: a stitch gives what its back anchor gives.
"""

from __future__ import annotations

import copy as copying
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...anchors.budget import bounded
from ...network.stitchable import StitchableNetwork, is_sequence_of_ids
from ...plan.costs import PlanCosts
from ...plan.stitch_plan import Stitch, StitchPlan
from .cache import NAMES
from .checks import check_inputs
from .configuration import SNNetConfig, check_config
from .counting import measure
from .inputs import TextInputs
from .opening import probe, reopened
from .task_names import UNSUPPORTED
from .tasks import Task, class_of
from .views import TransformersView

_OF_LANGUAGE = ("ForCausalLM", "ForMaskedLM")
_OF_TOKENS = (*_OF_LANGUAGE, "ForTokenClassification")
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

    family = "transformers"
    unsupported: ClassVar[Mapping[str, str]] = UNSUPPORTED
    config_class = SNNetConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    task: Task
    shifts_labels = False  # whether what a position gives is about the next one
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

    @property
    def grad_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass, as timm calls it."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        if enable != self.grad_checkpointing:
            word = "activation" if hasattr(self, "activation_checkpointing_enable") else "gradient"  # before 5.24
            getattr(self, f"{word}_checkpointing_{'enable' if enable else 'disable'}")()

    def get_input_embeddings(self) -> Any:
        """Those of the first anchor."""
        front: Any = self.views[self.plan.stitches[0].front].anchor
        return front.get_input_embeddings()

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def prepare_inputs(self, x: Mapping[str, Any], stitches: Iterable[Stitch]) -> TextInputs:
        inputs = TextInputs.of(x, self.shifts_labels)
        for stitch in stitches:
            self.executor.check_anchors(stitch, self._modules["anchors"])
        check_inputs(self, inputs)
        return inputs

    def call(self, x: Any, stitch_id: Any = None) -> Any:
        return self(**x, stitch_id=stitch_id)

    def _forward(self, given: Mapping[str, Any], stitch_id: Any, return_dict: bool | None) -> Any:
        """What a stitch gives, or each row its own."""
        if is_sequence_of_ids(stitch_id):
            stitches = self._stitch_per_sample(stitch_id, TextInputs.of(given).batch_size, "rows")
            distinct = list(dict.fromkeys(stitches))
        else:
            stitches = distinct = [self._stitch(stitch_id)]
        inputs = self.prepare_inputs(given, distinct)
        if len(distinct) > 1:
            self._check_widths(distinct)
            of_one = (*NAMES, "use_cache")  # a cache is of one stitch
            given = {name: value for name, value in inputs.given.items() if name not in of_one}
            inputs = dataclasses.replace(inputs, given=given)
            out = self.executor.mixed(stitches, inputs, self._notify)
        else:
            self._notify(stitches[0], inputs.batch_size)
            out = self._run(stitches[0], inputs)
        wanted = self.config.return_dict if return_dict is None else return_dict
        return out if wanted else out.to_tuple()

    def _run(self, stitch: Stitch, inputs: TextInputs) -> Any:
        return self.executor.run(stitch, inputs)

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

    def extra_metrics(self, num_samples: int, num_labels: int, loss: float) -> dict[str, Any]:
        if self.main_input_name == "pixel_values":
            return {"images": num_samples}
        of_tokens = {"tokens": num_labels} if self.task.name in _OF_TOKENS else {}
        of_language = {"perplexity": math.exp(min(loss, 700))} if self.task.name in _OF_LANGUAGE else {}
        return {"texts": num_samples, **of_tokens, **of_language, "length": self.counted_length}

    def example(self, count: int) -> dict[str, Tensor]:
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
        views: Sequence[Any] = self.views
        return min((view.most_positions for view in views if view.most_positions), default=None)
