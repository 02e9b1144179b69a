"""The network in PyTorch, in float32 as it is, or with its weights in a shorter precision."""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ....choices import Precision
from ....evaluation.profiling import PRECISIONS, name_of
from ....families.timm_models.network import SNNet

GPU_TURN = threading.RLock()  # held by whoever uses a GPU: while a CUDA graph is recorded, nothing else may run there


class TorchBackend:
    """Runs stitches by calling the network, or a copy of it in another precision.

    Args:
        model: the network, in eval mode on its device; kept as `network`.
        precision: the precision; in `"fp32"` the network runs as it is.

    Raises:
        ValueError: if the device does not take the precision.
    """

    engine = "torch"

    def __init__(self, model: SNNet, precision: Precision = "fp32") -> None:
        self.network = model
        device = next(model.parameters()).device
        if precision == "fp16" and device.type == "cpu":
            raise ValueError("precision fp16 is for GPUs, and the network is on the CPU: use bf16 or fp32 there.")
        self.name = name_of(device)
        if precision != "fp32":
            model = copy.deepcopy(model).to(PRECISIONS[precision])
            self.name += f", weights in {precision}"
        self.model, self.precision = model, precision
        self.ready: Collection[int] = frozenset(model.stitch_ids)
        self.device, self.dtype = device, next(model.parameters()).dtype
        self._turn: AbstractContextManager[object] = GPU_TURN if device.type == "cuda" else nullcontext()

    def precision_of(self, stitch_id: int) -> Precision:
        """Return the precision of the copy that runs all stitches."""
        return self.precision

    def prepare(self, stitch_ids: Sequence[int], batch_sizes: Sequence[int]) -> None:
        """Call each stitch once, since first calls are slow; the batch size does not matter to torch."""
        image = torch.zeros(1, self.model.in_chans, *self.model.image_size)
        for stitch_id in stitch_ids:
            self.run(image, stitch_id)

    @torch.inference_mode()
    def run(self, images: Tensor, stitch_id: int) -> Tensor:
        """Compute the logits of images, shape (B, C, H, W), on the network's device."""
        with self._turn:
            logits: Tensor = self.model(images.to(self.device, self.dtype), stitch_id=stitch_id)
            return logits.float().cpu()

    def close(self) -> None:
        """Do nothing: there is nothing to give up."""
