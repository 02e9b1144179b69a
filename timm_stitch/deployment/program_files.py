"""Stitches as programs of `torch.export`, and these as files: one holds its weights, several share a file of them.

Imports torch and safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

WEIGHTS_FILE = "weights.safetensors"
BATCH = {0: torch.export.Dim("batch", max=2**20)}  # torch 2.6 wants a bound

Run = Callable[[Tensor], Tensor]
Programs = Iterable[tuple[Path, ExportedProgram]]


def make_program(model: nn.Module, shape: tuple[int, ...]) -> ExportedProgram:
    """The program of a model for images of that shape (C, H, W), any number of them."""
    program = torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=(BATCH,), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths on this machine
    return program


def write(programs: Programs, shared: Path | None) -> None:
    """One file a stitch; where there is to be a shared file, all weights in that."""
    weights: dict[str, Tensor] = {}
    for path, program in programs:
        if shared:
            for name, tensor in program.state_dict.items():
                weights[name] = tensor.detach().contiguous()
                empty = tensor.detach().to("meta")
                program.state_dict[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        torch.export.save(program, path)
    if shared:
        save_file(weights, shared)


def load(path: Path) -> Run:
    """What runs a file, with the weights beside it if it has none."""
    program = torch.export.load(path)
    module, shared = program.module(), path.with_name(WEIGHTS_FILE)
    if shared.exists():
        weights = load_file(shared)
        module.load_state_dict({name: weights[name] for name in program.state_dict}, assign=True)
    return module
