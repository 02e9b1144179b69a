"""Initialise stitching layers by least squares over a stream of images.

Source: SN-Net (arXiv:2302.06586), "Stitching layers and initialization": a layer carries the front's activations onto
the back's for the same images. Only the normal equations are kept (one small matrix per layer, in float64), so memory
does not grow with the number of images.

Deviation: the authors solve each joint of a window alone and average the solutions, on augmented images in train mode.
Here a shared layer gets the least-squares solution of all its joints together, in eval mode (`method="joint"`;
`"average"` is the authors' method).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from ..anchors.view import Inputs
from ..choices import JOINS, METHODS, Joins, Method
from ..data.batches import Batch
from ..network.crossing import Join, SharedPositions, rows_at, shared_positions
from ..network.layers import StitchingLayer
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
from ..progress import progress_bar
from .normal_equations import CenteredRows, NormalEquations

ENOUGH = 10  # positions per unknown: on held-out texts 2.5 leave a residual of 0.99, 10 leave 0.68, 40 leave 0.64

_CACHED = 8  # activations of a batch kept in float64

_logger = logging.getLogger(__name__)


def least_squares(front: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the affine map that best carries front activations onto back activations.

    Minimises ||front @ W.T + b - back||_F (arXiv:2302.06586, "Stitching layers and initialization").

    Args:
        front: activations that leave the front segment, shape (n, d_front); n = images x tokens.
        back: activations that enter the back segment for the same images and positions, shape (n, d_back).

    Returns:
        Weight of shape (d_back, d_front) and bias of shape (d_back,), ready for `nn.Linear`. Of several
        best maps (for linearly dependent or constant channels), the one of smallest weights.

    Raises:
        ValueError: if n < d_front + 1, where the solution is not unique; or a value is not finite.

    Examples:
        >>> import torch
        >>> x = torch.randn(100, 8)
        >>> weight, bias = least_squares(x, 2 * x + 1)
        >>> torch.allclose(weight, 2 * torch.eye(8), atol=1e-4)
        True
    """
    equations = NormalEquations(front.shape[1], back.shape[1])
    equations.add([CenteredRows.of(front)], [CenteredRows.of(back)])
    weight, bias, _ = equations.solve()
    return weight.to(front.dtype), bias.to(front.dtype)


