"""Texts as the engine queues them: batches of like length, and the work of a text in units of the latency table.

A text waits in the bucket of its length, and only texts of one bucket share a call. The unit of work is a text of 16
tokens. A longer one counts as so many of these as it takes more multiply-adds: those of the linear layers grow with its
length, those of attention with the square of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ...families.text_endpoint import TextEndpoint, Tokens
from ...plan.metrics import main_score
from .network import ADVICE, Served, known_accuracy

UNIT = 16  # tokens of the text that is one unit of work
_COUNTED = (UNIT, 4 * UNIT, 16 * UNIT)  # tokens of the texts whose multiply-adds are counted


class TextBatch:
    """Some texts of a call.

    Args:
        arguments: the arguments of the network's call, tensors of shape (N, L).
    """

    def __init__(self, arguments: Mapping[str, Tensor]) -> None:
        self.arguments = arguments
        self.count, self.length = next(iter(arguments.values())).shape

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class ServedTexts(Served):
    """A network of texts as its clients see it.

    Args:
        model, labels, stitches, score, accuracy: the arguments of `Served`; only stitches with one width of output.
        endpoint: its tokenizer, its padding and its outputs.
        buckets: the lengths, in tokens, up to which texts share calls, ascending.
        weights: the work of one text of each bucket, in units.
    """

    endpoint: TextEndpoint
    buckets: Sequence[int]
    weights: Sequence[int]

    @property
    def unit(self) -> int:
        """The tokens of the text that is one unit of work."""
        return min(UNIT, self.endpoint.max_length)

    @classmethod
    def of(cls, model: Any, endpoint: TextEndpoint) -> ServedTexts:
        """Describe a network."""
        stitches = {row["stitch_id"]: row for row in model.stitch_table() if row["stitch_id"] in endpoint.stitch_ids}
        score, buckets = main_score(stitches.values()), make_buckets(endpoint.max_length)
        weights = count_work(model, sorted(stitches), buckets)
        accuracy = known_accuracy(stitches, score)
        return cls(model, endpoint.labels, stitches, score, accuracy, endpoint, buckets, weights)

    def weight_of(self, length: int) -> int:
        """Find the work of a text of so many tokens, in units."""
        return self.weights[bisect_left(self.buckets, min(length, self.buckets[-1]))]

    def make_batch(self, texts: Sequence[Tokens]) -> TextBatch:
        """Make a batch of the tokens of some texts."""
        shape = len(texts), max(len(tokens.ids) for tokens in texts)
        filled = {name: np.full(shape, value, dtype=np.int64) for name, value in self.endpoint.padding.items()}
        for row, tokens in enumerate(texts):
            count = len(tokens.ids)
            place = slice(shape[1] - count, None) if self.endpoint.pads_left else slice(count)
            values: dict[str, Any] = {"input_ids": tokens.ids, "attention_mask": 1, "token_type_ids": tokens.types}
            for name, array in filled.items():
                array[row, place] = values[name]
        return TextBatch({name: torch.from_numpy(array) for name, array in filled.items()})

    def complete(self, batch: TextBatch) -> TextBatch:
        """Add the arguments that a client who tokenizes leaves out."""
        missing = self.endpoint.padding.keys() - batch.arguments.keys()
        zeros = torch.zeros(batch.count, batch.length, dtype=torch.int64)
        return TextBatch({**batch.arguments, **dict.fromkeys(missing, zeros)})

    def example(self, count: int) -> TextBatch:
        """Make a batch of as many units of work."""
        ids = [2 + n % max(1, self.endpoint.vocab_size - 2) for n in range(self.unit)]
        return self.make_batch([Tokens(ids, [0] * self.unit)] * count)

    def join(self, batches: Sequence[TextBatch]) -> TextBatch:
        """Join batches into one, padded to its longest text."""
        length, padding = max(batch.length for batch in batches), self.endpoint.padding

        def padded(batch: TextBatch, name: str) -> Tensor:
            missing = length - batch.length
            if not missing:
                return batch.arguments[name]
            return pad(
                batch.arguments[name], (missing, 0) if self.endpoint.pads_left else (0, missing), value=padding[name]
            )

        return TextBatch({name: torch.cat([padded(batch, name) for batch in batches]) for name in padding})

    def check_replaces(self, old: ServedTexts) -> None:
        """Refuse to serve in place of another network, unless clients need not know.

        Raises:
            ValueError: naming what differs: the tokenizer, the classes, the most tokens or the output.
        """
        self.check_labels(old)
        for name, value in self.endpoint.identity.items():
            former = old.endpoint.identity[name]
            if value != former:
                shown = "" if name == "tokenizer" else f" {value}, not {former}"
                raise ValueError(f"the new network has another {name}{shown}: {ADVICE}")


def make_buckets(max_length: int) -> list[int]:
    """Choose the lengths up to which texts share calls: powers of two and the middles between them.

    Examples:
        >>> make_buckets(100)
        [16, 32, 48, 64, 96, 100]
    """
    buckets, step = [], UNIT
    while step < max_length:
        buckets += [step, 3 * step // 2] if step > UNIT else [step]
        step *= 2
    return [length for length in buckets if length < max_length] + [max_length]


def count_work(model: Any, stitch_ids: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Count the work of a text of each length, in units, as the stitch sees it for which length costs most.

    The multiply-adds of a few lengths determine the others, since attention takes the square of the length.
    """
    known = sorted({min(length, lengths[-1]) for length in _COUNTED})
    counted = [model.costs(length) for length in known]
    macs = np.array([[costs.cost(model.plan[k]).macs for k in stitch_ids] for costs in counted], dtype=float)
    powers = np.polyfit(np.array(known, dtype=float), macs / macs[0], len(known) - 1)
    return [max(1, round(max(float(np.polyval(of_one, length)) for of_one in powers.T))) for length in lengths]
