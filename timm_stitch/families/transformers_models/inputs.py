"""One call of models of transformers: what they are given by name, as rows that can be taken apart and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

ANSWERS = ("labels", "start_positions", "end_positions", "next_sentence_label")
MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")
IGNORED = -100  # a label that counts for nothing


@dataclass(frozen=True)
class Keywords:
    """What one call gives to all that runs in it, as `view.Context` for images.

    Args:
        given: the keyword arguments: tensors of B rows, and whatever else.
        answers: those from which a loss is made, for the end of a stitch alone.
        caches: of each segment by (anchor, first layer) the arguments that bring its cache; empty for none.
        predicts: whether what a position gives is about the next one, as in causal language models.
    """

    given: Mapping[str, Any]
    answers: Mapping[str, Any] = field(default_factory=dict)
    caches: Mapping[tuple[int, int], Any] = field(default_factory=dict)
    predicts: bool = False

    @classmethod
    def of(cls, batch: Mapping[str, Any], predicts: bool = False) -> Keywords:
        """From a mapping of tensors, as tokenizers and collators give it."""
        given = {k: v for k, v in batch.items() if v is not None and k not in ANSWERS}
        return cls(given, {k: v for k, v in batch.items() if v is not None and k in ANSWERS}, predicts=predicts)

    @property
    def main(self) -> Tensor:
        """The tensor that the rows are rows of."""
        for name in MAIN_INPUTS:
            if isinstance(self.given.get(name), Tensor):
                found: Tensor = self.given[name]
                return found
        raise ValueError(
            f"the inputs {sorted(self.given)} have none of {', '.join(MAIN_INPUTS)}: give what the tokenizer or the "
            "image processor of the anchors gives, as keyword arguments."
        )

    @property
    def batch_size(self) -> int:
        """How many rows there are."""
        return int(self.main.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.main.device

    @property
    def real(self) -> Tensor | None:
        """Which positions are no padding, a (B, L) of bool; None where all are."""
        mask = self.given.get("attention_mask")
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def rows(self, start: int, stop: int) -> Keywords:
        """The same for some of the rows."""
        return self._each(lambda tensor: tensor[start:stop])

    def pick(self, index: Tensor) -> Keywords:
        """The same for the rows of these numbers, in their order."""
        return self._each(lambda tensor: tensor.index_select(0, index))

    def _each(self, take: Any) -> Keywords:
        count = self.batch_size

        def part(values: Mapping[str, Any]) -> dict[str, Any]:
            of_rows = {k for k, v in values.items() if isinstance(v, Tensor) and v.ndim and v.shape[0] == count}
            return {k: take(v) if k in of_rows else v for k, v in values.items()}

        return replace(self, given=part(self.given), answers=part(self.answers))

    def counted(self) -> int:
        """How many labels count in the loss."""
        labels = self.answers.get("labels")
        if not isinstance(labels, Tensor):
            return self.batch_size
        labels = labels[:, 1:] if self.predicts and labels.ndim > 1 else labels
        return int((labels != IGNORED).sum()) if not labels.is_floating_point() else self.batch_size

    def join(self, outputs: Sequence[Any], counted: Sequence[int], order: Tensor) -> Any:
        """What calls on parts of the rows gave as what one call gives.

        Args:
            outputs: of the calls, mappings of tensors.
            counted: how many labels counted in the loss of each.
            order: where in the outputs, one after another, each row is.
        """
        found: dict[str, Any] = {}
        for name in outputs[0]:
            parts = [out.get(name) for out in outputs]
            if not all(isinstance(part, Tensor) for part in parts):
                continue
            if name == "loss":
                found[name] = sum(part * n for part, n in zip(parts, counted, strict=True)) / max(sum(counted), 1)
            elif len({part.shape[1:] for part in parts}) == 1:
                found[name] = torch.cat(parts).index_select(0, order)
        return type(outputs[0])(**found)
