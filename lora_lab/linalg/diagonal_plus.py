"""The leading eigenpairs of a diagonal matrix plus one of low rank.

K = diag(d) + Z Pᵀ + P Zᵀ + P C Pᵀ, with P and Z (k, r), is what M Mᵀ becomes in the basis of W's own singular vectors
when M = W + ΔW. Davidson's method is made for it: with x the Ritz vector of θ and ϱ = K x − θ x its residual, the next
direction is

    t = −(D − θ)⁻¹ϱ + ε (D − θ)⁻¹x,        ε so that xᵀt = 0,

and D − θ differs from K − θ by rank 2r only, all of which is in the first subspace already. A handful of steps give
full accuracy, where Lanczos would need hundreds at the dense edge of a weight's spectrum.

The first subspace is spanned by P, Z and the first t + r unit vectors: a change of rank r leaves at least t of those
t + r directions, so that none which ΔW does not touch is overlooked (Weyl: σ_t(W + ΔW) ≥ σ_{t+r}(W)).

Source: Davidson, J. Comput. Phys. 17 (1975); Olsen, Jørgensen and Simons, Chem. Phys. Lett. 169 (1990).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

# Largest residual of an eigenpair, relative to the largest eigenvalue.
_TOLERANCE: Final = 1e-12
_MOST_STEPS: Final = 40


class DiagonalPlus(NamedTuple):
    """diag(diagonal) + image·nearᵀ + near·imageᵀ + near·gram·nearᵀ, never negative.

    diagonal : (k,) float64, descending
    near : P (k, r) float64
    image : Z (k, r) float64
    gram : C (r, r) float64, symmetric
    """

    diagonal: torch.Tensor
    near: torch.Tensor
    image: torch.Tensor
    gram: torch.Tensor

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """The product with (k, b) vectors, O(k·r·b)."""
        along = self.near.T @ vectors  # (r, b)
        across = self.image.T @ vectors + self.gram @ along  # (r, b)
        return self.diagonal[:, None] * vectors + self.image @ along + self.near @ across

    def dense(self) -> torch.Tensor:
        """The matrix itself, (k, k)."""
        mixed = self.image @ self.near.T
        return torch.diag(self.diagonal) + mixed + mixed.T + self.near @ self.gram @ self.near.T


def leading_eigenpairs(matrix: DiagonalPlus, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the `count` largest eigenvalues and their eigenvectors.

    Parameters
    ----------
    count : at most k

    Returns
    -------
    (count,) float64 descending, never negative, and (k, count) float64, orthonormal columns

    Notes
    -----
    Residuals are at most 1e-12 of the largest eigenvalue. Where the first subspace would be more than half of the
    space, or 40 steps do not suffice, the matrix is formed and decomposed whole. O(k·(count + 3r)²) time, or O(k³).

    Examples
    --------
    >>> ones = torch.ones(50, 1, dtype=torch.float64)
    >>> matrix = DiagonalPlus(torch.arange(50.0, 0.0, -1.0).double(), ones, 0 * ones, torch.ones(1, 1).double())
    >>> values, vectors = leading_eigenpairs(matrix, 2)
    >>> torch.allclose(values, torch.linalg.eigvalsh(matrix.dense()).flip(0)[:2])
    True
    """
    size, rank = matrix.near.shape
    found = None
    if 2 * (count + 3 * rank) <= size:
        found = _davidson(matrix, count)
    if found is None:
        values, vectors = torch.linalg.eigh(matrix.dense())
        found = values.flip(0)[:count], vectors.flip(1)[:, :count]
    return found[0].clamp(min=0.0), found[1]


def _davidson(matrix: DiagonalPlus, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The same by iteration; None where it does not converge."""
    units = torch.eye(matrix.diagonal.numel(), count + matrix.near.shape[1], dtype=torch.float64)
    space = torch.linalg.qr(torch.cat([units, matrix.near, matrix.image], dim=1)).Q  # (k, s)
    moved = matrix.times(space)
    for _ in range(_MOST_STEPS):
        small = space.T @ moved
        values, inner = torch.linalg.eigh((small + small.T) / 2)
        values, inner = values.flip(0)[:count], inner.flip(1)[:, :count]
        vectors = space @ inner
        residuals = moved @ inner - vectors * values
        bad = torch.linalg.vector_norm(residuals, dim=0) > _TOLERANCE * values[0]
        if not bad.any():
            return values, vectors
        steps = _corrections(matrix.diagonal, values[bad], vectors[:, bad], residuals[:, bad], space)
        if not torch.isfinite(steps).all() or space.shape[1] + steps.shape[1] > matrix.diagonal.numel():
            return None
        space = torch.cat([space, steps], dim=1)
        moved = torch.cat([moved, matrix.times(steps)], dim=1)
    return None


def _corrections(
    diagonal: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor, residuals: torch.Tensor, space: torch.Tensor
) -> torch.Tensor:
    """New orthonormal directions, orthogonal to `space`, one for each pair that is not there yet."""
    shifted = diagonal[:, None] - values  # (k, b)
    least = _TOLERANCE * diagonal.abs().max().clamp(min=float(values[0].abs()))
    shifted = torch.where(shifted.abs() < least, least, shifted)
    towards, along = residuals / shifted, vectors / shifted
    steps = along * ((vectors * towards).sum(dim=0) / (vectors * along).sum(dim=0)) - towards
    for _ in range(2):  # twice is enough: Parlett, The Symmetric Eigenvalue Problem, section 6.9
        steps = steps / torch.linalg.vector_norm(steps, dim=0)
        steps = steps - space @ (space.T @ steps)
    steps = torch.linalg.qr(steps).Q
    again: torch.Tensor = torch.linalg.qr(steps - space @ (space.T @ steps)).Q
    return again
