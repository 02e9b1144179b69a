"""Measures what each part of a network costs, once, without running it on real tensors.

The parts run on a twin of the network on the meta device under PyTorch's own flop counter, so that it
takes neither memory for weights nor arithmetic. The counter is told what fvcore counts besides matrix
products and convolutions (normalisation, adaptive pooling), so that our figures line up with the papers' tables. The
product inside a low-rank stitching layer is left out: it is of weights alone, the same for any number of
images, and gone once merged.

Imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..anchors.view import own_hooks
from ..plan.costs import AnchorCosts, Cost, PlanCosts

if TYPE_CHECKING:
    from .network import SNNet

_aten = torch.ops.aten


def _elementwise(per_element: int) -> Callable[..., int]:
    def flops(shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * per_element * prod(shape)  # the counter counts two flops to one multiply-add

    return flops


# fvcore counts an affine layer norm as 5 multiply-adds per element and batch norm in eval mode as 2.
_NORMS = {
    _aten.native_layer_norm: _elementwise(5),
    _aten.native_group_norm: _elementwise(5),
    _aten.native_batch_norm: _elementwise(2),
    _aten._native_batch_norm_legit_no_training: _elementwise(2),
    _aten.cudnn_batch_norm: _elementwise(2),
}


class _Pooling(TorchFunctionMode):
    """Counts what `adaptive_avg_pool2d` pools: fvcore counts it, and no other pooling, as one a value."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.adaptive_avg_pool2d:
            self.values += args[0].numel()
        return func(*args, **(kwargs or {}))


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy of a module with every tensor on the meta device; the original is not touched."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        own_hooks(module)  # a user's hooks are not to see meta tensors
    return twin


def _macs(function: Callable[[], Any]) -> tuple[int, Any]:
    counter, pooling = FlopCounterMode(display=False, custom_mapping=_NORMS), _Pooling()
    with counter, pooling:
        result = function()
    return counter.get_total_flops() // 2 + pooling.values, result


def _params(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in {id(t): t for t in tensors}.values())


@torch.no_grad()
def measure(model: SNNet) -> PlanCosts:
    """The costs of every part that a network holds, for one image of its input size.

    Args:
        model: an SN-Net on any device, the meta device included.

    Returns:
        macs and parameters by part; what the network does not hold (after `extract`) is None.
    """
    twin = meta_twin(model).eval().merge_low_rank()  # type: ignore[operator]
    for module in twin.modules():
        if hasattr(module, "fused_attn"):  # a fused kernel would hide attention's products from the counter
            module.fused_attn = False
    size = twin.image_size
    image = torch.empty(1, twin.in_chans, *size, device="meta", dtype=next(twin.parameters()).dtype)
    steps = {step for stitch in twin.plan for step in stitch.steps}
    activations = _activations(twin, image)

    anchors: list[AnchorCosts | None] = []
    for number, view in enumerate(twin.views):
        if not any(kind != "layer" and anchor == number for kind, anchor, _ in steps):
            anchors.append(None)
            continue
        names = view.names()
        own = dict(view.anchor.named_parameters())
        stem = [p for n, p in own.items() if _under(n, names["stem"])]
        embeddings = [p for n, p in own.items() if _under(n, names["embeddings"])]
        norm = [p for n, p in own.items() if _under(n, names["norm"])]
        in_blocks = {name for i in range(view.depth) for name in view.block_names(i)}
        own_prefix = [p for n, p in own.items() if _under(n, view.prefix_names())]
        apart = (*names["stem"], *names["norm"], *in_blocks)
        head = [p for n, p in own.items() if not _under(n, apart)]
        has_stem = ("stem", number, 0) in steps
        stem_macs = _macs(lambda v=view: v.stem(image))[0] if has_stem else 0
        blocks, transitions = [], []
        for i in range(view.depth):
            if ("block", number, i) in steps:
                macs, _ = _macs(lambda v=view, b=i, a=number: v.run(activations[a, b], b, b + 1, image))
                blocks.append(Cost(macs, _params(p for module in view.modules(i) for p in module.parameters())))
            else:
                blocks.append(Cost())
            downsampling = view.transition(i)
            transitions.append(_params(downsampling.parameters()) if downsampling is not None else 0)
        norm_macs = head_macs = 0
        if any(kind == "head" and anchor == number for kind, anchor, _ in steps):
            last = activations[number, view.depth]
            if _under_any(own, names["norm"]):
                norm_macs, last = _macs(lambda v=view, h=last: v.norm(h))
            head_macs, _ = _macs(lambda v=view, h=last: v.head(h))
        anchors.append(
            AnchorCosts(
                Cost(stem_macs, _params(stem)),
                _params(embeddings),
                tuple(blocks),
                Cost(norm_macs, _params(norm)),
                Cost(head_macs, _params(head)),
                _params(own_prefix),
                tuple(transitions),
            )
        )

    layers: list[Cost | None] = []
    for number, layer in enumerate(model.stitching_layers):
        if layer is None:
            layers.append(None)
            continue
        before, after = next((a, b) for stitch in twin.plan for n, a, b in stitch.joints if n == number)
        leaving = activations[before.anchor, before.stop]
        macs, _ = _macs(lambda n=number, h=leaving, a=before, b=after: twin.cross(n, h, a, b, image))
        layers.append(Cost(macs, _params(layer.parameters())))
    borrowing = frozenset(n for n, layer in enumerate(model.stitching_layers) if layer is not None and model.borrows(n))
    return PlanCosts(tuple(anchors), tuple(layers), model.norms_stitched, borrowing)


def _activations(twin: SNNet, image: Tensor) -> dict[tuple[int, int], Tensor]:
    """What crosses each (anchor, boundary) of the plan's stitches."""
    found: dict[tuple[int, int], Tensor] = {}
    for stitch in twin.plan:
        h = twin.views[stitch.front].stem(image)
        for i, segment in enumerate(stitch.segments):
            if i:
                h = twin.cross(stitch.layers[i - 1], h, stitch.segments[i - 1], segment, image)
            for block in range(segment.start, segment.stop):
                if (segment.anchor, block + 1) in found:
                    found[segment.anchor, block] = h
                    h = found[segment.anchor, block + 1]
                    continue
                found[segment.anchor, block] = h
                h = twin.views[segment.anchor].run(h, block, block + 1, image)
            found[segment.anchor, segment.stop] = h
    return found


def _under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _under_any(names: Iterable[str], prefixes: Iterable[str]) -> bool:
    return any(_under(name, prefixes) for name in names)
