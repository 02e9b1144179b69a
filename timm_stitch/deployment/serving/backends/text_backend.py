"""Networks of texts in PyTorch: logits or embeddings of padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....choices import Precision
from ..texts import ServedTexts, TextBatch
from .torch_backend import TorchBackend


class TextBackend(TorchBackend):
    """Runs stitches of a network of texts, or of a copy of it in another precision.

    Args:
        network: the description of the network.
        precision: the precision; in `"fp32"` the network runs as it is.

    Raises:
        ValueError: if the device does not take the precision.
    """

    def __init__(self, network: ServedTexts, precision: Precision = "fp32") -> None:
        super().__init__(network.model, precision)
        self.served = network
        self.name += f", texts of {network.unit} tokens"

    def prepare(self, stitch_ids: Sequence[int], batch_sizes: Sequence[int]) -> None:
        """Call each stitch once, since first calls are slow."""
        for stitch_id in stitch_ids:
            self.run(self.served.example(1), stitch_id)

    @torch.inference_mode()
    def run(self, images: Any, stitch_id: int) -> Tensor:
        """Compute the logits or embeddings of a batch of texts, on the network's device."""
        batch: TextBatch = images
        arguments = {name: tensor.to(self.device) for name, tensor in batch.arguments.items()}
        return self.served.endpoint.run(self.model, arguments, stitch_id).float().cpu()
