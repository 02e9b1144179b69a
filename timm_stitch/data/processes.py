"""The processes that work on one network together, and sums over them."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes take part; 1 outside of a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def summed(tensor: Tensor) -> Tensor:
    """A copy of a tensor, summed over all processes."""
    total = tensor.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total
