"""Inference on images of any size: as a whole or by sliding windows, and averaged with the mirrored image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...choices import INFERENCE_MODES, InferenceMode

MOST_BYTES = 1 << 30  # of outputs that are summed at once


@dataclass(frozen=True)
class Inference:
    """How a network predicts on images.

    Args:
        mode: `"whole"`, or `"slide"` for windows whose outputs are averaged where they overlap.
        crop: the height and width of a window in pixels.
        stride: the pixels from one window to the next.
        flip: whether to average with the output of the mirrored image.

    Raises:
        ValueError: if an argument has another value than these.
    """

    mode: InferenceMode = "whole"
    crop: int | None = None
    stride: int | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        if self.mode not in INFERENCE_MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, INFERENCE_MODES))}, got {self.mode!r}.")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}.")
        for name, pixels in (("crop", self.crop), ("stride", self.stride)):
            if pixels is None and self.mode == "slide":
                raise ValueError(f"mode='slide' needs {name}, a number of pixels: e.g. crop=512, stride=341.")
            if pixels is not None and not (isinstance(pixels, int) and not isinstance(pixels, bool) and pixels > 0):
                raise ValueError(f"{name} must be a positive number of pixels, got {pixels!r}.")
        if self.crop and self.stride and self.stride > self.crop:
            raise ValueError(f"stride={self.stride} would skip pixels between windows of crop={self.crop}.")

    def changed(self, **fields: Any) -> Inference:
        """Make the same with other values of some fields; None keeps a value."""
        return replace(self, **{name: value for name, value in fields.items() if value is not None})


def windows(height: int, width: int, crop: int, stride: int) -> list[tuple[slice, slice]]:
    """List the windows that cover an image; the last of a row and of a column end at its border."""

    def along(side: int) -> list[slice]:
        starts = [min(n * stride, max(side - crop, 0)) for n in range(max(side - crop + stride - 1, 0) // stride + 1)]
        return [slice(start, min(start + crop, side)) for start in starts]

    return [(rows, columns) for rows in along(height) for columns in along(width)]


def predict_each(
    network: Any, x: Tensor, stitch_ids: Sequence[int], inference: Inference
) -> Iterator[tuple[int, Tensor]]:
    """Run many stitches on one batch of images, sharing the work of equal first blocks in every window.

    Stitches run in groups whose outputs fit into `MOST_BYTES`; only within a group is work shared.

    Args:
        network: a `DenseNetwork`, whose file is above this one.
        x: the images (B, C, H, W).
        stitch_ids: the stitches.
        inference: the way to predict.

    Yields:
        (stitch_id, output (B, outputs, H, W)).
    """
    if inference.mode == "whole" and not inference.flip:
        yield from network.forward_each(x, stitch_ids)
        return
    whole = (slice(None), slice(None))
    crop, stride = inference.crop, inference.stride
    height, width = x.shape[2:]
    parts = windows(height, width, crop, stride) if inference.mode == "slide" and crop and stride else [whole]
    order = [run.stitch.stitch_id for run in network._schedule(tuple(stitch_ids))]
    bytes_each = x.shape[0] * network.num_outputs * x.shape[2] * x.shape[3] * 4
    size = max(1, MOST_BYTES // max(bytes_each, 1))
    for start in range(0, len(order), size):
        ids, sums, counts = order[start : start + size], dict[int, Tensor](), x.new_zeros(1, 1, *x.shape[2:])
        for rows, columns in parts:
            window = x[..., rows, columns]
            counts[..., rows, columns] += 1
            for mirrored in (False, True) if inference.flip else (False,):
                for stitch_id, out in network.forward_each(window.flip(-1) if mirrored else window, ids):
                    if stitch_id not in sums:
                        sums[stitch_id] = out.new_zeros(*out.shape[:2], *x.shape[2:])
                    sums[stitch_id][..., rows, columns] += out.flip(-1) if mirrored else out
        counts *= 2 if inference.flip else 1
        for stitch_id in ids:
            yield stitch_id, sums.pop(stitch_id) / counts


def predict(network: Any, x: Tensor, stitch_id: int, inference: Inference) -> Tensor:
    """Run one stitch on a batch of images; returns (B, outputs, H, W)."""
    with torch.inference_mode():
        (_, output), *_ = predict_each(network, x, [stitch_id], inference)
    return output
