"""What a server asks of a network of texts: tokens of a text, and the outputs of a batch of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from ..choices import OutputName
from ..network.stitchable import StitchableNetwork


class Tokens(NamedTuple):
    """The tokens of one text.

    Args:
        ids: the numbers of the tokens.
        types: their types, which some models take.
    """

    ids: Sequence[int]
    types: Sequence[int]


class TextEndpoint(Protocol):
    """The texts that a network takes, and what it gives for them.

    Attributes:
        output: `"logits"` of a classifier, or `"embeddings"`.
        labels: the name of each class; none for embeddings.
        activation: what makes probabilities of logits: `"softmax"`, `"sigmoid"`, or `"none"` for a regression.
        width: the number of values of an output.
        stitch_ids: the stitches whose outputs have that width.
        max_length: the most tokens of a text.
        vocab_size: the number of tokens that the network knows.
        padding: for each argument of a call, the value of its padding.
        pads_left: whether padding stands before a text.
        identity: what clients rely on: the same texts give the same tokens if it is equal.
    """

    output: OutputName
    labels: Sequence[str]
    activation: str
    width: int
    stitch_ids: Collection[int]
    max_length: int
    vocab_size: int
    padding: Mapping[str, int]
    pads_left: bool
    identity: Mapping[str, object]

    def tokenize(self, text: str, truncate: bool) -> Tokens:
        """Split a text into tokens; any thread may.

        Args:
            text: the text.
            truncate: whether to leave out what is beyond `max_length`.

        Raises:
            ValueError: if it has no token, too many, or one that the network does not know.
        """

    def run(self, network: StitchableNetwork, batch: Mapping[str, Tensor], stitch_id: int) -> Tensor:
        """Compute the outputs of a padded batch, shape (B, width), on the network's device.

        Args:
            network: the network, or a copy of it in another precision.
            batch: a tensor of shape (B, L) for each of `padding`.
            stitch_id: one of `stitch_ids`.
        """
