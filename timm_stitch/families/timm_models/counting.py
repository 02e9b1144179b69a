"""Measures what each part of a network costs, once, without running it on real tensors.

The parts run on a twin of the network on the meta device, which takes neither memory for weights nor arithmetic.
PyTorch's own registry of flops counts them. The counter also counts what fvcore does besides matrix products and
convolutions (normalisation, adaptive pooling), so that our figures agree with the papers' tables. It leaves out the
product inside a low-rank stitching layer: that is of weights alone, the same for any number of images, and gone once
merged.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...anchors.block_view import BlockView
from ...anchors.macs import NORMS, Macs
from ...anchors.meta_device import meta_copy
from ...anchors.view import ImageInputs
from ...network.extraction import by_number
from ...plan.costs import AnchorCosts, Cost, PlanCosts
from ...plan.steps import Block, Head, Stem, Step
from .pretrained_cfg import cfg_of
from .timm_api import TimmModel

Kwargs = Mapping[str, object]


class _Pooling(TorchFunctionMode):
    """Counts one for each value that `adaptive_avg_pool2d` pools, as fvcore does for no other pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: Kwargs | None = None
    ) -> object:
        if func is nn.functional.adaptive_avg_pool2d and isinstance(args[0], Tensor):
            self.values += args[0].numel()
        return func(*args, **(kwargs or {}))


def _macs(function: Callable[[], Tensor]) -> tuple[int, Tensor]:
    counter, pooling = Macs(NORMS), _Pooling()
    with counter, pooling:
        result = function()
    return counter.total + pooling.values, result


def _params(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in {id(t): t for t in tensors}.values())


def image_size_of(network: TimmModel) -> tuple[int, int]:
    """The (height, width) of the images that a network takes, or expects by default."""
    used = [network.views[segment.anchor] for stitch in network.plan for segment in stitch.segments]
    sizes = [view.image_size for view in dict.fromkeys(used) if view.image_size]
    cfg = cfg_of(network)
    if not cfg:  # not yet: the size for which its anchors were made
        embeds = [getattr(view.anchor, "patch_embed", None) for view in used]
        made_for = [size for embed in embeds if (size := getattr(embed, "img_size", None))]
        cfg = {**cfg_of(used[0].anchor), **({"input_size": (3, *made_for[0])} if made_for else {})}
    height, width = sizes[0] if sizes else cfg.get("input_size", (3, 224, 224))[-2:]
    return height, width


@torch.no_grad()
def measure(network: TimmModel, size: tuple[int, int] | None = None) -> PlanCosts:
    """Measure every part that a network holds, for one image.

    Args:
        network: the network on any device, the meta device included.
        size: the (height, width) of the image; default the network's input size.

    Returns:
        The macs and parameters by part; None for a part that the network does not hold (after `extract`).
    """
    for stitch in network.plan:
        network.executor.look(stitch)
    # 1. A twin without memory, with nothing that would hide arithmetic from the counter.
    twin = meta_copy(network).eval().merge_low_rank()
    for module in twin.modules():
        if hasattr(module, "fused_attn"):  # a fused kernel would hide attention's products
            module.__dict__["fused_attn"] = False
    shape, dtype = (size or image_size_of(twin)), next(twin.parameters()).dtype
    image = torch.empty(1, twin.in_chans, *shape, device="meta", dtype=dtype)
    inputs, executor = ImageInputs(image), twin.executor
    # 2. The anchors, part by part, on the activations that enter these.
    steps = {step for stitch in twin.plan for step in stitch.steps}
    activations = _activations(twin, inputs)
    anchors = tuple(
        _anchor_costs(number, view, steps, activations, inputs)
        if any(step.anchor == number for step in steps)
        else None
        for number, view in enumerate(twin.views)
    )
    # 3. The stitching layers, between the activations where they are used.
    layers: list[Cost | None] = [None] * len(network.plan.layers)
    for number, layer in by_number(network.stitching_layers).items():
        joint = next(((a, b) for stitch in twin.plan for n, a, b in stitch.joints if n == number), None)
        if joint is None:  # a projection of a pyramid, and no more
            continue
        before, after = joint
        leave, enter = (before.anchor, before.stop), (after.anchor, after.start)
        macs, _ = _macs(partial(executor.cross, number, activations[leave], leave, enter, inputs))
        layers[number] = Cost(macs, _params(layer.parameters()))
    present = (n for n, layer in enumerate(layers) if layer is not None)
    back_prefix_layers = frozenset(n for n in present if network.uses_back_prefix_tokens(n))
    return PlanCosts(anchors, tuple(layers), network.executor.stitched_norm, back_prefix_layers)


def _anchor_costs(
    number: int,
    view: BlockView,
    steps: Container[Step],
    activations: Mapping[tuple[int, int], Tensor],
    inputs: ImageInputs,
) -> AnchorCosts:
    """Measure the parts of one anchor, as far as the steps use them."""
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


def _activations(twin: TimmModel, inputs: ImageInputs) -> dict[tuple[int, int], Tensor]:
    """Compute the activation at each (anchor, boundary) of the plan's stitches; its shape is the same in all."""
    activations: dict[tuple[int, int], Tensor] = {}
    for stitch in twin.plan:
        h = None
        for n, place in enumerate(stitch.places):
            if place not in activations:
                activations[place] = twin.executor.step(stitch, n, h, inputs)
            h = activations[place]
    return activations


def _under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
