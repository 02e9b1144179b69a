"""The inputs of one call of models of transformers: arguments by name, of which rows can be taken and joined again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import WrongTypeError

LABEL_KEYS = ("labels", "start_positions", "end_positions", "next_sentence_label")
MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")
IGNORED = -100  # a label that does not count in the loss

Arguments = Mapping[str, Any]  # of a model's forward, which each architecture has its own of


@dataclass(frozen=True)
class TextInputs:
    """The keyword arguments of one call, as `ImageInputs` for images.

    Args:
        arguments: tensors of B rows, and all other arguments but the labels.
        labels: the arguments from which a stitch computes its loss.
        caches: the arguments that bring a segment its cache, by (anchor, first layer); empty for none.
        shifts_labels: whether a position predicts the next one, as in causal language models.
    """

    arguments: Arguments
    labels: Arguments = field(default_factory=dict)
    caches: Mapping[tuple[int, int], Arguments] = field(default_factory=dict)
    shifts_labels: bool = False

    @classmethod
    def of(cls, batch: object, shifts_labels: bool = False) -> TextInputs:
        """Read a mapping of tensors, as tokenizers and collators give it.

        Raises:
            TypeError: if it is not a mapping.
        """
        if not isinstance(batch, Mapping):
            raise WrongTypeError(
                f"networks of transformers' models take mappings of tensors, got {type(batch).__name__}: give batches "
                "as a tokenizer or an image processor makes them."
            )
        arguments = {k: v for k, v in batch.items() if v is not None}
        labels = {k: arguments.pop(k) for k in LABEL_KEYS if k in arguments}
        return cls(arguments, labels, shifts_labels=shifts_labels)

    @property
    def main(self) -> Tensor:
        """The tensor whose first dimension counts the rows."""
        for name in MAIN_INPUTS:
            tensor = self.arguments.get(name)
            if isinstance(tensor, Tensor):
                return tensor
        raise ValueError(
            f"the inputs {sorted(self.arguments)} have none of {', '.join(MAIN_INPUTS)}: give what the tokenizer or "
            "the image processor of the anchors gives, as keyword arguments."
        )

    @property
    def batch_size(self) -> int:
        """The number of rows."""
        return self.main.shape[0]

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
        """Which positions are no padding, a bool tensor (B, L); None where all are."""
        mask = self.arguments.get("attention_mask")
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def rows(self, start: int, stop: int) -> TextInputs:
        """Take some of the rows."""
        return self._map_rows(lambda tensor: tensor[start:stop])

    def pick(self, index: Tensor) -> TextInputs:
        """Take the rows of these numbers, in their order."""
        return self._map_rows(lambda tensor: tensor.index_select(0, index))

    def _map_rows(self, take: Callable[[Tensor], Tensor]) -> TextInputs:
        count = self.batch_size

        def map_rows(values: Arguments) -> dict[str, object]:
            return {
                k: take(v) if isinstance(v, Tensor) and v.ndim and v.shape[0] == count else v for k, v in values.items()
            }

        return replace(self, arguments=map_rows(self.arguments), labels=map_rows(self.labels))

    def num_labels(self) -> int:
        """Count the labels that count in the loss."""
        labels = self.labels.get("labels")
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return self.batch_size
        labels = labels[:, 1:] if self.shifts_labels and labels.ndim > 1 else labels
        return int((labels != IGNORED).sum())

    def join(self, outputs: Sequence[Any], num_labels: Sequence[int], order: Tensor) -> Any:
        """Join the outputs for parts of the rows.

        Args:
            outputs: the outputs, mappings of tensors.
            num_labels: the number of labels that counted in the loss of each.
            order: the place of each row in the outputs, one after another.
        """
        joined: dict[str, Tensor] = {}
        for name in outputs[0]:
            parts = [output.get(name) for output in outputs]
            if not all(isinstance(part, Tensor) for part in parts):
                continue
            if name == "loss":
                total = sum(part * n for part, n in zip(parts, num_labels, strict=True))
                joined[name] = total / max(sum(num_labels), 1)
            elif len({part.shape[1:] for part in parts}) == 1:
                joined[name] = torch.cat(parts).index_select(0, order)
        return type(outputs[0])(**joined)
