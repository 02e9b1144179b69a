"""A network of texts as a server runs it: its tokenizer, its padding, and logits or pooled embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ...choices import OutputName, PoolingName
from ...errors import library_errors
from ..text_endpoint import Tokens
from .network import StitchedModel
from .task_names import UNSUPPORTED
from .tokenizing import network_tokenizer

_MOST_TOKENS = 512  # of a text, where nothing else is asked for: attention takes the square of them
_MASK, _TYPES = "attention_mask", "token_type_ids"
_PROBED = (5, 12)  # tokens of the texts by which padding is tried
_TOLERANCE = 1e-3  # of an output, over the largest or 1


class TransformersEndpoint:
    """The texts that a classifier or an embedding network takes, as `TextEndpoint`.

    Args:
        network: the network, in eval mode on its device.
        max_length: the most tokens of a text; default what the network and its tokenizer take, at most 512.
        pooling: the embedding of a text: the mean of those of its tokens, the first or the last.

    Raises:
        ValueError: if its task is another, it has no fast tokenizer, or it does not take texts of `max_length`.
    """

    def __init__(self, network: StitchedModel, max_length: int | None, pooling: PoolingName) -> None:
        task, config = network.task.name, network.config
        if network.main_input_name != "input_ids" or task not in ("ForSequenceClassification", "Model"):
            raise ValueError(UNSUPPORTED["serve"])
        tokenizer = network_tokenizer(network)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"{type(tokenizer).__name__} is written in Python, too slow for texts of strangers: save a fast "
                "tokenizer, of the package tokenizers, with the network."
            )
        self.output: OutputName = "embeddings" if task == "Model" else "logits"
        self.pooling, self.vocab_size = pooling, int(config.vocab_size)
        largest = max(network.stitch_ids, key=lambda k: network.costs().cost(network.plan[k]).macs)
        widths = {k: self._width(network, k) for k in network.stitch_ids}
        self.width = widths[largest]
        self.stitch_ids: Collection[int] = frozenset(k for k, width in widths.items() if width == self.width)
        names: Mapping[Any, str] = config.id2label or {}
        self.labels: Sequence[str] = [] if task == "Model" else [str(names.get(n, n)) for n in range(self.width)]
        self.activation = _activation(config)
        self.max_length = self._choose_length(network, tokenizer, max_length)
        self._whole, self._cut = _copy(backend), _copy(backend)
        for copy in (self._whole, self._cut):
            copy.encode_special_tokens = tokenizer.split_special_tokens
        self._cut.enable_truncation(self.max_length, direction=tokenizer.truncation_side)
        pad: Any = next((n for n in (config.pad_token_id, tokenizer.pad_token_id) if n is not None), 0)
        types = {_TYPES: int(tokenizer.pad_token_type_id)} if _TYPES in tokenizer.model_input_names else {}
        self.padding: Mapping[str, int] = {"input_ids": int(pad), _MASK: 0, **types}
        self.pads_left = self._choose_side(network, largest, tokenizer.padding_side == "left")
        self.identity: Mapping[str, object] = {
            "tokenizer": hashlib.sha256(self._whole.to_str().encode()).hexdigest(), "max_length": self.max_length,
            "output": self.output, "width": self.width, "activation": self.activation, "pooling": pooling,
        }  # fmt: skip

    def _width(self, network: StitchedModel, stitch_id: int) -> int:
        """Find the number of values that a stitch gives for a text."""
        if self.output == "logits":
            return int(network.config.num_labels or 0)
        return int(network.views[network.plan[stitch_id].back].widths[-1])

    @staticmethod
    def _choose_length(network: StitchedModel, tokenizer: Any, wanted: int | None) -> int:
        """Choose the most tokens of a text.

        Raises:
            ValueError: if the network does not take as many as are wanted.
        """
        limit = min(network.max_positions or _MOST_TOKENS, int(tokenizer.model_max_length))
        if wanted is None:
            return min(limit, _MOST_TOKENS)
        if network.max_positions and wanted > network.max_positions:
            raise ValueError(
                f"max_length must be at most {network.max_positions}, what the anchors take, got {wanted}."
            )
        return wanted

    def tokenize(self, text: str, truncate: bool) -> Tokens:
        encoding = (self._cut if truncate else self._whole).encode(text)
        ids = encoding.ids
        if len(ids) > self.max_length:
            raise ValueError(
                f"a text has {len(ids):,} tokens, and at most {self.max_length:,} are accepted: shorten it, or ask for "
                "truncate=true."
            )
        if not ids:
            raise ValueError("a text is empty to the tokenizer: give one with words.")
        if max(ids) >= self.vocab_size:
            raise ValueError(f"a text has token {max(ids)}, and the network knows 0 to {self.vocab_size - 1}.")
        return Tokens(ids, encoding.type_ids)

    def run(self, network: Any, batch: Mapping[str, Tensor], stitch_id: int) -> Tensor:
        output = network.call(batch, stitch_id)
        if self.output == "logits":
            logits: Tensor = output.logits
            return logits
        return _pool(output.last_hidden_state, batch[_MASK], self.pooling)

    @torch.inference_mode()
    def _choose_side(self, network: StitchedModel, stitch_id: int, left: bool) -> bool:
        """Choose the side of the padding with which a text's output does not depend on the texts beside it.

        Raises:
            ValueError: if there is none, or the network does not run on texts of `max_length`.
        """
        draw, device = torch.Generator().manual_seed(0), next(network.parameters()).device
        lengths = [min(length, self.max_length) for length in _PROBED]
        texts = [torch.randint(self.vocab_size, (1, length), generator=draw) for length in lengths]
        texts = [torch.where(ids == self.padding["input_ids"], (ids + 1) % self.vocab_size, ids) for ids in texts]

        def run(*rows: Tensor, left: bool = False) -> Tensor:
            length = max(ids.shape[1] for ids in rows)
            padded: dict[str, list[Tensor]] = {name: [] for name in self.padding}
            for ids in rows:
                missing = length - ids.shape[1]
                for name, value in self.padding.items():
                    own = ids if name == "input_ids" else torch.full_like(ids, int(name == _MASK))
                    sides = (missing, 0) if left else (0, missing)
                    padded[name].append(torch.nn.functional.pad(own, sides, value=value))
            batch = {name: torch.cat(tensors).to(device) for name, tensors in padded.items()}
            return self.run(network, batch, stitch_id).float()

        with library_errors("this network does not run on batches of texts", Exception):
            alone = torch.cat([run(ids) for ids in texts])
            scale = max(1.0, float(alone.abs().max()))
            for side in (left, not left):
                if float((run(*texts, left=side) - alone).abs().max()) <= _TOLERANCE * scale:
                    break
            else:
                raise ValueError("its answer to a text depends on the padding beside it")
        with library_errors(f"this network does not run on texts of max_length={self.max_length} tokens", Exception):
            run(texts[-1].repeat(1, -(-self.max_length // texts[-1].shape[1]))[:, : self.max_length])
        return side


def _copy(backend: Tokenizer) -> Tokenizer:
    """Copy a tokenizer, which threads then share: it changes no more."""
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _activation(config: Any) -> str:
    """Find what makes probabilities of a classifier's logits, as transformers' pipeline does."""
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def _pool(states: Tensor, mask: Tensor, pooling: PoolingName) -> Tensor:
    """Make one embedding of the last layer's activations, shape (B, L, width): their mean, the first or the last."""
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)
    places = mask.argmax(1) if pooling == "first" else mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return states[torch.arange(len(states), device=states.device), places]
