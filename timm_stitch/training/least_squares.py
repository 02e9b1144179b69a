"""Initialise stitching layers by least squares over a stream of images.

Source: SN-Net (arXiv:2302.06586), "Stitching layers and initialization": carry what leaves the front
onto what enters the back for the same images. Only the normal equations are kept (one small matrix a
layer, in float64), so memory does not grow with the number of images.

Deviation: the authors solve each joint of a window on its own and average the solutions, on augmented
images in train mode. Here a shared layer gets the least-squares solution of all its joints together
(`method="joint"`; `"average"` is theirs), in eval mode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.batches import Batch
from ..network.crossing import aligned
from ..network.layers import StitchingLayer
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork

METHODS = ("joint", "average")
ENOUGH = 10  # positions for each unknown: 2.5 leave a residual of 0.99 on other texts, 10 one of 0.68, 40 one of 0.64

_logger = logging.getLogger(__name__)


@dataclass
class _Sums:
    """Of rows about an origin: sums are kept about the first rows' means, as large common offsets would cost digits."""

    origin_x: Tensor
    origin_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: float = 0.0


@dataclass
class NormalEquations:
    """Sums from which the affine least-squares map of any number of rows follows, in float64.

    Args:
        in_width, out_width: channels before and after the map.
    """

    in_width: int
    out_width: int
    rows: int = 0
    distinct: int = 0
    _sums: _Sums | None = field(default=None, repr=False)

    def add(self, front: Tensor, *backs: Tensor) -> None:
        """Add rows: what leaves the front (n, in_width), and what it is to become, in float64.

        Args:
            front: in float64.
            backs: each (n, out_width) in float64; several if one map is to reach several targets.
        """
        if self._sums is None:
            wide = self.in_width + 1
            xx, xy = front.new_zeros(wide, wide), front.new_zeros(wide, self.out_width)
            self._sums = _Sums(front.mean(0), backs[0].mean(0), xx, xy)
        sums = self._sums
        x = torch.cat([front - sums.origin_x, front.new_ones(len(front), 1)], dim=1)
        sums.xx += (x.T @ x) * len(backs)
        y = backs[0] - sums.origin_y
        sums.yy += float(y.square().sum())
        for back in backs[1:]:
            other = back - sums.origin_y
            sums.yy += float(other.square().sum())
            y = y + other
        sums.xy += x.T @ y
        self.rows += len(front) * len(backs)
        self.distinct += len(front)

    def solve(self) -> tuple[Tensor, Tensor, float]:
        """The map of smallest error, and of smallest weights where several are equal.

        Returns:
            Weight (out_width, in_width), bias (out_width,), and the relative residual
            ||x W' + b - y|| / ||y - mean(y)||.

        Raises:
            ValueError: if there are fewer rows than unknowns, or an activation is not finite.
        """
        need, sums = self.in_width + 1, self._sums
        if self.distinct < need or sums is None:
            raise ValueError(
                f"least squares needs at least {need} positions (images x tokens) to determine a map of "
                f"{self.in_width} channels, got {self.distinct}: give more images. SN-Net uses 100."
            )
        if not bool(torch.isfinite(sums.xx).all() and torch.isfinite(sums.xy).all()):
            raise ValueError("activations are not finite: check the images' scaling and the anchors' weights.")
        # Eliminate the intercept, then scale channels to equal variance: both keep digits in the solution.
        mean_x, mean_y = sums.xx[:-1, -1] / self.rows, sums.xy[-1] / self.rows
        cov = sums.xx[:-1, :-1] - self.rows * torch.outer(mean_x, mean_x)
        cross = sums.xy[:-1] - self.rows * torch.outer(mean_x, mean_y)
        scale = cov.diagonal().clamp_min(0).sqrt()
        dead = scale <= scale.max() * 1e-12
        scale = torch.where(dead, torch.ones_like(scale), scale)
        values, vectors = torch.linalg.eigh(cov / torch.outer(scale, scale))
        cutoff = values[-1] * self.in_width * torch.finfo(values.dtype).eps
        inverse = torch.where(values > cutoff, 1 / values.clamp_min(torch.finfo(values.dtype).tiny), 0)
        scaled = vectors @ (inverse[:, None] * (vectors.T @ (cross / scale[:, None])))
        weight = (scaled / scale[:, None]) * ~dead[:, None]
        bias = sums.origin_y + mean_y - (sums.origin_x + mean_x) @ weight
        total = sums.yy - self.rows * float(mean_y.square().sum())
        explained = float((weight * cross).sum())
        residual = (max(total - explained, 0.0) / total) ** 0.5 if total > 0 else 0.0
        return weight.T.contiguous(), bias, residual


