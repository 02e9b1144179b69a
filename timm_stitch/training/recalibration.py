"""Recalibration of BatchNorm's running statistics, for one stitch or for all stitches together.

Training with many stitches leaves statistics that are a mixture of all of them. Slimmable networks
(arXiv:1812.08928) recalibrate them for each sub-network before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..data.batches import Batch
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
from ..progress import progress_bar
from .data_parallel import average_statistics

BatchNorm = torch.nn.modules.batchnorm._BatchNorm
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def recalibrate(
    model: StitchableNetwork, loader: Iterable[object], stitch_id: int | None = None, *, progress: bool = False
) -> dict[str, Tensor]:
    """Recalibrate BatchNorm's statistics, as the mean over all batches; nothing else runs in train mode.

    Args:
        model: the network; the statistics of the layers that run are replaced. For statistics of one stitch that
            leave the others alone, give `model.extract(stitch_id, copy=True)`.
        loader: batches as for evaluation: images (B, C, H, W), tuples that begin with them, or mappings of tensors.
            Several processes give their own shares, of equal size.
        stitch_id: the stitch to recalibrate for; default all stitches together.
        progress: whether to show a bar.

    Returns:
        The new statistics by their names in `state_dict`; empty for a network without BatchNorm. Keep one such dict
        per stitch, and load it with `model.load_state_dict(statistics, strict=False)`.

    Raises:
        ValueError: if the plan has no such id, or there are no images.

    Examples:
        >>> import timm, torch, timm_stitch
        >>> anchors = [timm.create_model("resnet18", channels=(width,) * 4, num_classes=4) for width in (8, 16)]
        >>> model = timm_stitch.stitch(anchors)
        >>> batches = [torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)]
        >>> statistics = timm_stitch.recalibrate(model, batches, stitch_id=0)
        >>> len(statistics), int(statistics["anchors.0.bn1.num_batches_tracked"])
        (63, 2)
    """
    ids = model.stitch_ids if stitch_id is None else (model.plan[stitch_id].stitch_id,)
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    }
    if not norms:
        return {}
    device, batches = next(model.parameters()).device, 0
    with _measuring(model, norms) as ran:
        for item in progress_bar(loader, desc="recalibrate", unit="batch", progress=progress):
            batches += 1
            for _ in model.forward_each(Batch.of(item).to(device).inputs, ids):
                pass
    if not batches:
        raise ValueError("there is nothing to measure on: the loader gave no images.")
    average_statistics(model)
    state = model.state_dict()
    return {f"{name}.{key}": state[f"{name}.{key}"].clone() for name in ran for key in _STATISTICS}


@contextmanager
def _measuring(model: StitchableNetwork, norms: Mapping[str, BatchNorm]) -> Iterator[list[str]]:
    """Run these layers alone in train mode, with statistics that start empty; restore all modes at the end.

    Yields:
        A list that gets the names of the layers that ran; the others get back their statistics.
    """
    before = {
        name: (norm.momentum, {key: getattr(norm, key).clone() for key in _STATISTICS}) for name, norm in norms.items()
    }
    ran: list[str] = []
    with evaluating(model):
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            yield ran
        finally:
            ran += [name for name, norm in norms.items() if norm.num_batches_tracked]
            for name, norm in norms.items():
                norm.momentum, statistics = before[name]
                if name not in ran:
                    for key, value in statistics.items():
                        getattr(norm, key).copy_(value)
                norm.eval()
