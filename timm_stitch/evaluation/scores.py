"""What a network's answers to a batch are worth: how many are right, and their loss, whatever the task."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..families.transformers_models.inputs import IGNORED
from ..network.stitchable import logits_of


class Asked(NamedTuple):
    """What a batch asks of a network.

    Args:
        labels: of shape (B,) or (B, L), of which `IGNORED` counts for nothing; of questions the starts and ends (B, 2).
        predicts: whether what a position gives is about the next one.
        answers: whether the labels are the starts and ends of answers.
    """

    labels: Tensor
    predicts: bool = False
    answers: bool = False


def asked_by(model: Any, inputs: Any, labels: Tensor | None) -> tuple[Any, Asked]:
    """What a network is given of a batch, and what it is asked.

    Args:
        model: the network.
        inputs: images, or a mapping of tensors.
        labels: those of the batch; of causal language models default the text itself, without its padding.

    Raises:
        ValueError: if there are no labels.
    """
    if isinstance(inputs, Tensor):
        given: Any = inputs
    else:
        given = {k: v for k, v in inputs.items() if k not in ("start_positions", "end_positions")}
        if labels is None and "start_positions" in inputs:
            return given, Asked(torch.stack([inputs["start_positions"], inputs["end_positions"]], dim=1), answers=True)
    predicts = bool(getattr(model, "shifts_labels", False))
    if labels is None and predicts:
        mask = given.get("attention_mask")
        labels = given["input_ids"] if mask is None else given["input_ids"].masked_fill(mask == 0, IGNORED)
    if labels is None:
        raise ValueError(
            "this batch has no labels: expected (images, labels), or a mapping of tensors with 'labels' (of questions "
            "'start_positions' and 'end_positions')."
        )
    return given, Asked(labels, predicts)


def scores(out: Any, asked: Asked) -> Tensor:
    """Sums over a batch: right at first, right among five, cross-entropy, how many were asked."""
    if asked.answers:
        return _of_answers(out, asked.labels)
    logits, labels = pairs(out, asked)
    logits = logits.float()
    ranked = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    sums = [ranked[:, 0].sum(), ranked.sum(), loss.detach(), torch.tensor(len(labels), device=loss.device)]
    return torch.stack([value.to(loss.dtype) for value in sums])


def pairs(out: Any, asked: Asked) -> tuple[Tensor, Tensor]:
    """What is asked one by one: logits (n, classes) and labels (n,), without what counts for nothing."""
    if asked.answers:
        both = torch.cat([out.start_logits, out.end_logits])
        return both, asked.labels.T.reshape(-1)
    logits, labels = logits_of(out), asked.labels
    if asked.predicts:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.ndim > 2:
        real = labels != IGNORED
        logits, labels = logits[real], labels[real]
    return logits, labels


def _of_answers(out: Any, places: Tensor) -> Tensor:
    """The same of questions: an answer is right if it begins and ends where it should."""
    both = [out.start_logits.float(), out.end_logits.float()]
    right = torch.stack([logits.argmax(-1) for logits in both], dim=1).eq(places).all(1).sum()
    loss = sum(nn.functional.cross_entropy(x, places[:, i], reduction="sum") for i, x in enumerate(both))
    found = torch.as_tensor(loss).detach() / 2
    return torch.stack([v.to(found.dtype) for v in (right, right, found, torch.tensor(len(places)).to(found.device))])
