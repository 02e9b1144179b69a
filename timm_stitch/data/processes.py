"""The processes of a distributed run, and sums over them."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Count the processes; 1 outside of a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Find the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def summed(tensor: Tensor) -> Tensor:
    """Sum a copy of a tensor over all processes."""
    total = tensor.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total
