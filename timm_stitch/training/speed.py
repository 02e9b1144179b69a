"""Options of speed and memory that change a step's rounding alone: compiled blocks, layouts, TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..network.stitchable import StitchableNetwork
from .config import TrainConfig


@contextmanager
def set_up(model: StitchableNetwork, config: TrainConfig) -> Iterator[None]:
    """Run a network as `compile`, `grad_checkpointing`, `channels_last` and `tf32` say, until the end of the block."""
    checkpointing, precision = model.grad_checkpointing, torch.get_float32_matmul_precision()
    compiled = {module: module._compiled_call_impl for module in model.modules()}
    try:
        if config.tf32:
            torch.set_float32_matmul_precision("high")
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        model.grad_checkpointing = checkpointing or config.grad_checkpointing
        if config.compile:
            model.compile(dynamic=False)  # else the graphs, and so rounding, depend on which stitch ran first
        yield
    finally:
        for module, before in compiled.items():
            module._compiled_call_impl = before
        model.grad_checkpointing = checkpointing
        torch.set_float32_matmul_precision(precision)
