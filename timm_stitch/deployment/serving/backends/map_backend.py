"""Dense networks in PyTorch: masks of class numbers, or depths, a bounded number at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ....choices import Precision
from ....families.timm_models.network import SNNet
from ...class_names import task_of
from .torch_backend import TorchBackend

MOST_BYTES = 1 << 29  # of the outputs of a dense network in one call


def most_maps(model: SNNet) -> int:
    """Compute how many images a dense network may take at once, so that their outputs stay within memory."""
    height, width = model.image_size
    return max(1, MOST_BYTES // (4 * model.num_classes * height * width))


class MapBackend(TorchBackend):
    """Runs stitches of a dense network, in float32.

    Args:
        model: the network, in eval mode on its device.
        precision: the precision, which must be `"fp32"`.

    Raises:
        ValueError: if the precision is another.
    """

    def __init__(self, model: SNNet, precision: Precision = "fp32") -> None:
        if precision != "fp32":
            raise ValueError(f"precision {precision} is for classifiers, and this network predicts {task_of(model)}.")
        super().__init__(model)
        self.most, self.is_depth = most_maps(model), task_of(model) == "depth"

    @torch.inference_mode()
    def run(self, images: Tensor, stitch_id: int) -> Tensor:
        """Compute masks (B, H, W) of class numbers, or depths."""
        results = []
        for part in images.split(self.most):
            output = self.model(part.to(self.device, self.dtype), stitch_id=stitch_id)
            kept = output[:, 0].float() if self.is_depth else output.argmax(1).to(torch.int16)
            results.append(kept.cpu())
        return torch.cat(results)
