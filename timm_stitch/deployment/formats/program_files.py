"""Exports stitches as programs of `torch.export`: one holds its weights, several share a file of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import one_line_errors
from ...network.weights import save_file
from .job import Job, Location, Run, locate

BATCHES: tuple[str, ...] = ("any", "number", "range")
QUANTIZE: tuple[str, ...] = ()
RUNTIME_OPTIONS: Mapping[str, object] = {}
_WEIGHTS_FILE = "weights.safetensors"


def check_packages() -> None:
    """Do nothing: torch is installed."""


def write(job: Job, folder: Path) -> dict[int, Location]:
    """Write one file per stitch; several have their weights in one more."""
    weights: dict[str, Tensor] = {}
    locations: dict[int, Location] = {}
    for stitch_id, model in job.stitches("export"):
        program = job.program(model)
        if len(job.extracted) > 1:
            for name, tensor in program.state_dict.items():
                weights[name] = tensor.detach().contiguous()
                empty = tensor.detach().to("meta")
                program.state_dict[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        locations[stitch_id] = {"file": f"stitch-{stitch_id}.pt2"}
        torch.export.save(program, folder / locations[stitch_id]["file"])
    if weights:
        save_file(weights, folder / _WEIGHTS_FILE)
    return locations


def load(folder: Path, location: Location) -> Run:
    """Load a file, with the shared weights if it has none of its own."""
    file, shared = locate(folder, location), folder / _WEIGHTS_FILE
    with one_line_errors(f"{file.name} cannot be loaded"):
        program = torch.export.load(file)
        module = program.module()
        if shared.exists():
            weights = load_file(shared)
            module.load_state_dict({name: weights[name] for name in program.state_dict}, assign=True)
    return module
