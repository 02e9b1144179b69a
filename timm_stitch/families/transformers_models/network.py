"""Stitched networks of transformers' models, whatever their task: models of transformers themselves.

They are loaded, saved, trained and called, and generate text, as any model of transformers; `network.stitchable` has
what is stitched in them. A stitch ends with its back anchor's own forward, and gives what that gives.
"""

from __future__ import annotations

import copy as copying
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from ...anchors.budget import bounded, time_limit
from ...network.extraction import by_number
from ...network.stitchable import StitchableNetwork, StitchIds, is_sequence_of_ids
from ...plan.costs import PlanCosts
from ...plan.results import Row
from ...plan.stitch_plan import Stitch, StitchPlan
from ..family import notify_loaded
from .checks import check_arguments, check_changes, check_inputs
from .configuration import SNNetConfig, check_config
from .counting import measure
from .inputs import Arguments, TextInputs
from .loading_checks import check_folder, without_kernels
from .opening import make_batch, reopened
from .resizing import resize_embeddings
from .rows import asks_for_layers, run_rows
from .task_names import LANGUAGE_TASKS, TOKEN_TASKS, UNSUPPORTED
from .tasks import Task, find_class
from .tokenizing import save_tokenizer
from .views import TransformersView, takes_further_arguments

if TYPE_CHECKING:
    from transformers.utils import ModelOutput

LENGTH = 128  # tokens of the texts for which costs are counted, by default
_MOST_LENGTH = 1 << 15  # of a length that is saved: costs are counted by running a text

# Attributes that transformers reads from direct children alone; the list of anchors forwards theirs.
_FORWARDED = (
    "all_tied_weights_keys", "_no_split_modules", "_keep_in_fp32_modules", "_keep_in_fp32_modules_strict",
    "_skip_keys_device_placement", "_keys_to_ignore_on_load_unexpected", "_keys_to_ignore_on_load_missing",
    "_keys_to_ignore_on_save",
)  # fmt: skip