@torch.no_grad()
def least_squares_init(
    model: StitchableNetwork,
    images: Inputs | Iterable[object],
    *,
    method: Method = "joint",
    layers: Joins = "all",
    batch_size: int = 16,
    progress: bool = False,
) -> dict[int | str, float]:
    """Set every stitching layer, and every projection of a pyramid, to the least-squares map between its anchors.

    Each anchor sees each image once, in eval mode. Prepare images as for evaluation, without augmentation.

    Args:
        model: the network, or a pyramid or dense network on it; only these layers change.
        images: a tensor (N, C, H, W), or an iterable of batches: images, tuples that begin with them, or mappings of
            tensors from a tokenizer. The paper uses 100 images; texts need several hundred. Padding is left out, and so
            is the first position of causal language models.
        method: `"joint"` to solve all joints of a shared layer together, `"average"` to solve each one alone and
            average the solutions, as the authors do.
        layers: the layers to set: `"projections"` keeps the stitching layers of a network that was trained.
        batch_size: the number of images at a time, if `images` is one tensor.
        progress: whether to show a bar.

    Returns:
        The relative residual ||front W' + b - back|| / ||back - mean|| of each stitching layer by its number, and of
        each projection by its name (for `"average"` the mean over its joints, each with its own solution).

    Raises:
        ValueError: if there are too few images, or activations are not finite; no layer is changed then.

    Examples:
        >>> import timm, torch, timm_stitch
        >>> anchors = [timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_heads=heads,
        ...                              embed_dim=32 * heads, num_classes=4) for heads in (1, 2)]
        >>> model = timm_stitch.stitch(anchors)
        >>> residuals = timm_stitch.least_squares_init(model, torch.randn(100, 3, 32, 32))
        >>> [0 < residual < 1 for residual in residuals.values()]
        [True]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
    if layers not in JOINS:
        raise ValueError(f"layers must be one of {', '.join(map(repr, JOINS))}, got {layers!r}.")
    if not all(view.has_block(index) for view in model.views for index in range(view.depth)):
        raise ValueError("this network holds only some of its anchors' blocks: initialise the whole one, then extract.")
    joins = {key: join for key, join in model.joins().items() if layers in ("all", _kind(key))}
    systems = _systems(joins, method)
    like = next(model.parameters())
    with evaluating(model):
        for batch in progress_bar(_batches(images, batch_size), desc="least squares", unit="batch", progress=progress):
            _accumulate(model, batch.to(like.device, like.dtype).inputs, joins, systems)
    # Solve all systems before any layer changes.
    solved = {number: [equations.solve() for _, equations in groups] for number, groups in systems.items()}
    _warn_if_few_positions(systems)
    residuals = {}
    for number, solutions in solved.items():
        layer = cast(StitchingLayer, joins[number].layer)
        layer.weight.copy_(torch.stack([weight for weight, _, _ in solutions]).mean(0))
        layer.bias.copy_(torch.stack([bias for _, bias, _ in solutions]).mean(0))
        residuals[number] = sum(residual for *_, residual in solutions) / len(solutions)
    return residuals


# By layer: pairs of boundaries that are solved together, and their equations.
_Systems = dict[int | str, list[tuple[Sequence[tuple[int, int]], NormalEquations]]]


def _kind(key: int | str) -> Joins:
    return "projections" if isinstance(key, str) else "stitching_layers"


def _systems(joins: Mapping[int | str, Join], method: Method) -> _Systems:
    """Group the joints of each layer that are solved together."""
    systems: _Systems = {}
    for key, join in joins.items():
        out_width, in_width = cast(StitchingLayer, join.layer).weight.shape
        groups = [join.pairs] if method == "joint" else [[pair] for pair in join.pairs]
        systems[key] = [(group, NormalEquations(in_width, out_width)) for group in groups]
    return systems


def _warn_if_few_positions(systems: _Systems) -> None:
    """Warn if there are hardly more rows than unknowns, which lets a map fit its rows too well."""
    counts = [(e.distinct, e.in_width + 1) for groups in systems.values() for _, e in groups]
    few = [(rows, unknowns) for rows, unknowns in counts if rows < ENOUGH * unknowns]
    if few:
        rows, unknowns = min(few)
        _logger.warning(
            "least squares had %s positions for %s unknowns per channel, so the fit may not hold for other inputs: "
            "give %s positions or more (more images, more or longer texts).",
            f"{rows:,}",
            unknowns,
            f"{ENOUGH * unknowns:,}",
        )


def _accumulate(model: StitchableNetwork, inputs: Inputs, joins: Mapping[int | str, Join], systems: _Systems) -> None:
    """Run every anchor once and add the activations at the joints to the normal equations."""
    # 1. The activations of every anchor at its joints.
    wanted: dict[int, set[int]] = {}
    for join in joins.values():
        for stop, start in join.pairs:
            wanted.setdefault(join.front, set()).add(stop)
            wanted.setdefault(join.back, set()).add(start)
    views, prepared = model.views, model.prepare_inputs(inputs, model.plan)
    activations = {anchor: views[anchor].run_to_boundaries(None, 0, at, prepared) for anchor, at in wanted.items()}

    @lru_cache(maxsize=_CACHED)  # neighbouring windows share boundaries
    def centered(anchor: int, boundary: int, positions: SharedPositions) -> CenteredRows:
        return CenteredRows.of(rows_at(views[anchor], activations[anchor][boundary], boundary, positions, prepared))

    # 2. The rows of each system: fronts with the same targets are added together.
    for number, parts in systems.items():
        front, back = joins[number].front, joins[number].back
        for pairs, equations in parts:
            starts: dict[tuple[int, SharedPositions], list[int]] = {}
            for stop, start in pairs:
                leaving, entering = activations[front][stop], activations[back][start]
                positions = shared_positions(leaving, entering, views[front], stop, views[back], start, prepared)
                starts.setdefault((stop, positions), []).append(start)
            stops: dict[tuple[tuple[int, ...], SharedPositions], list[int]] = {}
            for (stop, positions), targets in starts.items():
                stops.setdefault((tuple(targets), positions), []).append(stop)
            for (entries, positions), fronts in stops.items():
                equations.add(
                    [centered(front, stop, positions) for stop in fronts],
                    [centered(back, start, positions) for start in entries],
                )


def _batches(images: Inputs | Iterable[object], batch_size: int) -> Iterator[Batch]:
    """Yield the batches of a tensor of images, a mapping, or a loader."""
    if isinstance(images, Tensor) and images.ndim == 4:
        images = images.split(batch_size)
    elif isinstance(images, (Tensor, Mapping)):
        images = [images]
    for item in images:
        batch = Batch.of(item) if isinstance(item, (Tensor, Mapping, list, tuple)) else None
        if batch is None or (isinstance(batch.inputs, Tensor) and batch.inputs.ndim != 4):
            shape = tuple(item.shape) if isinstance(item, Tensor) else ""
            raise ValueError(
                "expected batches of images (B, C, H, W), or tuples that begin with one, or mappings of tensors; got "
                f"{type(item).__name__}{shape}."
            )
        yield batch
