"""Stitches as one file of LiteRT (TensorFlow Lite), a signature each, with the weights of all of them once.

The converter is Google's litert-torch, the quantisation ai-edge-quantizer's. Optional
(`pip install 'timm_stitch[litert]'`) and imported where it is used.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .job import Job, Place, Run, need, with_plain_attention

BATCHES: tuple[str, ...] = ("number",)
QUANTIZE: tuple[str, ...] = ("int8",)
TO_SHARE: dict[str, Any] = {}
_FILE = "stitches.tflite"


def check_packages() -> None:
    """Import what LiteRT needs."""
    need(("litert_torch", "ai_edge_litert", "ai_edge_quantizer"), "format='litert'", "litert")


def write(job: Job, folder: Path) -> dict[int, Place]:
    """One file with a signature for each stitch."""
    images = torch.zeros(job.batch.smallest, *job.shape)
    converter: Any = import_module("litert_torch")
    with _quietly():
        for stitch_id, model in job.stitches("capture"):
            with_plain_attention(model)
            converter = converter.signature(
                f"stitch_{stitch_id}", _Named(model).eval(), sample_kwargs={"images": images}
            )
        converter.convert().export(str(folder / _FILE))
        if job.quantize:
            _int8(folder / _FILE)
    return {stitch_id: {"file": _FILE, "signature": f"stitch_{stitch_id}"} for stitch_id in job.alone}


def load(folder: Path, place: Place) -> Run:
    """What runs a signature with LiteRT's interpreter."""
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(model_path=str(folder / place["file"]))
    run = interpreter.get_signature_runner(place["signature"])
    return lambda images: torch.from_numpy(run(images=images.numpy())["logits"])


class _Named(nn.Module):
    """A network whose output has a name, which the signature takes over.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(images)}


def _int8(file: Path) -> None:
    """Replace a file by one with 8-bit weights, whose inputs are quantised as they come."""
    quantizer, recipe = import_module("ai_edge_quantizer.quantizer"), import_module("ai_edge_quantizer.recipe")
    found = quantizer.Quantizer(str(file), recipe.dynamic_wi8_afp32()).quantize()
    file.unlink()
    found.export_model(str(file))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the converter prints of each of its steps."""
    with redirect_stdout(io.StringIO()):
        yield