class StitchedModel(StitchableNetwork, PreTrainedModel):
    """The base of the networks of all tasks.

    Args:
        config: the anchors, their specs and the plan.
        views: the anchors, opened; default built as the configuration says, with random weights.

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
    shifts_labels = False  # whether a position predicts the next one
    tokenizer: PreTrainedTokenizerBase | None = None

    def __init__(self, config: SNNetConfig, views: Sequence[TransformersView] | None = None) -> None:
        config = config.unbound()
        if config.output_attentions and config._attn_implementation is None:  # no other implementation gives them
            config._attn_implementation = "eager"
        attention = getattr(config, "_attn_implementation_internal", None)
        super().__init__(config)
        self._has_own_weights = views is not None
        if views is None:
            views, plan = self._build(config, attention)
        else:
            plan = StitchPlan.from_dict(config.plan or {})
        for number, view in enumerate(views):
            view.number = number
        self._assemble(views, plan, True, config.stitch_id)
        if config.length is not None:
            self._check_length(config.length, _MOST_LENGTH)
        config.bind([view.anchor.config for view in views])
        if config.only is not None:
            self.__dict__.update(self.extract(config.only).__dict__)
        self._forward_attributes()
        self.post_init()

    def _build(self, config: SNNetConfig, attention: str | None) -> tuple[list[TransformersView], StitchPlan]:
        """Build the anchors of a configuration."""
        configs, specs, plan = check_config(config)
        classes = [
            find_class(self.task, c.model_type, name) for c, name in zip(configs, config.classes or (), strict=True)
        ]
        if str(torch.get_default_device()) != "meta":
            with time_limit(), bounded(), torch.device("meta"):  # without memory, before there is any
                for cls, own in zip(classes, configs, strict=True):
                    cls(copying.deepcopy(own))
        views, options = [], {} if attention is None else {"attn_implementation": attention}
        with bounded(), without_kernels(classes):
            for cls, own, spec in zip(classes, configs, specs, strict=True):
                own.dtype = None
                views.append(reopened(cls._from_config(own, **options), spec))
        return views, plan

    def _forward_attributes(self) -> None:
        """Give the list of anchors the attributes that transformers reads from direct children alone."""
        for name in _FORWARDED:
            merged: dict[str, str] | set[str] = {} if name == "all_tied_weights_keys" else set()
            for number, anchor in by_number(self.anchors).items():
                own = getattr(anchor, name, None) or ()
                if isinstance(merged, dict):
                    names = {k for k, _ in anchor.named_parameters(remove_duplicate=False)}
                    merged |= {f"{number}.{k}": f"{number}.{v}" for k, v in dict(own).items() if {k, v} <= names}
                else:
                    merged.update(f"{number}.{k}" if name == "_keys_to_ignore_on_save" else k for k in own)
            object.__setattr__(self.anchors, name, merged)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, with the rows that were saved.

        Raises:
            ValueError: if a folder asks for another network than its weights are of, or for more than a network.
            OSError: if one of its files is a link out of it.
        """
        folder = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        if pretrained_model_name_or_path is not None and folder.is_dir():
            check_folder(cls, folder)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if pretrained_model_name_or_path is not None:
            network = loaded[0] if isinstance(loaded, tuple) else loaded
            notify_loaded(network, str(pretrained_model_name_or_path), kwargs)
        return loaded

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, with the tokenizer; `timm_stitch.save_pretrained` also keeps measured rows."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            save_tokenizer(self, Path(save_directory))

    def init_weights(self) -> None:
        """Initialise weights as transformers does, unless the anchors were given with theirs."""
        if not self._has_own_weights:
            super().init_weights()

    def record(self, **args: Any) -> None:
        for name, value in args.items():
            setattr(self.config, name, value)

    def _plan_changed(self) -> None:
        self.record(plan=self.plan.to_dict())

    if TYPE_CHECKING:
        config: SNNetConfig
    else:  # which would take any name for an attribute

        @property
        def config(self) -> SNNetConfig:
            """The configuration, whose fields are those of the configurations that the anchors have now."""
            config = self.__dict__["config"]
            if "executor" in self.__dict__:
                config.follow([view.anchor.config for view in self.executor.views])
            return config

        @config.setter
        def config(self, config: SNNetConfig) -> None:
            self.__dict__["config"] = config

        def __getattr__(self, name: str) -> Any:
            """Get an attribute as torch does; of what these networks do not do, say what to do instead."""
            if name in UNSUPPORTED:
                raise AttributeError(UNSUPPORTED[name])
            return super().__getattr__(name)

    @property
    def views(self) -> Sequence[TransformersView]:
        """The anchors, opened."""
        return cast("Sequence[TransformersView]", self.executor.views)

    @property
    def grad_checkpointing(self) -> bool:
        """Whether the backward pass computes activations again, under timm's name."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        if enable != self.grad_checkpointing:
            word = "activation" if hasattr(self, "activation_checkpointing_enable") else "gradient"  # before 5.24
            getattr(self, f"{word}_checkpointing_{'enable' if enable else 'disable'}")()

    def get_input_embeddings(self) -> nn.Module:
        """Get the input embeddings of the first anchor."""
        return self._first_anchor.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> NoReturn:
        """Refuse: each anchor has embeddings of its own.

        Raises:
            ValueError: saying so.
        """
        raise ValueError("each anchor has its own embeddings: set those of model.anchors[i], for each of them.")

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> Any:
        """Resize the embeddings of tokens of all anchors, and the heads that predict tokens, as transformers does.

        Args:
            new_num_tokens, pad_to_multiple_of, mean_resizing: the arguments of transformers' method.

        Returns:
            The input embeddings of the first anchor.

        Raises:
            ValueError: if an anchor cannot be resized; nothing is changed then.
        """
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            sizes = {"new_num_tokens": new_num_tokens, "pad_to_multiple_of": pad_to_multiple_of}
            resize_embeddings(self.views, **sizes, mean_resizing=mean_resizing)
            self._forward_attributes()
        return self.get_input_embeddings()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the anchors take `num_items_in_batch`, which transformers' `Trainer` then gives."""
        return all(
            getattr(view.anchor, "accepts_loss_kwargs", True) and takes_further_arguments(view.anchor)
            for view in self.views
        )

    @property
    def _first_anchor(self) -> PreTrainedModel:
        return self.views[self.plan.stitches[0].front].anchor

    def backbone(self, *_: object, **__: object) -> NoReturn:
        """Refuse: only networks of timm's models give feature maps.

        Raises:
            ValueError: saying what to do instead.
        """
        raise ValueError(UNSUPPORTED["backbone"])

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def prepare_inputs(self, x: object, stitches: Iterable[Stitch]) -> TextInputs:
        inputs, views, limits = TextInputs.of(x, self.shifts_labels), self.views, []
        for stitch in stitches:
            self.executor.check_anchors(stitch, self._modules["anchors"])
            limits += [limit for number in stitch.anchors if (limit := views[number].max_positions)]
            check_arguments(inputs, views[stitch.front], stitch.is_anchor)
            for segment in stitch.segments[:-1]:
                views[segment.anchor].check_hooks()
            self._check_changes(stitch)
        check_inputs(inputs, self.config, self.task, min(limits, default=None))
        return inputs

    def _check_changes(self, stitch: Stitch) -> None:
        """Refuse to run parts of anchors that do not run in parts as they are now."""
        if not stitch.is_anchor:
            for number in stitch.anchors:
                check_changes(self.views[number])

    def call(self, x: Arguments, stitch_id: StitchIds | None = None) -> Any:
        return self(**x, stitch_id=stitch_id)

    def _forward(self, arguments: Arguments, stitch_id: StitchIds | None, return_dict: bool | None) -> Any:
        """Run one stitch, or each row its own."""
        if is_sequence_of_ids(stitch_id):
            stitches = self._stitch_per_sample(stitch_id, TextInputs.of(arguments).batch_size, "rows")
            distinct = list(dict.fromkeys(stitches))
        else:
            stitches = distinct = [self._stitch(stitch_id)]
        inputs = self.prepare_inputs(arguments, distinct)
        if len(distinct) > 1:
            self._check_widths(distinct)
            output = run_rows(self.executor, self.views, stitches, inputs, self._notify)
        else:
            self._notify(stitches[0], inputs.batch_size)
            output = self._run(stitches[0], inputs)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def forward_each(self, x: Any, stitch_ids: Sequence[int] | None = None) -> Iterator[tuple[int, Any]]:
        """Run many stitches on one batch, and share the work of equal first layers; see `StitchableNetwork`.

        Where outputs of single layers are asked for, every stitch runs all its layers.
        """
        if not asks_for_layers(self.views, TextInputs.of(x)):
            yield from super().forward_each(x, stitch_ids)
            return
        ids = list(dict.fromkeys(self.stitch_ids if stitch_ids is None else stitch_ids))
        stitches = [self._stitch(stitch_id) for stitch_id in ids]
        inputs = self.prepare_inputs(x, stitches)
        for stitch in stitches:
            self._notify(stitch, inputs.batch_size)
            yield stitch.stitch_id, StitchedModel._run(self, stitch, inputs)

    def _run(self, stitch: Stitch, inputs: TextInputs) -> ModelOutput:
        try:
            return cast("ModelOutput", self.executor.run(stitch, inputs))
        except (AttributeError, IndexError, TypeError) as error:
            if stitch.is_anchor or not asks_for_layers(self.views, inputs):
                raise
            raise ValueError(
                f"{stitch.name} leaves layers out, and its models do not give the outputs of single layers without "
                f"those ({' '.join(str(error).split()):.80}): turn off output_attentions and output_hidden_states, or "
                "run the stitch of an anchor alone."
            ) from error

    def _check_widths(self, stitches: Iterable[Stitch]) -> None:
        widths = {self.views[stitch.back].widths[-1] for stitch in stitches}
        if self.task.name == "Model" and len(widths) > 1:
            raise ValueError(
                f"the stitches {sorted(s.stitch_id for s in stitches)} give activations of different widths "
                f"{sorted(widths)}: use ids with one back anchor."
            )

    def kept_state(self) -> dict[str, Tensor]:
        """The weights by name, each once: a tied weight under its first name."""
        tied = self.__dict__.get("all_tied_weights_keys", {})
        return {name: tensor for name, tensor in self.state_dict().items() if name not in tied}

    # ── one stitch alone, and costs ───────────────────────────────────────────────────────────────

    def extract(self, stitch_id: int | None = None, copy: bool = False) -> Self:
        self._check_changes(self._stitch(stitch_id))
        alone = super().extract(stitch_id, copy)
        alone.config = self.config.unbound()
        alone.config.bind([view.anchor.config for view in alone.views])
        alone.record(only=alone.stitch_id, stitch_id=alone.stitch_id)
        alone._forward_attributes()
        own = dict(alone.named_parameters(remove_duplicate=False))
        tied: Mapping[str, str] = self.__dict__.get("all_tied_weights_keys", {})
        alone.all_tied_weights_keys = {name: of for name, of in tied.items() if name in own and of in own}
        alone.results.replace(alone.results.value)  # which belong to the modules as they are now
        return alone

    def costs(self, length: int | None = None) -> PlanCosts:
        """The costs of every part for one text or image; measured once for each length, then kept.

        Args:
            length: the tokens of the text; default the network's `length`.
        """
        if length is not None:
            self._check_length(length)
        tokens = self.length if length is None else length
        return self._cached_costs(tokens, lambda: replace(self._measure_costs(tokens), length=tokens))

    def _measure_costs(self, length: int) -> PlanCosts:
        used = min(segment.anchor for stitch in self.plan for segment in stitch.segments)
        batch = make_batch(self.views[used].anchor, rows=1, length=length)
        try:
            return measure(self, TextInputs.of({k: v[:1] for k, v in batch.items()}, self.shifts_labels))
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"the costs of texts of {length} tokens cannot be counted, since the anchors do not run on them "
                f"({' '.join(str(error).split()):.80}): set the network's length to fewer tokens."
            ) from error

    def stitch_table(self, length: int | None = None) -> list[dict[str, Any]]:
        """One row per stitch, as `StitchableNetwork.stitch_table`, with costs for texts of some length.

        Args:
            length: the tokens of the text; default the network's `length`.
        """
        return self.table_with(self.results.current(), self.costs(length))

    def cost_columns(self, costs: PlanCosts, stitch: Stitch) -> Row:
        return {} if self.main_input_name == "pixel_values" else {"length": costs.length}

    @property
    def length(self) -> int:
        """The tokens of the text for which costs are counted: 128, or as many as the anchors take if fewer.

        `select`, `set_budget`, `evaluate` and saved rows use it. A length that is set is saved with the network.

        Raises:
            ValueError: if it is set to a length that the anchors do not take.
        """
        if self.config.length is not None:
            return self.config.length
        return min([LENGTH, *(v.pretrained_positions for v in self.views if v.pretrained_positions)])

    @length.setter
    def length(self, length: int) -> None:
        self._check_length(length, _MOST_LENGTH)
        self.record(length=length)

    def _check_length(self, length: int, most: int | None = None) -> None:
        limit = min((n for n in (self.max_positions, most) if n), default=None)
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= (limit or length):
            raise ValueError(
                f"length={length!r} is out of range: the anchors take 1 to {limit or 'any number of'} tokens."
            )

    def extra_metrics(self, num_samples: int, num_labels: int, loss: float) -> dict[str, Any]:
        if self.main_input_name == "pixel_values":
            return {"images": num_samples}
        tokens = {"tokens": num_labels} if self.task.name in TOKEN_TASKS else {}
        perplexity = {"perplexity": math.exp(min(loss, 700))} if self.task.name in LANGUAGE_TASKS else {}
        return {"texts": num_samples, **tokens, **perplexity, "length": self.length}

    def example(self, count: int, length: int | None = None) -> dict[str, Tensor]:
        if length is not None:
            self._check_length(length)
        batch = make_batch(self._first_anchor, rows=1, length=length or self.length)
        return {k: v[:1].expand(count, *v.shape[1:]).contiguous() for k, v in batch.items()}

    @property
    def max_positions(self) -> int | None:
        """The largest number of tokens that all anchors take; None where none of them has a table of positions."""
        return min((view.max_positions for view in self.views if view.max_positions), default=None)
