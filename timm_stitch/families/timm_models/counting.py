"""Measures what each part of a network costs, once, without running it on real tensors.

The parts run on a twin of the network on the meta device, counted by PyTorch's own registry of flops, so that it
takes neither memory for weights nor arithmetic. The counter is told what fvcore counts besides matrix
products and convolutions (normalisation, adaptive pooling), so that our figures line up with the papers' tables. The
product inside a low-rank stitching layer is left out: it is of weights alone, the same for any number of
images, and gone once merged.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...anchors.block_view import BlockView
from ...anchors.macs import NORMS, Macs
from ...anchors.meta_device import meta_copy
from ...anchors.view import ImageInputs
from ...plan.costs import AnchorCosts, Cost, PlanCosts
from ...plan.steps import Block, Head, Stem, Step


class _Pooling(TorchFunctionMode):
    """Counts what `adaptive_avg_pool2d` pools: fvcore counts it, and no other pooling, as one a value."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.adaptive_avg_pool2d:
            self.values += args[0].numel()
        return func(*args, **(kwargs or {}))


def _macs(function: Callable[[], Any]) -> tuple[int, Any]:
    counter, pooling = Macs(NORMS), _Pooling()
    with counter, pooling:
        result = function()
    return counter.total + pooling.values, result


def _params(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in {id(t): t for t in tensors}.values())


def image_size_of(network: Any) -> tuple[int, int]:
    """(height, width) of the images that a network takes, or expects by default."""
    used = [network.views[segment.anchor] for stitch in network.plan for segment in stitch.segments]
    sizes = [view.image_size for view in dict.fromkeys(used) if view.image_size]
    cfg = getattr(network, "pretrained_cfg", None)
    if not cfg:  # not yet: what its anchors were made for
        embeds: list[Any] = [getattr(view.anchor, "patch_embed", None) for view in used]
        made_for = [embed.img_size for embed in embeds if getattr(embed, "img_size", None)]
        cfg = dict(getattr(used[0].anchor, "pretrained_cfg", None) or {})
        cfg |= {"input_size": (3, *made_for[0])} if made_for else {}
    height, width = sizes[0] if sizes else cfg.get("input_size", (3, 224, 224))[-2:]
    return height, width


@torch.no_grad()
def measure(network: Any) -> PlanCosts:
    """The costs of every part that a network holds, for one image of its input size.

    Args:
        network: an `SNNet` on any device, the meta device included; this file is below its class.

    Returns:
        macs and parameters by part; what the network does not hold (after `extract`) is None.
    """
    twin = meta_copy(network).eval().merge_low_rank()
    for module in twin.modules():
        if hasattr(module, "fused_attn"):  # a fused kernel would hide attention's products from the counter
            module.fused_attn = False
    image = torch.empty(1, twin.in_chans, *twin.image_size, device="meta", dtype=next(twin.parameters()).dtype)
    inputs, executor = ImageInputs(image), twin.executor
    steps = {step for stitch in twin.plan for step in stitch.steps}
    activations = _activations(twin, inputs)
    anchors = tuple(
        _anchor_costs(number, view, steps, activations, inputs)
        if any(step.anchor == number for step in steps)
        else None
        for number, view in enumerate(twin.views)
    )
    layers: list[Cost | None] = []
    for number, layer in enumerate(network.stitching_layers):
        if layer is None:
            layers.append(None)
            continue
        before, after = next((a, b) for stitch in twin.plan for n, a, b in stitch.joints if n == number)
        leave, enter = (before.anchor, before.stop), (after.anchor, after.start)
        macs, _ = _macs(partial(executor.cross, number, activations[leave], leave, enter, inputs))
        layers.append(Cost(macs, _params(layer.parameters())))
    present = (n for n, layer in enumerate(layers) if layer is not None)
    back_prefix_layers = frozenset(n for n in present if network.uses_back_prefix_tokens(n))
    return PlanCosts(anchors, tuple(layers), network.stitched_norm, back_prefix_layers)


def _anchor_costs(
    number: int,
    view: BlockView,
    steps: Container[Step],
    activations: Mapping[tuple[int, int], Tensor],
    inputs: ImageInputs,
) -> AnchorCosts:
    """What the parts of one anchor cost, as far as the steps use them."""
    groups = view.parameter_groups()
    own = dict(view.anchor.named_parameters())
    in_blocks = {name for i in range(view.depth) for name in view.block_names(i)}
    apart = (*groups.stem, *groups.norm, *in_blocks)

    def under(prefixes: Iterable[str]) -> list[Tensor]:
        return [p for n, p in own.items() if _under(n, prefixes)]

    stem_macs = _macs(partial(view.stem, inputs.images))[0] if Stem(number) in steps else 0
    blocks, transitions = [], []
    for i in range(view.depth):
        cost = Cost()
        if Block(number, i) in steps:
            macs, _ = _macs(partial(view.run, activations[number, i], i, i + 1, inputs))
            cost = Cost(macs, _params(p for module in view.modules(i) for p in module.parameters()))
        blocks.append(cost)
        downsampling = view.transition(i)
        transitions.append(_params(downsampling.parameters()) if downsampling is not None else 0)
    norm_macs = head_macs = 0
    if Head(number, False) in steps or Head(number, True) in steps:
        last = activations[number, view.depth]
        norm_macs, last = _macs(partial(view.norm, last))  # also where it has no weights and only turns the layout
        head_macs, _ = _macs(partial(view.head, last))
    return AnchorCosts(
        Cost(stem_macs, _params(under(groups.stem))),
        _params(under(groups.embeddings)),
        tuple(blocks),
        Cost(norm_macs, _params(under(groups.norm))),
        Cost(head_macs, _params(p for n, p in own.items() if not _under(n, apart))),
        _params(under(view.prefix_names())),
        tuple(transitions),
    )


def _activations(twin: Any, inputs: ImageInputs) -> dict[tuple[int, int], Tensor]:
    """What crosses each (anchor, boundary) of the plan's stitches; its shape is the same in all of them."""
    found: dict[tuple[int, int], Tensor] = {}
    for stitch in twin.plan:
        h = None
        for n, place in enumerate(stitch.places):
            if place not in found:
                found[place] = twin.executor.step(stitch, n, h, inputs)
            h = found[place]
    return found


def _under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
