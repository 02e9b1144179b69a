"""Several processes that train one network: only what a step used is averaged, and nothing is searched for.

Every process trains the same stitches in a step, so the parameters with a gradient are the same
everywhere, known without asking. Their gradients are averaged in flat buckets after the step's last
micro-batch. The network needs no wrapper; its weights are made equal once, at the start.

Imports torch and timm.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from timm.utils import distribute_bn
from torch import Tensor, nn

from ..data.processes import world_size

BUCKET_BYTES = 25 * 2**20  # that of torch's DistributedDataParallel


@torch.no_grad()
def broadcast_weights(model: nn.Module) -> None:
    """Give every process the weights and statistics of the first."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            if tensor.dtype != torch.bool:
                dist.broadcast(tensor, 0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> int:
    """Average over all processes the gradients that there are.

    Args:
        parameters: those with a gradient must be the same on every process.

    Returns:
        How many bytes this process gave.
    """
    if world_size() == 1:
        return 0
    buckets: dict[tuple[torch.dtype, torch.device], list[list[Tensor]]] = {}
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        key, size = (grad.dtype, grad.device), grad.numel() * grad.element_size()
        rows = buckets.setdefault(key, [])
        if not rows or sizes[key] + size > BUCKET_BYTES:
            rows.append([])
            sizes[key] = 0
        rows[-1].append(grad)
        sizes[key] += size
    under_way, total = [], 0
    for rows in buckets.values():
        for grads in rows:
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            total += flat.numel() * flat.element_size()
            under_way.append((dist.all_reduce(flat, async_op=True), flat, grads))
    for work, flat, grads in under_way:
        work.wait()
        flat /= world_size()
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))
    return total


def average_statistics(model: nn.Module) -> None:
    """Average the running statistics of BatchNorm over all processes."""
    if world_size() > 1:
        distribute_bn(model, world_size(), reduce=True)
