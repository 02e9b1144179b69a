"""Stitches as programs of `torch.export`: one holds its weights, several share a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .job import Job, Place, Run

BATCHES: tuple[str, ...] = ("any", "number", "range")
QUANTIZE: tuple[str, ...] = ()
TO_SHARE: dict[str, Any] = {}
_WEIGHTS_FILE = "weights.safetensors"


def check_packages() -> None:
    """Torch is there."""


def write(job: Job, folder: Path) -> dict[int, Place]:
    """One file a stitch; where there are several, all weights in one more."""
    weights: dict[str, Tensor] = {}
    places: dict[int, Place] = {}
    for stitch_id, model in job.stitches("export"):
        program = job.program(model)
        if len(job.alone) > 1:
            for name, tensor in program.state_dict.items():
                weights[name] = tensor.detach().contiguous()
                empty = tensor.detach().to("meta")
                program.state_dict[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        places[stitch_id] = {"file": f"stitch-{stitch_id}.pt2"}
        torch.export.save(program, folder / places[stitch_id]["file"])
    if weights:
        save_file(weights, folder / _WEIGHTS_FILE)
    return places


def load(folder: Path, place: Place) -> Run:
    """What runs a file, with the weights beside it if it has none."""
    program = torch.export.load(folder / place["file"])
    module, shared = program.module(), folder / _WEIGHTS_FILE
    if shared.exists():
        weights = load_file(shared)
        module.load_state_dict({name: weights[name] for name in program.state_dict}, assign=True)
    return module
