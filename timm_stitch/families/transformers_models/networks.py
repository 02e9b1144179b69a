"""The networks by their task: models of transformers, of classes that its Auto classes are told of."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig, GenerationMixin

from ...network.stitchable import StitchIds
from .configuration import SNNetConfig
from .generating import Generates
from .network import StitchedModel
from .tasks import ALL


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

    shifts_labels = True


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


def register() -> None:
    """Let `AutoConfig` and each task's Auto class know the networks; may be called twice."""
    AutoConfig.register(SNNetConfig.model_type, SNNetConfig, exist_ok=True)
    for kind in TASKS.values():
        kind.task.auto.register(SNNetConfig, kind, exist_ok=True)


register()
