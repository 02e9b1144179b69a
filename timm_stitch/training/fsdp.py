"""FSDP2 through Accelerate, for networks whose training does not fit one device.

Accelerate shards each block of the anchors (their classes are the network's `_no_split_modules`) and the rest
as one. Blocks that a step does not use are neither gathered nor averaged.

Imports torch, Accelerate and the layers below.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as whole
from torch.distributed.fsdp import register_fsdp_forward_method

from ..anchors.meta_device import meta_copy
from ..data.processes import summed
from ..network.network import SNNet
from .config import TrainConfig

_FULL = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)
_SHARED_OUT = whole.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


def is_sharded(accelerator: Accelerator, config: TrainConfig) -> bool:
    """Whether this run was launched with FSDP2.

    Raises:
        ValueError: for FSDP1, and for what does not go together with sharding.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # Accelerate shards on accelerators only; torch does on CPU, too.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP1 averages what a step did not use: launch with --fsdp_version 2.")
    for name, without in (("ema_decay", None), ("evaluate_every", 0), ("dense_updates", False)):
        if getattr(config, name) != without:
            raise ValueError(f"{name}={getattr(config, name)!r} does not go together with FSDP2: leave it out.")
    return True


def hollow(model: SNNet) -> SNNet:
    """A copy without the parameters' memory, into which the whole weights can be loaded."""
    return meta_copy(model, buffers=False)


def shard(accelerator: Accelerator, model: SNNet, optimizer: torch.optim.Optimizer) -> Any:
    """Shard a network in place, with its optimiser; returns the optimiser as Accelerate prepared it."""
    blocks = {type(m).__name__ for part in model.views for i in range(part.depth) for m in part.modules(i)}
    model._no_split_modules = sorted(blocks)  # type: ignore[assignment]
    prepared, optimizer = accelerator.prepare(model, optimizer)
    register_fsdp_forward_method(prepared, "forward_several")
    return optimizer


def whole_states(model: nn.Module, optimizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole weights and the optimiser's state, by names and on the CPU of the main process; empty on others."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return (
        whole.get_model_state_dict(model, options=_FULL),
        dict(whole.get_optimizer_state_dict(model, inner, options=_FULL)),
    )


def load_optimizer(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Give each process its part of what `whole_states` kept."""
    inner = getattr(optimizer, "optimizer", optimizer)
    whole.set_optimizer_state_dict(model, inner, state, options=_SHARED_OUT)
    for name, parameter in model.named_parameters():
        if name not in state["state"]:  # no step has used it so far; torch makes a state for it all the same
            inner.state.pop(parameter, None)


def own_parts(model: nn.Module) -> dict[str, Tensor]:
    """The tensors, of the sharded ones this process's part."""
    return {name: t.to_local() if hasattr(t, "to_local") else t for name, t in model.state_dict().items()}


def anywhere(found: str | None, device: torch.device) -> str | None:
    """What one process found, for all of them to know that one did."""
    count = summed(torch.tensor(float(found is not None), device=device))
    return (found or "of another process") if count else None
