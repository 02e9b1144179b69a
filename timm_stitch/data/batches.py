"""Batches from loaders: images, tuples that begin with them, or mappings of tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

LABELS = "labels"


class Batch(NamedTuple):
    """The inputs of a network and their labels.

    Args:
        inputs: images (B, C, H, W), or a mapping of tensors with B rows, without labels.
        labels: labels of shape (B,), or of every position (B, L); None if there are none.
    """

    inputs: Any
    labels: Tensor | None

    @classmethod
    def of(cls, item: object) -> Batch:
        """Split an item of a loader into inputs and labels.

        Args:
            item: images, a tuple of images and labels, or a mapping of tensors.

        Raises:
            TypeError: if it is none of these.
        """
        if isinstance(item, Mapping):
            return cls({name: value for name, value in item.items() if name != LABELS}, item.get(LABELS))
        if isinstance(item, (tuple, list)) and item:
            return cls(item[0], item[1] if len(item) > 1 else None)
        if isinstance(item, Tensor):
            return cls(item, None)
        raise TypeError(
            "a batch must be images (B, C, H, W), a tuple that begins with them, or a mapping of tensors such as a "
            f"tokenizer gives, got {type(item).__name__}."
        )

    @property
    def batch_size(self) -> int:
        """The number of rows."""
        if isinstance(self.inputs, Tensor):
            return len(self.inputs)
        return next((len(v) for v in self.inputs.values() if isinstance(v, Tensor) and v.ndim), 0)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None, channels_last: bool = False) -> Batch:
        """Copy the batch to a device; copies to an accelerator are not waited for.

        Args:
            device: the device.
            dtype: the type of floating-point inputs; default their own.
            channels_last: whether images get that memory format.
        """
        non_blocking = torch.device(device).type != "cpu"

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            layout = torch.channels_last if channels_last and value.ndim == 4 else torch.preserve_format
            kind = dtype if value.is_floating_point() else None
            return value.to(device, kind, non_blocking=non_blocking, memory_format=layout)

        if isinstance(self.inputs, Mapping):
            inputs: Any = {name: moved(value) for name, value in self.inputs.items()}
        else:
            inputs = moved(self.inputs)
        labels: Any = self.labels
        return Batch(inputs, labels.to(device, non_blocking=non_blocking) if isinstance(labels, Tensor) else labels)
