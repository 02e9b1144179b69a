"""One call of models of transformers: what they are given by name, as rows that can be taken apart and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

LABEL_KEYS = ("labels", "start_positions", "end_positions", "next_sentence_label")
MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")
IGNORED = -100  # a label that counts for nothing


@dataclass(frozen=True)
class TextInputs:
    """The keyword arguments of one call, as `ImageInputs` for images.

    Args:
        given: tensors of B rows, and all other arguments but the labels.
        labels: the arguments from which the end of a stitch makes a loss.
        caches: by segment, as (anchor, first layer), the arguments that bring its cache; empty for none.
        shifts_labels: whether a position predicts the next one, as in causal language models.
    """

    given: Mapping[str, Any]
    labels: Mapping[str, Any] = field(default_factory=dict)
    caches: Mapping[tuple[int, int], Any] = field(default_factory=dict)
    shifts_labels: bool = False

    @classmethod
    def of(cls, batch: Mapping[str, Any], shifts_labels: bool = False) -> TextInputs:
        """From a mapping of tensors, as tokenizers and collators give it."""
        given = {k: v for k, v in batch.items() if v is not None}
        labels = {k: given.pop(k) for k in LABEL_KEYS if k in given}
        return cls(given, labels, shifts_labels=shifts_labels)

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
        """The number of rows."""
        return int(self.main.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of images."""
        return self.main.shape[-2], self.main.shape[-1]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.main.device

    @property
    def real(self) -> Tensor | None:
        """Which positions are no padding, a (B, L) of bool; None where all are."""
        mask = self.given.get("attention_mask")
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def rows(self, start: int, stop: int) -> TextInputs:
        """Take some of the rows."""
        return self._each(lambda tensor: tensor[start:stop])

    def pick(self, index: Tensor) -> TextInputs:
        """Take the rows of these numbers, in their order."""
        return self._each(lambda tensor: tensor.index_select(0, index))

    def _each(self, take: Any) -> TextInputs:
        count = self.batch_size

        def part(values: Mapping[str, Any]) -> dict[str, Any]:
            of_rows = {k for k, v in values.items() if isinstance(v, Tensor) and v.ndim and v.shape[0] == count}
            return {k: take(v) if k in of_rows else v for k, v in values.items()}

        return replace(self, given=part(self.given), labels=part(self.labels))

    def num_labels(self) -> int:
        """Count the labels that count in the loss."""
        labels = self.labels.get("labels")
        if not isinstance(labels, Tensor):
            return self.batch_size
        labels = labels[:, 1:] if self.shifts_labels and labels.ndim > 1 else labels
        return int((labels != IGNORED).sum()) if not labels.is_floating_point() else self.batch_size

    def join(self, outputs: Sequence[Any], num_labels: Sequence[int], order: Tensor) -> Any:
        """Make one output of the outputs for parts of the rows.

        Args:
            outputs: the outputs, mappings of tensors.
            num_labels: the number of labels that counted in the loss of each.
            order: the place of each row in the outputs, one after another.
        """
        joined: dict[str, Any] = {}
        for name in outputs[0]:
            parts = [out.get(name) for out in outputs]
            if not all(isinstance(part, Tensor) for part in parts):
                continue
            if name == "loss":
                weighted = sum(part * n for part, n in zip(parts, num_labels, strict=True))
                joined[name] = weighted / max(sum(num_labels), 1)
            elif len({part.shape[1:] for part in parts}) == 1:
                joined[name] = torch.cat(parts).index_select(0, order)
        return type(outputs[0])(**joined)
