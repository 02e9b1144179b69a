"""The process that converts stitches for an engine: `python -m … NETWORK FOLDER FORMAT LAYOUT IMAGES STITCH_ID…`.

The layout is `whole`, a file for each stitch, or `parts`, one for each part that stitches share. The images are a file
of those that calibrate int8, or empty for float32.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ....anchors.view import ImageInputs
from ....families.timm_models.network import SNNet
from ....hub.loading import from_hub
from ....plan.shared_parts import Part, shared_parts
from ...exporting import FORMATS, copy_for_export
from ...formats import onnx_int8, openvino_files
from ...formats.job import Batch, Job, Location
from .conversions import write_conversion


def main(arguments: list[str]) -> None:
    """Convert stitches of the network in a folder into another."""
    network, folder, format, layout, images, *stitch_ids = arguments
    if hasattr(os, "nice"):
        os.nice(10)  # requests come first
    torch.set_num_threads(1)
    model = copy_for_export(cast("SNNet", from_hub(network, verify=False)), None)  # the server wrote it a moment ago
    FORMATS[format].check_packages()
    ids = [int(stitch_id) for stitch_id in stitch_ids]
    if layout == "parts":
        write_conversion(Path(folder), write_parts(model, ids, Path(folder)))
        return
    extracted = {k: model.extract(k) for k in ids}
    job = Job(model, extracted, Batch(1))
    if images:
        job = Job(model, extracted, Batch(1), onnx_int8.WHOLE, torch.from_numpy(np.load(images)))
    write_conversion(Path(folder), FORMATS[format].write(job, Path(folder)))


class PartModule(nn.Module):
    """A part as a module of one tensor: images, or the activation that the part before left.

    Args:
        model: the network.
        part: the part.
    """

    def __init__(self, model: SNNet, part: Part) -> None:
        super().__init__()
        self.model, self.part = model, part

    def forward(self, h: Tensor) -> Tensor:
        """Run the part; blocks that look at the images themselves find an activation, and fail or differ."""
        part = self.part
        before = h if part.start else None
        out: Tensor = self.model.executor.advance(part.stitch, part.start, part.stop, before, ImageInputs(h))[0]
        return out


def write_parts(model: SNNet, stitch_ids: Sequence[int], folder: Path) -> dict[int, Location]:
    """Write the parts that stitches share as OpenVINO's graphs; returns the chain of each stitch."""
    parts, chains = shared_parts((model.plan[k] for k in stitch_ids), model.executor.stitched_norm)
    modules = [PartModule(model, part) for part in parts]
    shapes: dict[int, tuple[int, ...]] = {}
    with torch.no_grad():
        for chain in chains.values():
            h = torch.zeros(2, model.in_chans, *model.image_size)
            for number in chain:
                shapes[number] = tuple(h.shape[1:])
                h = modules[number](h)
    graphs = ((f"part-{number}.xml", module, shapes[number]) for number, module in enumerate(modules))
    openvino_files.write_graphs(Job(model, {}, Batch(1)), graphs, folder)
    names = {k: [f"part-{number}.xml" for number in chain] for k, chain in chains.items()}
    return {k: {"file": chain[0], "parts": " ".join(chain)} for k, chain in names.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
