"""Exports stitches as one file of LiteRT (TensorFlow Lite), a signature each, with the weights of all of them once.

The converter is Google's litert-torch, the quantisation ai-edge-quantizer's. Optional
(`pip install '.[litert]'`) and imported only when used.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .job import Job, Location, Run, disable_fused_attention, locate, require_packages

BATCHES: tuple[str, ...] = ("number",)
QUANTIZE: tuple[str, ...] = ("int8",)
RUNTIME_OPTIONS: Mapping[str, object] = {}
_FILE = "stitches.tflite"


def check_packages() -> None:
    """Import the packages that LiteRT needs."""
    require_packages(("litert_torch", "ai_edge_litert", "ai_edge_quantizer"), "format='litert'", "litert")


def write(job: Job, folder: Path) -> dict[int, Location]:
    """Write one file with a signature for each stitch."""
    images = torch.zeros(job.batch.smallest, *job.shape)
    converter: Any = import_module("litert_torch")
    with _quietly():
        for stitch_id, model in job.stitches("capture"):
            disable_fused_attention(model)
            converter = converter.signature(
                f"stitch_{stitch_id}", _Named(model).eval(), sample_kwargs={"images": images}
            )
        converter.convert().export(str(folder / _FILE))
        if job.quantize:
            _int8(folder / _FILE)
    return {stitch_id: {"file": _FILE, "signature": f"stitch_{stitch_id}"} for stitch_id in job.extracted}


def load(folder: Path, location: Location) -> Run:
    """Load a signature with LiteRT's interpreter."""
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(model_path=str(locate(folder, location)))
    run = interpreter.get_signature_runner(location["signature"])
    return lambda images: torch.from_numpy(run(images=images.numpy())["logits"])


class _Named(nn.Module):
    """A network whose output has a name, which its signature takes over.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(images)}


def _int8(file: Path) -> None:
    """Replace a file by one with 8-bit weights, whose inputs are quantised at run time."""
    quantizer, recipe = import_module("ai_edge_quantizer.quantizer"), import_module("ai_edge_quantizer.recipe")
    quantized = quantizer.Quantizer(str(file), recipe.dynamic_wi8_afp32()).quantize()
    file.unlink()
    quantized.export_model(str(file))


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the converter's prints."""
    with redirect_stdout(io.StringIO()):
        yield
