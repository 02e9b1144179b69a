"""Targets of a batch, and the sums from which accuracy and loss are computed, for every task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..anchors.view import Inputs, Output
from ..data.batches import Batch
from ..families.transformers_models.inputs import IGNORED
from ..network.stitchable import StitchableNetwork, logits_of

_SPAN = ("start_positions", "end_positions")


class Targets(NamedTuple):
    """The labels of a batch, and how a network's output is compared with them.

    Args:
        labels: class numbers (B,) or (B, L), where `IGNORED` labels do not count, or mixed targets (B, classes);
            for question answering the starts and ends of answers (B, 2).
        shifts_labels: whether a position predicts the next one, as in causal language models.
        are_spans: whether the labels are the starts and ends of answers.
    """

    labels: Tensor
    shifts_labels: bool = False
    are_spans: bool = False


def split_targets(model: StitchableNetwork, batch: Batch) -> tuple[Inputs, Targets]:
    """Split a batch into the inputs of a network and its targets.

    Args:
        model: the network.
        batch: the inputs and labels. Causal language models need no labels: their targets are the text without its
            padding.

    Returns:
        The inputs (images or a mapping of tensors), and the targets.

    Raises:
        ValueError: if there are no labels.
    """
    inputs, labels = batch
    if not isinstance(inputs, Tensor):
        if labels is None and _SPAN[0] in inputs:
            labels = torch.stack([inputs[name] for name in _SPAN], dim=1)
            return _without_span(inputs), Targets(labels, are_spans=True)
        inputs = _without_span(inputs)
    shifts_labels = bool(getattr(model, "shifts_labels", False))
    if labels is None and shifts_labels:
        mask = inputs.get("attention_mask")
        labels = inputs["input_ids"] if mask is None else inputs["input_ids"].masked_fill(mask == 0, IGNORED)
    if labels is None:
        raise ValueError(
            "this batch has no labels: expected (images, labels), or a mapping of tensors with 'labels' (for question "
            "answering 'start_positions' and 'end_positions')."
        )
    return inputs, Targets(labels, shifts_labels)


def sum_scores(output: Output, targets: Targets) -> Tensor:
    """Sum over a batch: labels that are first, labels among the first five, cross-entropy, and the number of labels."""
    if targets.are_spans:
        return _sum_span_scores(output, targets.labels)
    logits, labels = flatten_pairs(output, targets)
    logits = logits.float()
    correct = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum").detach()
    return torch.stack([correct[:, 0].sum().to(loss), correct.sum().to(loss), loss, loss.new_tensor(len(labels))])


def flatten_pairs(output: Output, targets: Targets) -> tuple[Tensor, Tensor]:
    """Pair logits (n, classes) with labels (n,), without `IGNORED` labels."""
    if targets.are_spans:
        return torch.cat([output.start_logits, output.end_logits]), targets.labels.T.reshape(-1)
    logits, labels = logits_of(output), targets.labels
    if targets.shifts_labels:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.ndim > 2:
        counts = labels != IGNORED
        logits, labels = logits[counts], labels[counts]
    return logits, labels


def _without_span(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name not in _SPAN}


def _sum_span_scores(output: Output, spans: Tensor) -> Tensor:
    """Sum the scores of question answering, where an answer is correct if its start and end are."""
    both = [output.start_logits.float(), output.end_logits.float()]
    correct = torch.stack([logits.argmax(-1) for logits in both], dim=1).eq(spans).all(1).sum()
    losses = [nn.functional.cross_entropy(x, spans[:, i], reduction="sum") for i, x in enumerate(both)]
    loss = torch.stack(losses).mean().detach()
    return torch.stack([correct.to(loss), correct.to(loss), loss, loss.new_tensor(len(spans))])
