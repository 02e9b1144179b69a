"""The inputs of one call of models of transformers: arguments by name, of which rows can be taken and joined again."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import WrongTypeError

LABEL_KEYS = ("labels", "start_positions", "end_positions", "next_sentence_label")
MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")
IGNORED = -100  # a label that does not count in the loss

Arguments = Mapping[str, Any]  # of a model's forward, which each architecture has its own of

_other_keywords: set[str] = set()  # those that are not a misspelt stitch_id


def check_keywords(names: Iterable[str]) -> None:
    """Refuse a misspelt `stitch_id`, which the forward of most models would take among its further keywords.

    Raises:
        TypeError: naming the keyword.
    """
    for name in names:
        if name in _other_keywords:
            continue
        if difflib.get_close_matches(name, ["stitch_id"], cutoff=0.7):  # transformers' own are below
            raise WrongTypeError(f"unexpected keyword argument {name!r:.40}: did you mean stitch_id?")
        _other_keywords.add(name)


@dataclass(frozen=True)
class TextInputs:
    """The keyword arguments of one call, as `ImageInputs` for images.

    Args:
        arguments: tensors of B rows, and all other arguments but the labels.
        labels: the arguments from which a stitch computes its loss.
        caches: the arguments that bring a segment its cache, by (anchor, first layer); empty for none.
        shifts_labels: whether a position predicts the next one, as in causal language models.
        sums_losses: whether the losses of parts of the rows add up, as those divided by `num_items_in_batch` do.
    """

    arguments: Arguments
    labels: Arguments = field(default_factory=dict)
    caches: Mapping[tuple[int, int], Arguments] = field(default_factory=dict)
    shifts_labels: bool = False
    sums_losses: bool = False

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
        raise ValueError(self._explain_missing())

    def _explain_missing(self) -> str:
        name = next((name for name in MAIN_INPUTS if name in self.arguments), None)
        if name is None:
            return (
                f"the inputs {sorted(self.arguments)} have none of {', '.join(MAIN_INPUTS)}: give what the tokenizer "
                "or the image processor of the anchors gives, as keyword arguments."
            )
        value = self.arguments[name]
        advice = "make batches of tensors, by tokenizer(texts, padding=True, return_tensors='pt') or a collator"
        if isinstance(value, Mapping):
            advice = "give the batch as keyword arguments, model(**batch)"
        return f"{name} must be a tensor with one row for each text or image, got {type(value).__name__}: {advice}."

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

        Rows whose stitches ran fewer layers have NaN in the hidden states and attentions of those that they skipped.

        Args:
            outputs: the outputs, mappings of tensors.
            num_labels: the number of labels that counted in the loss of each.
            order: the place of each row in the outputs, one after another.

        Raises:
            ValueError: naming an output that cannot be joined.
        """
        counts = [next(t for t in output.values() if isinstance(t, Tensor) and t.ndim).shape[0] for output in outputs]
        joined: dict[str, object] = {}
        for name in dict.fromkeys(name for output in outputs for name in output):
            parts = [output.get(name) for output in outputs]
            if name == "loss" and self.sums_losses:
                joined[name] = sum(parts)
            elif name == "loss":
                total = sum(part * n for part, n in zip(parts, num_labels, strict=True))
                joined[name] = total / max(sum(num_labels), 1)
            else:
                joined[name] = _join_rows(name, parts, counts, order)
        return type(outputs[0])(**joined)


def _join_rows(name: str, parts: Sequence[Any], counts: Sequence[int], order: Tensor) -> Any:
    """Join one output of several parts of the rows: a tensor, or a tuple of one tensor a layer, from the last back.

    Raises:
        ValueError: if the parts do not have rows of one shape.
    """
    if all(part is None for part in parts):
        return None
    if all(isinstance(part, (tuple, list)) for part in parts):
        depth = max(map(len, parts))
        layers = [[None] * (depth - len(part)) + list(part) for part in parts]
        return tuple(_join_rows(name, layer, counts, order) for layer in zip(*layers, strict=True))
    present = [part for part in parts if part is not None]
    if (
        not all(
            isinstance(part, Tensor) and part.ndim and part.shape[0] == count
            for part, count in zip(parts, counts, strict=True)
            if part is not None
        )
        or len({part.shape[1:] for part in present}) > 1
    ):
        raise ValueError(
            f"{name} of stitches with different back anchors, or not of one row a text, cannot be joined: call each "
            f"stitch by itself, or do without {name}."
        )
    like = present[0]
    rows = [
        like.new_full((count, *like.shape[1:]), math.nan) if part is None else part
        for part, count in zip(parts, counts, strict=True)
    ]
    return torch.cat(rows).index_select(0, order)
