"""Affine least squares by normal equations: sums over batches, whose size does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_BLOCK = 96  # columns of a Gram matrix computed at a time


@dataclass
class CenteredRows:
    """Rows (n, C) less their mean, in float64: large common offsets would cost digits in products.

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
    """Centered sums that determine the affine least-squares map of any number of rows, in float64.

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
            backs: activations of the back that they are to match, each (n, out_width).
        """
        count = len(fronts[0].rows)
        rows = count * len(fronts) * len(backs)
        mean_x = torch.stack([front.mean for front in fronts]).mean(0)
        mean_y = torch.stack([back.mean for back in backs]).mean(0)
        if not self.rows:
            self._mean_x, self._mean_y = mean_x, mean_y
            self._xx, self._xy, self._yy = (sums.to(mean_x) for sums in (self._xx, self._xy, self._yy))
        # Sums within the batch; the sum over all pairs of products is one product of sums.
        for front in fronts:
            offset = front.mean - mean_x
            self._xx.add_(front.gram, alpha=len(backs)).addr_(offset, offset, alpha=count * len(backs))
        for back in backs:
            self._yy += len(fronts) * (back.square + count * (back.mean - mean_y).square().sum())
        self._xy.addmm_(_total(fronts).T, _total(backs))
        # The difference between the means of the batch and of earlier ones.
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
        """Solve for the map of smallest error, and among equal ones for that of smallest weights.

        Returns:
            Weight (out_width, in_width), bias (out_width,), and the relative residual
            ||x W' + b - y|| / ||y - mean(y)||.

        Raises:
            ValueError: if there are fewer rows than unknowns, or an activation is not finite.
        """
        unknowns = self.in_width + 1
        if self.distinct < unknowns:
            raise ValueError(
                f"least squares needs at least {unknowns} positions (images or texts x tokens) to determine a map of "
                f"{self.in_width} channels, got {self.distinct}: give more images, or more and longer texts. "
                "SN-Net uses 100 images."
            )
        if not bool(torch.isfinite(self._xx).all() and torch.isfinite(self._xy).all()):
            raise ValueError("activations are not finite: check the images' scaling and the anchors' weights.")
        # Scale channels to equal variance, which keeps digits in the solution, and drop constant channels.
        scale = self._xx.diagonal().clamp_min(0).sqrt()
        constant = scale <= scale.max() * 1e-12
        scale = torch.where(constant, torch.ones_like(scale), scale)
        # Apply the pseudo-inverse, from eigenvalues of the lower triangle.
        values, vectors = torch.linalg.eigh(self._xx / torch.outer(scale, scale), UPLO="L")
        cutoff = values[-1] * self.in_width * torch.finfo(values.dtype).eps
        inverse = torch.where(values > cutoff, 1 / values.clamp_min(torch.finfo(values.dtype).tiny), 0)
        scaled = vectors @ (inverse[:, None] * (vectors.T @ (self._xy / scale[:, None])))
        weight = (scaled / scale[:, None]) * ~constant[:, None]
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
