"""BatchNorm's running statistics, measured again: for one stitch, or shared by all.

A network trained with many stitches holds statistics that are a mixture of all of them. Slimmable
networks (arXiv:1812.08928) measure them again for each sub-network before it is used.

Imports torch and the layers below.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..network.network import SNNet
from .data_parallel import average_statistics

_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm


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
        if isinstance(module, _BATCH_NORM) and module.running_mean is not None
    }
    if not norms:
        return {}
    device = next(model.parameters()).device
    before = {
        name: (module.momentum, module.running_mean.clone(), module.running_var.clone())
        for name, module in norms.items()
    }  # type: ignore[union-attr]
    counted = {name: module.num_batches_tracked.clone() for name, module in norms.items()}  # type: ignore[union-attr]
    was_training = [m for m in model.modules() if m.training]
    model.eval()
    for module in norms.values():
        module.reset_running_stats()
        module.momentum = None
        module.train()
    try:
        batches = 0
        for batch in tqdm(loader, desc="recalibrate", unit="batch", disable=not progress):
            images = batch[0] if isinstance(batch, (list, tuple)) else batch
            batches += 1
            for _ in model.forward_each(images.to(device), ids):
                pass
    finally:
        ran = {name for name, module in norms.items() if int(module.num_batches_tracked) > 0}  # type: ignore[arg-type]
        for name, norm in norms.items():
            norm.momentum, mean, var = before[name]
            if name not in ran:
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
                norm.num_batches_tracked.copy_(counted[name])
            norm.eval()
        for mode in was_training:
            mode.training = True
    if not batches:
        raise ValueError("there is nothing to measure on: the loader gave no images.")
    average_statistics(model)
    state = model.state_dict()
    return {
        key: state[key].clone()
        for name in norms
        if name in ran
        for key in (f"{name}.running_mean", f"{name}.running_var", f"{name}.num_batches_tracked")
    }