def least_squares(front: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the affine map that best carries front activations onto back activations.

    Minimises ||front @ W.T + b - back||_F (arXiv:2302.06586, "Stitching layers and initialization").

    Args:
        front: what leaves the front segment, shape (n, d_front); n = images x tokens.
        back: what enters the back segment for the same images and positions, shape (n, d_back).

    Returns:
        Weight of shape (d_back, d_front) and bias of shape (d_back,), ready for `nn.Linear`. Of several
        best maps (linearly dependent or dead channels) the one of smallest weights.

    Raises:
        ValueError: if n < d_front + 1, where the solution is not unique; or a value is not finite.
    """
    equations = NormalEquations(front.shape[1], back.shape[1])
    equations.add(front.double(), back.double())
    weight, bias, _ = equations.solve()
    return weight.to(front.dtype), bias.to(front.dtype)


@torch.no_grad()
def least_squares_init(
    model: StitchableNetwork,
    images: Tensor | Iterable[Any],
    *,
    method: str = "joint",
    batch_size: int = 16,
    progress: bool = False,
) -> dict[int, float]:
    """Set every stitching layer to the least-squares map between its anchors.

    Each anchor sees each image once, in eval mode. Use images as for evaluation: not augmented.

    Args:
        model: the network; only its stitching layers change.
        images: a tensor (N, C, H, W), or an iterable of batches: such tensors, or (images, …) tuples as
            a DataLoader gives, or mappings of tensors as a tokenizer gives. The paper uses 100 images; of texts it
            takes some hundred. Padding is left out, and the first position of what shifts_labels the next token.
        method: `"joint"` solves all joints of a shared layer together, `"average"` each one alone and
            averages, as the authors do.
        batch_size: images at a time, if `images` is one tensor.
        progress: show a bar.

    Returns:
        The relative residual ||front W' + b - back|| / ||back - mean|| of each stitching layer
        (for `"average"` the mean over its joints, each with its own solution).

    Raises:
        ValueError: if there are too few images, or activations are not finite; no layer is changed then.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: expected one of {', '.join(map(repr, METHODS))}.")
    if any(view.is_partial for view in model.views):
        raise ValueError("this network holds only some of its anchors' blocks: initialise the whole one, then extract.")
    systems = _systems(model, method)
    like = next(model.parameters())
    with evaluating(model):
        for inputs in tqdm(_batches(images, batch_size), desc="least squares", unit="batch", disable=not progress):
            _accumulate(model, inputs.to(like.device, like.dtype).inputs, systems)
    solved = {
        number: [equations.solve() for _, equations in of_layer] for number, of_layer in systems.items()
    }  # all of them before any layer changes
    _warn_of_few(systems)
    residuals = {}
    for number, solutions in solved.items():
        layer = cast(StitchingLayer, model.stitching_layers[number])
        layer.weight.copy_(torch.stack([weight for weight, _, _ in solutions]).mean(0))
        layer.bias.copy_(torch.stack([bias for _, bias, _ in solutions]).mean(0))
        residuals[number] = sum(residual for *_, residual in solutions) / len(solutions)
    return residuals


_Systems = dict[int, list[tuple[list[tuple[int, int]], NormalEquations]]]


def _systems(model: StitchableNetwork, method: str) -> _Systems:
    """For each stitching layer its sets of joints that are solved together."""
    found: _Systems = {}
    for number, spec in enumerate(model.plan.layers):
        pairs = model.plan.pairs(number)
        if pairs:
            groups = [pairs] if method == "joint" else [[pair] for pair in pairs]
            found[number] = [(group, NormalEquations(spec.in_width, spec.out_width)) for group in groups]
    return found


def _warn_of_few(systems: _Systems) -> None:
    """Say so where a map fits its rows because there are hardly more of them than unknowns."""
    every = [equations for parts in systems.values() for _, equations in parts]
    few = [(e.distinct, e.in_width + 1) for e in every if e.distinct < ENOUGH * (e.in_width + 1)]
    if few:
        rows, unknowns = min(few)
        _logger.warning(
            "least squares had %s positions for %s unknowns of a channel, which fits these inputs better than others: "
            "give it %s or more (more images, more or longer texts).", f"{rows:,}", unknowns, f"{ENOUGH * unknowns:,}",
        )  # fmt: skip


def _accumulate(model: StitchableNetwork, inputs: Any, systems: _Systems) -> None:
    """Run every anchor once and add what crosses the joints to the normal equations."""
    wanted: dict[int, set[int]] = {}
    for number, parts in systems.items():
        spec = model.plan.layers[number]
        for pairs, _ in parts:
            for stop, start in pairs:
                wanted.setdefault(spec.front, set()).add(stop)
                wanted.setdefault(spec.back, set()).add(start)
    inputs = model.prepare_inputs(inputs, model.plan)
    crossing = {anchor: model.views[anchor].run_to_boundaries(None, 0, at, inputs) for anchor, at in wanted.items()}
    for number, parts in systems.items():
        spec = model.plan.layers[number]
        front, back = model.views[spec.front], model.views[spec.back]
        for pairs, equations in parts:
            for stop in sorted({stop for stop, _ in pairs}):
                leaving = crossing[spec.front][stop]
                alike: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the number of positions
                for start in (start for s, start in pairs if s == stop):
                    rows = aligned(leaving, crossing[spec.back][start], front, stop, back, start, inputs)
                    alike.setdefault(len(rows[0]), []).append(rows)
                for some in alike.values():
                    equations.add(some[0][0].double(), *(target.double() for _, target in some))


def _batches(images: Any, batch_size: int) -> Iterator[Batch]:
    """Batches from a tensor of images, a mapping, or what a loader gives."""
    if isinstance(images, Tensor) and images.ndim == 4:
        yield from (Batch(part, None) for part in images.split(batch_size))
        return
    for batch in [images] if isinstance(images, (Tensor, Mapping)) else images:
        found = Batch.of(batch) if isinstance(batch, (Tensor, Mapping, list, tuple)) else None
        if found is None or (isinstance(found.inputs, Tensor) and found.inputs.ndim != 4):
            raise ValueError(
                f"expected batches of images (B, C, H, W), or tuples that begin with one, or mappings of tensors; got "
                f"{type(batch).__name__}{tuple(batch.shape) if isinstance(batch, Tensor) else ''}."
            )
        yield found
