"""Initialise stitching layers by least squares over a stream of images.

Source: SN-Net (arXiv:2302.06586), "Stitching layers and initialization": a layer carries the front's activations onto
the back's for the same images. Only the normal equations are kept (one small matrix per layer, in float64), so memory
does not grow with the number of images.

Deviation: the authors solve each joint of a window alone and average the solutions, on augmented images in train mode.
Here a shared layer gets the least-squares solution of all its joints together (`method="joint"`; `"average"` is
theirs), in eval mode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.batches import Batch
from ..network.crossing import SharedPositions, rows_at, shared_positions
from ..network.layers import StitchingLayer
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork

METHODS = ("joint", "average")
ENOUGH = 10  # positions per unknown: on other texts 2.5 leave a residual of 0.99, 10 leave 0.68, and 40 leave 0.64

_BLOCK = 96  # columns of a Gram matrix computed at a time
_CACHED = 8  # activations of a batch kept in float64

_logger = logging.getLogger(__name__)


@dataclass
class CenteredRows:
    """Rows (n, C) about their mean, in float64: large common offsets would cost digits in products.

    Args:
        rows: the rows less their mean.
        mean: the mean, shape (C,).
    """

    rows: Tensor
    mean: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> CenteredRows:
        """Center rows of any floating-point type."""
        rows = rows.to(torch.float64, copy=True)
        mean = rows.mean(0)
        return cls(rows.sub_(mean), mean)

    @cached_property
    def gram(self) -> Tensor:
        """The products rows' @ rows (C, C), of which only the lower triangle is complete."""
        rows, width = self.rows, self.rows.shape[1]
        gram = rows.new_zeros(width, width)
        for start in range(0, width, _BLOCK):
            block = slice(start, start + _BLOCK)
            torch.mm(rows[:, start:].T, rows[:, block], out=gram[start:, block])
        return gram

    @cached_property
    def square(self) -> Tensor:
        """The sum of all squares."""
        flat = self.rows.flatten()
        return flat.dot(flat)


