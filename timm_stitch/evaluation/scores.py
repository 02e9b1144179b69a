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
from ..plan.results import Row

_SPAN = ("start_positions", "end_positions")
_OTHER_TASKS = {"regression": "regression", "multi_label_classification": "multi-label classification"}


class Targets(NamedTuple):
    """The labels of a batch, and how a network's output is compared with them.

    Args:
        labels: class numbers (B,) or (B, L), where `IGNORED` labels do not count, or mixed targets (B, classes);
            for question answering the starts and ends of answers (B, 2); masks or depths (B, H, W).
        shifts_labels: whether a position predicts the next one, as in causal language models.
        are_spans: whether the labels are the starts and ends of answers.
    """

    labels: Tensor
    shifts_labels: bool = False
    are_spans: bool = False


class Scores:
    """The scores of a network: the sums of a batch, and the metrics of a row.

    Args:
        model: the network, whose `objective` they are; without one those of classification.
    """

    def __init__(self, model: StitchableNetwork) -> None:
        self.model, self.objective = model, model.objective
        self.size = 4 if self.objective is None else self.objective.size

    def sum(self, output: Output, targets: Targets) -> Tensor:
        """Sum over a batch all that a row needs."""
        if self.objective is None:
            return sum_scores(output, targets)
        return self.objective.sum_scores(output, targets.labels)

    def row(self, sums: Tensor, num_samples: int) -> Row | None:
        """Compute the metrics of a row; None if no label counted.

        Args:
            sums: the sums of all batches.
            num_samples: the number of images or texts.
        """
        if self.objective is not None:
            metrics = self.objective.row(sums)
            return None if metrics is None else {**metrics, "images": num_samples}
        top1, top5, loss, count = sums.tolist()
        if not count:
            return None
        row = {"top1": 100 * (top1 / count), "top5": 100 * (top5 / count), "loss": loss / count}
        return {**row, **self.model.extra_metrics(num_samples, int(count), loss / count)}


def split_targets(model: StitchableNetwork, batch: Batch) -> tuple[Inputs, Targets]:
    """Split a batch into the inputs of a network and its targets.

    Args:
        model: the network.
        batch: the inputs and labels. Causal language models need no labels: their targets are the text without its
            padding.

    Returns:
        The inputs (images or a mapping of tensors), and the targets.

    Raises:
        ValueError: if there are no labels, or they are not those of a classification with one class each.
    """
    inputs, labels = batch
    if model.objective is not None:
        return inputs, Targets(model.objective.check_targets(labels))
    if not isinstance(inputs, Tensor):
        _check_task(model, labels)
        if labels is None and all(name in inputs for name in _SPAN):
            return _without_span(inputs), Targets(_stack_span(batch), are_spans=True)
        inputs = _without_span(inputs)
    shifts_labels = bool(getattr(model, "shifts_labels", False))
    if labels is None and shifts_labels:
        mask = inputs.get("attention_mask")
        labels = inputs["input_ids"] if mask is None else inputs["input_ids"].masked_fill(mask == 0, IGNORED)
    if labels is None:
        expected = (
            "(images, labels)"
            if isinstance(inputs, Tensor)
            else ("a mapping of tensors with 'labels' (for question answering 'start_positions' and 'end_positions')")
        )
        raise ValueError(f"this batch has no labels: expected {expected}.")
    if not isinstance(labels, Tensor):
        labels = to_tensor(labels).to(next(model.parameters()).device)
    if not labels.ndim:
        raise ValueError(
            "this is one item of a dataset, whose label is one number, and batches are needed: give a loader, "
            "torch.utils.data.DataLoader(data, batch_size=32), with collate_fn=DataCollatorWithPadding(tokenizer) for "
            "texts."
        )
    return inputs, Targets(labels, shifts_labels)


def to_tensor(labels: object) -> Tensor:
    """Convert labels, such as a list of numbers, to a tensor.

    Raises:
        ValueError: if they are no numbers.
    """
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"labels must be class numbers in a tensor, got {labels!r:.80}.") from None


def to_class_numbers(labels: Tensor, classes: int) -> Tensor:
    """Convert one-hot labels (B, classes) to class numbers (B,); class numbers stay as they are.

    Raises:
        ValueError: if they are neither.
    """
    if labels.ndim == 2 and labels.shape[1] == classes > 1 and is_one_hot(labels):
        return labels.float().argmax(1)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels must be class numbers (B,) or one-hot (B, {classes}), got {labels.dtype} of shape "
            f"{tuple(labels.shape)} that is neither, such as mixed, multi-label or regression targets."
        )
    return labels


def is_one_hot(labels: Tensor) -> bool:
    """Whether every row of labels (B, classes) is one class alone."""
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())


