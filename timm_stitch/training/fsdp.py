"""FSDP2 through Accelerate, for networks whose training does not fit one device.

Accelerate shards each block of the anchors (their classes are the network's `_no_split_modules`) and the rest
as one. Blocks that a step does not use are neither gathered nor averaged.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.optim import Optimizer

from ..data.processes import summed
from ..network.stitchable import StitchableNetwork
from .config import TrainConfig

_FULL = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
_SHARDED = dcp.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


def is_sharded(accelerator: Accelerator, config: TrainConfig) -> bool:
    """Whether this run was launched with FSDP2.

    Raises:
        ValueError: for FSDP1, and for options that do not work with sharding.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # Accelerate shards on accelerators only; torch does on CPU, too.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP1 averages the gradients of unused parameters: launch with --fsdp_version 2.")
    for name, without in (("ema_decay", None), ("evaluate_every", 0), ("dense_updates", False)):
        if getattr(config, name) != without:
            raise ValueError(f"{name} must be {without} with FSDP2, got {getattr(config, name)!r}: leave it out.")
    return True


def shard(accelerator: Accelerator, model: StitchableNetwork, optimizer: Optimizer) -> Optimizer:
    """Shard a network in place, with its optimiser; returns the optimiser as Accelerate prepared it."""
    blocks = {type(m).__name__ for view in model.views for i in range(view.depth) for m in view.modules(i)}
    module: Any = model
    module._no_split_modules = sorted(blocks)  # where Accelerate looks for them
    prepared, optimizer = accelerator.prepare(model, optimizer)
    register_fsdp_forward_method(prepared, "forward_several")
    return optimizer


def full_states(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gather the whole weights and the optimiser's state, by name, on the CPU of the main process; empty on others."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return (
        dcp.get_model_state_dict(model, options=_FULL),
        dict(dcp.get_optimizer_state_dict(model, inner, options=_FULL)),
    )


def load_optimizer(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give each process its shard of the state from `full_states`."""
    inner = getattr(optimizer, "optimizer", optimizer)
    dcp.set_optimizer_state_dict(model, inner, state, options=_SHARDED)
    for name, parameter in model.named_parameters():
        if name not in state["state"]:  # no step has used it; torch makes a state all the same
            inner.state.pop(parameter, None)


def local_tensors(model: nn.Module) -> dict[str, Tensor]:
    """List the tensors of the state; of sharded ones this process's shard."""
    return {name: t.to_local() if hasattr(t, "to_local") else t for name, t in model.state_dict().items()}


def any_process(name: str | None, device: torch.device) -> str | None:
    """Share a name that any process may have: None only if no process has one."""
    count = summed(torch.tensor(float(name is not None), device=device))
    return (name or "of another process") if count else None
