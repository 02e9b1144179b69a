"""The proof that a network is what its files say: what is loaded from them gives the same output."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..anchors.meta_device import is_on_meta
from ..families.registry import family_of
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
from .json_files import read_saved

_TOLERANCE = 1e-5
_ADVICE = (
    "change models by arguments of timm.create_model or fields of their configuration, which are saved, not in place; "
    "check=False saves the network nonetheless"
)


@torch.no_grad()
def check_reloaded(network: StitchableNetwork, folder: Path) -> None:
    """Refuse files from which another network would be loaded.

    Both run on one small input: all anchors, which use every block, and two stitched paths.

    Args:
        network: the network that was saved.
        folder: its files.

    Raises:
        ValueError: if the files cannot be loaded, or give another output, naming the stitch.
    """
    if is_on_meta(network):
        return
    first = next(network.parameters())
    devices = [first.device] if first.device.type == "cuda" else []
    # Neither the user's random numbers nor hooks notice the proof, and compiled blocks run as they are.
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"), evaluating(network):
        torch.manual_seed(0)
        inputs = network.example(1)
        expected = _outputs(network, inputs)
        try:
            loaded = family_of(network).load(read_saved(folder)).to(first.device, first.dtype).eval()
            outputs = _outputs(loaded, inputs)
        except Exception as error:
            message = " ".join(str(error).split())
            raise ValueError(
                f"the network would not load again ({type(error).__name__}: {message:.200}): {_ADVICE}."
            ) from error
    for stitch_id, tensors in expected.items():
        difference = _difference(tensors, outputs.get(stitch_id, []))
        if difference:
            raise ValueError(
                f"another network would be loaded: the output of stitch {stitch_id} "
                f"({network.plan[stitch_id].name}) {difference}. Something was changed that the files cannot say: "
                f"{_ADVICE}."
            )


def _outputs(network: StitchableNetwork, inputs: object) -> dict[int, list[Tensor]]:
    """Run all anchors, and the first and last stitched path."""
    stitched = [stitch.stitch_id for stitch in network.plan if not stitch.is_anchor]
    ids = [stitch.stitch_id for stitch in network.plan if stitch.is_anchor] + [*stitched[:1], *stitched[1:][-1:]]
    hooks, network._stitch_hooks = network._stitch_hooks, type(network._stitch_hooks)()
    try:
        return {
            stitch_id: [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            for stitch_id, output in network.forward_each(inputs, ids)
        }
    finally:
        network._stitch_hooks = hooks


def _difference(expected: list[Tensor], actual: list[Tensor]) -> str:
    """Describe how two outputs differ; empty if they are equal."""
    shapes, others = ([tuple(tensor.shape) for tensor in tensors] for tensors in (expected, actual))
    if shapes != others:
        return f"would have the shape {', '.join(map(str, others))} instead of {', '.join(map(str, shapes))}"
    for a, b in zip(expected, actual, strict=True):
        a, b = a.double(), b.double()
        if not torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            return f"would differ by {(a - b).abs().max().item():.3g}"
    return ""
