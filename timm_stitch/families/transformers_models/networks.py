"""The networks by their task: models of transformers, registered with its Auto classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from ...network.stitchable import StitchIds
from .configuration import SNNetConfig
from .generating import GeneratingModel
from .inputs import check_keywords
from .network import StitchedModel
from .tasks import ALL


class TextModel(StitchedModel):
    """A network that takes the ids of tokens."""

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
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, labels, return_dict: the usual
                arguments of models of transformers; shape (B, L), for `labels` also (B,).
            stitch_id: the stitch of this call: an int, or one id per row (a list or 1-D tensor of length B; rows whose
                stitches begin alike run together that far). Default: the stitch that is set.
            **kwargs: further arguments of the anchors' own forward.

        Returns:
            The output of the stitch's back anchor, with `logits`, and `loss` if there are labels.

        Raises:
            ValueError: if an id is not in the plan, there is not one per row, or the anchors do not take these inputs.
            TypeError: if a keyword is a misspelt `stitch_id`.
        """
        if kwargs and not torch.compiler.is_compiling():
            check_keywords(kwargs)
        arguments = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "position_ids": position_ids, "inputs_embeds": inputs_embeds, "labels": labels, **kwargs,
        }  # fmt: skip
        return self._forward(arguments, stitch_id, return_dict)


class SNNetModel(TextModel):
    """A stitched network of base models, for embeddings: the output of the back anchor's last layer."""


class SNNetForSequenceClassification(TextModel):
    """A stitched classifier of texts."""


class SNNetForTokenClassification(TextModel):
    """A stitched classifier of tokens."""


class SNNetForMaskedLM(TextModel):
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
        """Run one stitch, or each row its own, as the other networks; gives `start_logits` and `end_logits`."""
        if kwargs and not torch.compiler.is_compiling():
            check_keywords(kwargs)
        arguments = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "position_ids": position_ids, "inputs_embeds": inputs_embeds, "start_positions": start_positions,
            "end_positions": end_positions, **kwargs,
        }  # fmt: skip
        return self._forward(arguments, stitch_id, return_dict)


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
        if kwargs and not torch.compiler.is_compiling():
            check_keywords(kwargs)
        return self._forward({"pixel_values": pixel_values, "labels": labels, **kwargs}, stitch_id, return_dict)


class SNNetForCausalLM(GeneratingModel, TextModel):
    """A stitched causal language model."""

    shifts_labels = True


TASKS: dict[str, type[StitchedModel]] = {
    "ForSequenceClassification": SNNetForSequenceClassification,
    "ForTokenClassification": SNNetForTokenClassification,
    "ForQuestionAnswering": SNNetForQuestionAnswering,
    "ForMaskedLM": SNNetForMaskedLM,
    "ForCausalLM": SNNetForCausalLM,
    "ForImageClassification": SNNetForImageClassification,
    "Model": SNNetModel,
}
AutoConfig.register(SNNetConfig.model_type, SNNetConfig, exist_ok=True)
for _task in ALL:
    TASKS[_task.name].task = _task
    _task.auto.register(SNNetConfig, TASKS[_task.name], exist_ok=True)
