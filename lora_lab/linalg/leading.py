"""The Frobenius norm of the leading part of a large matrix, √(σ₁² + … + σ_r²), with a bound of its error.

Block Lanczos with full reorthogonalisation on A = WᵀW (or W Wᵀ, whichever is smaller): from a random block of
orthonormal columns, the space is widened by A times its newest block, and the eigenvalues θ of A within the space
(Rayleigh and Ritz) approach λ = σ² from below. With ρ_j = ‖A x_j − θ_j x_j‖ of each Ritz vector and any s ≥ r for which
all the rest of A, outside the first s Ritz vectors, stays below ν_s < θ_i,

    0 ≤ λ_i − θ_i ≤ (ρ₁² + … + ρ_s²) / (θ_i − ν_s).

A value converges as the square of its residual, so that a sum of values needs far fewer products than vectors do. ν_s
is taken as θ_{s+1} + ρ_{s+1}, near which A has an eigenvalue; that no larger one is hidden outside of the whole space
is what a random start makes sure of but for a probability near zero (Kuczyński and Woźniakowski, SIAM J. Matrix Anal.
Appl. 13 (1992)).

Sources: Golub and Underwood, in Mathematical Software III (1977); Mathias, SIAM J. Matrix Anal. Appl. 19 (1998), for
the bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from lora_lab.linalg.blocked import RowBlocks

VERSION: Final = 1  # of the method, for whoever keeps its results
_EXTRA_COLUMNS: Final = 8
_LANES: Final = 16  # blocks of a multiple of so many columns are multiplied fastest
# Sides up to which the whole Gram matrix is summed and decomposed: exact, and as fast.
_SMALL_SIDE: Final = 512
_FIRST_LOOK: Final = 3
_LOOK_GROWTH: Final = 1.2
# A column this small beside the largest is rounding.
_LOST: Final = 1e-6


class LeadingNorm(NamedTuple):
    """‖W_r‖_F, W_r being the best approximation of W of rank r.

    norm : the value found, never above the true one but for rounding
    error : bound of what it lacks, relative to it; float32 products add about 1e-7
    """

    norm: float
    error: float


def leading_norm(weight: RowBlocks, rank: int, *, seed: int = 0, tolerance: float = 1e-6) -> LeadingNorm:
    """Compute √(σ₁² + … + σ_r²).

    Parameters
    ----------
    weight : W (m, n); in memory (:meth:`RowBlocks.held`) where it is wide, or products cost a pass each
    rank : r; all of W where it has no more
    seed : of the random block that it starts from
    tolerance : of the error, relative; where the space would be half of the whole before it is reached, all eigenvalues
        of the Gram matrix are taken instead

    Notes
    -----
    Products are float32, the small matrix is float64. On one thread, so that bits do not depend on their number.
    O(m·n·c + k·c²) time for c columns in all and k = min(m, n), O(k·c) memory; with a side of at most 512, the Gram
    matrix in float64, O(m·n·k).

    Examples
    --------
    >>> from lora_lab.linalg.blocked import RowBlocks
    >>> W = torch.diag(torch.tensor([4.0, 3.0, 1.0]))
    >>> leading_norm(RowBlocks((3, 3), lambda first, end: W[first:end]), 2)
    LeadingNorm(norm=5.0, error=0.0)
    """
    side = min(weight.shape)
    rank = min(rank, side)
    width = _LANES * -(-(rank + _EXTRA_COLUMNS) // _LANES)
    if side <= _SMALL_SIDE or 4 * width > side:
        return _whole(weight, rank)
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        block = torch.linalg.qr(torch.randn((side, width), generator=generator)).Q
        space, images = block, block[:, :0]
        next_look = _FIRST_LOOK
        while 2 * space.shape[1] <= side:
            image = weight.gram_times(block)
            images = torch.cat([images, image], dim=1)
            outside = _without(_without(image, space), space)
            if images.shape[1] >= next_look * width:
                found = _ritz(space, images, outside, rank)
                if found.error <= tolerance:
                    return found
                next_look = max(next_look + 1, int(next_look * _LOOK_GROWTH))
            block = _orthonormal(outside, space)
            if not block.shape[1]:  # the space holds all of W that the random block met
                return _ritz(space, images, outside, rank)
            space = torch.cat([space, block], dim=1)
    return _whole(weight, rank)


def _without(block: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """What `block` has outside of `space`; twice is enough: Giraud et al., Numer. Math. 101 (2005)."""
    return torch.addmm(block, space, space.T @ block, alpha=-1)


def _orthonormal(outside: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of `outside`, orthogonal to `space`; lost directions are left out."""
    basis, R = torch.linalg.qr(outside)
    sizes = R.diagonal().abs()
    basis = basis[:, sizes > _LOST * sizes.max()]
    again: torch.Tensor = torch.linalg.qr(_without(basis, space)).Q
    return again


def _ritz(space: torch.Tensor, images: torch.Tensor, outside: torch.Tensor, rank: int) -> LeadingNorm:
    """From the space (k, c), A times it, and what A times its newest block has outside of it, (k, b)."""
    T = (space.T @ images).to(torch.float64)
    values, vectors = torch.linalg.eigh((T + T.T) / 2)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    # A times every other block lies within the space, so that residuals come from the newest alone.
    newest = vectors[-outside.shape[1] :].to(outside.dtype)
    residuals = torch.linalg.vector_norm(outside @ newest, dim=0).to(torch.float64)
    total = float(values[:rank].sum())
    if total == 0.0:
        return LeadingNorm(0.0, 0.0)
    return LeadingNorm(math.sqrt(total), _lacking(values, residuals, rank) / (2 * total))


def _lacking(values: torch.Tensor, residuals: torch.Tensor, rank: int) -> float:
    """Bound of Σ(λ_i − θ_i) over the first `rank`, each with the s that makes its own least; infinite without one.

    Where θ_i is not above ν_s, Weyl's ν_s − θ_i + ‖R_s‖ is left.
    """
    above = values[rank:] + residuals[rank:]  # ν_s for s = rank, rank + 1, …
    gaps = values[:rank, None] - above  # (rank, count)
    squares = residuals.square().cumsum(0)[rank - 1 : -1]
    bounds = torch.where(gaps > 0, squares / gaps, math.inf).minimum(squares.sqrt() - gaps.clamp(max=0.0))
    return float(bounds.amin(dim=1).sum()) if bounds.shape[1] else math.inf


def _whole(weight: RowBlocks, rank: int) -> LeadingNorm:
    gram = weight.gram()
    with one_thread():
        values = torch.linalg.eigvalsh(gram)
    return LeadingNorm(math.sqrt(float(values.flip(0)[:rank].clamp(min=0.0).sum())), 0.0)
