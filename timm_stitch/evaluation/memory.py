"""The memory that one call of a stitch takes: its weights, and the tensors that are alive at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..anchors.macs import Args, Kwargs
from ..anchors.view import Inputs
from ..network.stitchable import StitchableNetwork
from ..plan.stitch_plan import Stitch


def count_memory(model: StitchableNetwork, stitch: Stitch, x: Inputs) -> int:
    """Measure the bytes of a stitch's weights and of the other tensors that its forward pass holds at once."""
    weights = sum(p.numel() * p.element_size() for p in model.extract(stitch.stitch_id).parameters())
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model.call(x, stitch.stitch_id)
        return int(weights + torch.cuda.max_memory_allocated(device) - before)
    inputs = (leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor))
    with _Alive((*model.parameters(), *model.buffers(), *inputs)) as alive:
        model.call(x, stitch.stitch_id)
    return int(weights + alive.peak)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that calls of this thread make, as long as they live.

    Args:
        known: the tensors that existed before, which do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        self.living: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: OpOverload, types: object, args: Args = (), kwargs: Kwargs = None) -> object:
        out: object = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.known or key in self.living:
            return

        def gone(_: object) -> None:
            self.now -= size
            self.living.pop(key, None)

        self.living[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
