"""Batches as loaders give them: images, tuples that begin with them, or mappings of tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

LABELS = "labels"


class Batch(NamedTuple):
    """What a network is given, and what it should say of it.

    Args:
        inputs: images (B, C, H, W), or a mapping of tensors with B rows, without labels.
        labels: of shape (B,), or of every position (B, L); None where there are none.
    """

    inputs: Any
    labels: Tensor | None

    @classmethod
    def of(cls, batch: Any) -> Batch:
        """Take apart what a loader gives.

        Raises:
            TypeError: if it is none of these.
        """
        if isinstance(batch, Mapping):
            return cls({k: v for k, v in batch.items() if k != LABELS}, batch.get(LABELS))
        if isinstance(batch, (tuple, list)) and batch:
            return cls(batch[0], batch[1] if len(batch) > 1 else None)
        if isinstance(batch, Tensor):
            return cls(batch, None)
        raise TypeError(
            f"a batch is a {type(batch).__name__}: expected images (B, C, H, W), a tuple that begins with them, or a "
            "mapping of tensors such as a tokenizer gives."
        )

    @property
    def batch_size(self) -> int:
        """How many rows there are."""
        if isinstance(self.inputs, Tensor):
            return len(self.inputs)
        return next((len(v) for v in self.inputs.values() if isinstance(v, Tensor) and v.ndim), 0)

    def to(self, device: Any, dtype: Any = None, channels_last: bool = False) -> Batch:
        """The same on a device, without waiting for the way to one that is not the CPU.

        Args:
            device: which.
            dtype: of what is not whole numbers; default what it has.
            channels_last: images in that layout.
        """
        ahead = torch.device(device).type != "cpu"

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            layout = torch.channels_last if channels_last and value.ndim == 4 else torch.preserve_format
            kind = dtype if value.is_floating_point() else None
            return value.to(device, kind, non_blocking=ahead, memory_format=layout)

        if isinstance(self.inputs, Tensor):
            inputs: Any = moved(self.inputs)
        else:
            inputs = {name: moved(value) for name, value in self.inputs.items()}
        return Batch(inputs, None if self.labels is None else self.labels.to(device, non_blocking=ahead))