def check_mixed(labels: Tensor) -> Tensor:
    """Refuse mixed targets (B, classes) that are not the probabilities of classes, such as several labels of one image.

    Raises:
        ValueError: if a row does not sum to one.
    """
    if bool((labels < 0).any()) or bool((labels.sum(1) - 1).abs().max() > 0.01):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} must be probabilities of classes, which sum to 1 for each image, "
            f"got sums of {labels.sum(1).min():.3g} to {labels.sum(1).max():.3g}: multi-label targets have no "
            "cross-entropy of one class."
        )
    return labels


def sum_scores(output: Output, targets: Targets) -> Tensor:
    """Sum over a batch: labels that are first, labels among the first five, cross-entropy, and the number of labels."""
    if targets.are_spans:
        return _sum_span_scores(output, targets.labels)
    logits, labels = flatten_pairs(output, targets)
    logits, labels = logits.float(), to_class_numbers(labels, logits.shape[-1])
    correct = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum").detach()
    return torch.stack([correct[:, 0].sum().to(loss), correct.sum().to(loss), loss, (labels != IGNORED).sum().to(loss)])


def flatten_pairs(output: Output, targets: Targets) -> tuple[Tensor, Tensor]:
    """Pair logits (n, classes) with labels (n,), or mixed targets (n, classes), without those that do not count.

    Raises:
        ValueError: if the labels do not fit the logits.
    """
    if targets.are_spans:
        logits, labels = torch.cat([output.start_logits, output.end_logits]), targets.labels.T.reshape(-1)
        counts = (labels >= 0) & (labels < logits.shape[-1])  # an answer outside of the text counts for nothing
        return logits[counts], labels[counts]
    logits, labels = logits_of(output), targets.labels
    if targets.shifts_labels:
        logits, labels = logits[:, :-1], labels[:, 1:]
    classes = logits.shape[-1]
    if classes == 1:
        raise ValueError(
            "a network of one output is a regression: accuracy and cross-entropy need two classes or more."
        )
    if labels.shape == logits.shape and isinstance(output, Tensor):  # one-hot or mixed, of images
        return logits, labels
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be class numbers of shape {tuple(logits.shape[:-1])}, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    labels = labels.long()
    if logits.ndim > 2 or labels.is_cpu:  # on a GPU that would wait for it; cross-entropy leaves them out too
        counts = labels != IGNORED
        logits, labels = logits[counts], labels[counts]
    if labels.is_cpu and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels must be from 0 to {classes - 1} (or {IGNORED} for none), got {int(labels.min())} to "
            f"{int(labels.max())}: correct them, or use a network of more classes."
        )
    return logits, labels


def _check_task(model: StitchableNetwork, labels: object) -> None:
    """Refuse a network of transformers' models, or labels, of another task than classification with one class each."""
    configs = [getattr(holder, "config", None) for holder in (model, *(view.anchor for view in model.views))]
    kinds = [kind for config in configs if (kind := getattr(config, "problem_type", None)) in _OTHER_TASKS]
    if kinds or (isinstance(labels, Tensor) and labels.is_floating_point()):
        kind = _OTHER_TASKS[kinds[0]] if kinds else "multi-label classification or regression, by its float labels"
        raise ValueError(
            f"this network is for {kind}, which has no accuracy and cross-entropy of one class each: train and "
            "evaluate it with transformers' Trainer, whose loss is the network's own."
        )


def _stack_span(batch: Batch) -> Tensor:
    """Stack the starts and ends of answers, (B, 2).

    Raises:
        ValueError: if they are not one number for each text.
    """
    span = [to_tensor(batch.inputs[name]) for name in _SPAN]
    if any(numbers.shape != (batch.batch_size,) or numbers.is_floating_point() for numbers in span):
        shapes = " and ".join(str(tuple(numbers.shape)) for numbers in span)
        raise ValueError(
            f"{' and '.join(_SPAN)} must be the numbers of tokens, one for each of {batch.batch_size} texts, got "
            f"shapes {shapes} of {span[0].dtype}."
        )
    return torch.stack(span, dim=1)


def _without_span(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name not in _SPAN}


def _sum_span_scores(output: Output, spans: Tensor) -> Tensor:
    """Sum the scores of question answering, where an answer is correct if its start and end are."""
    both = [output.start_logits.float(), output.end_logits.float()]
    counts = ((spans >= 0) & (spans < both[0].shape[-1])).all(1)  # an answer outside of the text counts for nothing
    spans, both = spans[counts], [logits[counts] for logits in both]
    correct = torch.stack([logits.argmax(-1) for logits in both], dim=1).eq(spans).all(1).sum()
    losses = [nn.functional.cross_entropy(x, spans[:, i], reduction="sum") for i, x in enumerate(both)]
    loss = torch.stack(losses).mean().detach()
    return torch.stack([correct.to(loss), correct.to(loss), loss, loss.new_tensor(len(spans))])
