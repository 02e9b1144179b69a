"""BatchNorm's running statistics, measured again: for one stitch, or shared by all.

A network trained with many stitches holds statistics that are a mixture of all of them. Slimmable
networks (arXiv:1812.08928) measure them again for each sub-network before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..families.timm_models.network import SNNet
from ..network.modes import evaluating
from .data_parallel import average_statistics

BatchNorm = torch.nn.modules.batchnorm._BatchNorm
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def recalibrate(
    model: SNNet, loader: Iterable[Any], stitch_id: int | None = None, *, progress: bool = False
) -> dict[str, Tensor]:
    """Measure BatchNorm's statistics again, as the mean over all batches; nothing else runs in train mode.

    Args:
        model: the network; the statistics of what runs are replaced. For statistics of one stitch that
            leave the others alone, give `model.extract(stitch_id, copy=True)`.
        loader: batches of images (B, C, H, W), or tuples that begin with one, as for evaluation; on several
            processes each one's own share, of equal size.
        stitch_id: the stitch to measure for; None measures over all stitches together.
        progress: show a bar.

    Returns:
        The new statistics by their names in `state_dict`: keep one such dict a stitch, and bring it back
        with `model.load_state_dict(statistics, strict=False)`. Empty for a network without BatchNorm.

    Raises:
        ValueError: if the plan has no such id, or there are no images.
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
        for batch in tqdm(loader, desc="recalibrate", unit="batch", disable=not progress):
            images = batch[0] if isinstance(batch, (list, tuple)) else batch
            batches += 1
            for _ in model.forward_each(images.to(device), ids):
                pass
    if not batches:
        raise ValueError("there is nothing to measure on: the loader gave no images.")
    average_statistics(model)
    state = model.state_dict()
    return {f"{name}.{key}": state[f"{name}.{key}"].clone() for name in ran for key in _STATISTICS}


@contextmanager
def _measuring(model: SNNet, norms: Mapping[str, BatchNorm]) -> Iterator[list[str]]:
    """Let these layers alone run in train mode, from nothing and as a mean over batches; then all is as it was.

    Yields:
        The names of those that ran, when all is done; the others have the statistics that they had.
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