@dataclass
class NormalEquations:
    """Centered sums from which the affine least-squares map of any number of rows follows, in float64.

    Batches are merged by the update of Chan, Golub and LeVeque (1979), so that no digits are lost to large means.

    Args:
        in_width, out_width: channels before and after the map.
    """

    in_width: int
    out_width: int
    rows: int = 0
    distinct: int = 0

    def __post_init__(self) -> None:
        self._mean_x, self._mean_y = torch.zeros(self.in_width), torch.zeros(self.out_width)
        self._xx, self._xy = torch.zeros(self.in_width, self.in_width), torch.zeros(self.in_width, self.out_width)
        self._yy = torch.zeros(())

    def add(self, fronts: Sequence[CenteredRows], backs: Sequence[CenteredRows]) -> None:
        """Add the rows of every front with those of every back as their targets.

        Args:
            fronts: activations that leave the front, each (n, in_width).
            backs: activations that they are to become, each (n, out_width).
        """
        count = len(fronts[0].rows)
        rows = count * len(fronts) * len(backs)
        mean_x = torch.stack([front.mean for front in fronts]).mean(0)
        mean_y = torch.stack([back.mean for back in backs]).mean(0)
        if not self.rows:
            self._mean_x, self._mean_y = mean_x, mean_y
            self._xx, self._xy, self._yy = (sums.to(mean_x) for sums in (self._xx, self._xy, self._yy))
        # Within the batch. The sum over all pairs of products is one product of sums.
        for front in fronts:
            apart = front.mean - mean_x
            self._xx.add_(front.gram, alpha=len(backs)).addr_(apart, apart, alpha=count * len(backs))
        for back in backs:
            self._yy += len(fronts) * (back.square + count * (back.mean - mean_y).square().sum())
        self._xy.addmm_(_total(fronts).T, _total(backs))
        # Between the batch and those before.
        step_x, step_y = mean_x - self._mean_x, mean_y - self._mean_y
        weight = self.rows * rows / (self.rows + rows)
        self._xx.addr_(step_x, step_x, alpha=weight)
        self._xy.addr_(step_x, step_y, alpha=weight)
        self._yy += weight * step_y.square().sum()
        self.rows += rows
        self.distinct += count * len(fronts)
        self._mean_x = self._mean_x + step_x * (rows / self.rows)
        self._mean_y = self._mean_y + step_y * (rows / self.rows)

    def solve(self) -> tuple[Tensor, Tensor, float]:
        """Solve for the map of smallest error, and of smallest weights where several are equal.

        Returns:
            Weight (out_width, in_width), bias (out_width,), and the relative residual
            ||x W' + b - y|| / ||y - mean(y)||.

        Raises:
            ValueError: if there are fewer rows than unknowns, or an activation is not finite.
        """
        unknowns = self.in_width + 1
        if self.distinct < unknowns:
            raise ValueError(
                f"least squares needs at least {unknowns} positions (images x tokens) to determine a map of "
                f"{self.in_width} channels, got {self.distinct}: give more images. SN-Net uses 100."
            )
        if not bool(torch.isfinite(self._xx).all() and torch.isfinite(self._xy).all()):
            raise ValueError("activations are not finite: check the images' scaling and the anchors' weights.")
        # Scale channels to equal variance, which keeps digits in the solution, and drop those without any.
        scale = self._xx.diagonal().clamp_min(0).sqrt()
        dead = scale <= scale.max() * 1e-12
        scale = torch.where(dead, torch.ones_like(scale), scale)
        # The pseudo-inverse by eigenvalues, which reads the lower triangle alone.
        values, vectors = torch.linalg.eigh(self._xx / torch.outer(scale, scale), UPLO="L")
        cutoff = values[-1] * self.in_width * torch.finfo(values.dtype).eps
        inverse = torch.where(values > cutoff, 1 / values.clamp_min(torch.finfo(values.dtype).tiny), 0)
        scaled = vectors @ (inverse[:, None] * (vectors.T @ (self._xy / scale[:, None])))
        weight = (scaled / scale[:, None]) * ~dead[:, None]
        bias = self._mean_y - self._mean_x @ weight
        total, explained = float(self._yy), float((weight * self._xy).sum())
        residual = (max(total - explained, 0.0) / total) ** 0.5 if total > 0 else 0.0
        return weight.T.contiguous(), bias, residual


def _total(parts: Sequence[CenteredRows]) -> Tensor:
    """Add up rows of equal shape."""
    total = parts[0].rows
    for i, part in enumerate(parts[1:]):
        total = total.add_(part.rows) if i else total + part.rows
    return total


def least_squares(front: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the affine map that best carries front activations onto back activations.

    Minimises ||front @ W.T + b - back||_F (arXiv:2302.06586, "Stitching layers and initialization").

    Args:
        front: activations that leave the front segment, shape (n, d_front); n = images x tokens.
        back: activations that enter the back segment for the same images and positions, shape (n, d_back).

    Returns:
        Weight of shape (d_back, d_front) and bias of shape (d_back,), ready for `nn.Linear`. Of several
        best maps (linearly dependent or dead channels) the one of smallest weights.

    Raises:
        ValueError: if n < d_front + 1, where the solution is not unique; or a value is not finite.

    Examples:
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
    images: Tensor | Mapping[str, Any] | Iterable[object],
    *,
    method: str = "joint",
    batch_size: int = 16,
    progress: bool = False,
) -> dict[int, float]:
    """Set every stitching layer to the least-squares map between its anchors.

    Each anchor sees each image once, in eval mode. Use images as for evaluation: not augmented.

    Args:
        model: the network; only its stitching layers change.
        images: a tensor (N, C, H, W), or an iterable of batches: images, tuples that begin with them, or mappings of
            tensors as a tokenizer gives. The paper uses 100 images; texts take some hundred. Padding is left out, and
            the first position of causal language models.
        method: `"joint"` to solve all joints of a shared layer together, `"average"` to solve each one alone and
            average the solutions, as the authors do.
        batch_size: the number of images at a time, if `images` is one tensor.
        progress: whether to show a bar.

    Returns:
        The relative residual ||front W' + b - back|| / ||back - mean|| of each stitching layer
        (for `"average"` the mean over its joints, each with its own solution).

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
    if any(view.is_partial for view in model.views):
        raise ValueError("this network holds only some of its anchors' blocks: initialise the whole one, then extract.")
    systems = _systems(model, method)
    like = next(model.parameters())
    with evaluating(model):
        for batch in tqdm(_batches(images, batch_size), desc="least squares", unit="batch", disable=not progress):
            _accumulate(model, batch.to(like.device, like.dtype).inputs, systems)
    solved = {
        number: [equations.solve() for _, equations in groups] for number, groups in systems.items()
    }  # all of them before any layer changes
    _warn_if_few_positions(systems)
    residuals = {}
    for number, solutions in solved.items():
        layer = cast(StitchingLayer, model.stitching_layers[number])
        layer.weight.copy_(torch.stack([weight for weight, _, _ in solutions]).mean(0))
        layer.bias.copy_(torch.stack([bias for _, bias, _ in solutions]).mean(0))
        residuals[number] = sum(residual for *_, residual in solutions) / len(solutions)
    return residuals


_Systems = dict[int, list[tuple[list[tuple[int, int]], NormalEquations]]]


def _systems(model: StitchableNetwork, method: str) -> _Systems:
    """Group the joints of each stitching layer that are solved together."""
    systems: _Systems = {}
    for number, spec in enumerate(model.plan.layers):
        pairs = model.plan.pairs(number)
        if pairs:
            groups = [pairs] if method == "joint" else [[pair] for pair in pairs]
            systems[number] = [(group, NormalEquations(spec.in_width, spec.out_width)) for group in groups]
    return systems


def _warn_if_few_positions(systems: _Systems) -> None:
    """Warn if a map fits its rows because there are hardly more rows than unknowns."""
    counts = [(e.distinct, e.in_width + 1) for groups in systems.values() for _, e in groups]
    few = [(rows, unknowns) for rows, unknowns in counts if rows < ENOUGH * unknowns]
    if few:
        rows, unknowns = min(few)
        _logger.warning(
            "least squares had %s positions for %s unknowns of a channel, which fits these inputs better than others: "
            "give it %s or more (more images, more or longer texts).", f"{rows:,}", unknowns, f"{ENOUGH * unknowns:,}",
        )  # fmt: skip


def _accumulate(model: StitchableNetwork, inputs: Any, systems: _Systems) -> None:
    """Run every anchor once and add the activations at the joints to the normal equations."""
    wanted: dict[int, set[int]] = {}
    for number, parts in systems.items():
        spec = model.plan.layers[number]
        for pairs, _ in parts:
            for stop, start in pairs:
                wanted.setdefault(spec.front, set()).add(stop)
                wanted.setdefault(spec.back, set()).add(start)
    views, prepared = model.views, model.prepare_inputs(inputs, model.plan)
    activations = {anchor: views[anchor].run_to_boundaries(None, 0, at, prepared) for anchor, at in wanted.items()}

    @lru_cache(maxsize=_CACHED)  # neighbouring windows share boundaries
    def centered(anchor: int, boundary: int, positions: SharedPositions) -> CenteredRows:
        return CenteredRows.of(rows_at(views[anchor], activations[anchor][boundary], boundary, positions, prepared))

    for number, parts in systems.items():
        front, back = model.plan.layers[number].front, model.plan.layers[number].back
        for pairs, equations in parts:
            starts: dict[tuple[int, SharedPositions], list[int]] = {}
            for stop, start in pairs:
                leaving, entering = activations[front][stop], activations[back][start]
                positions = shared_positions(leaving, entering, views[front], stop, views[back], start, prepared)
                starts.setdefault((stop, positions), []).append(start)
            # Fronts with the same targets are added together.
            stops: dict[tuple[tuple[int, ...], SharedPositions], list[int]] = {}
            for (stop, positions), targets in starts.items():
                stops.setdefault((tuple(targets), positions), []).append(stop)
            for (entries, positions), fronts in stops.items():
                equations.add(
                    [centered(front, stop, positions) for stop in fronts],
                    [centered(back, start, positions) for start in entries],
                )


def _batches(images: Tensor | Mapping[str, Any] | Iterable[object], batch_size: int) -> Iterator[Batch]:
    """Split a tensor of images, or read a mapping or the items of a loader."""
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
