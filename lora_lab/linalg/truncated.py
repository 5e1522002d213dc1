"""The leading singular triplets of a large matrix of which only products are had.

Block Golub–Kahan bidiagonalisation: from a random block of orthonormal columns Q₁, alternately P = orth(W·Q) and
Q = orth(Wᵀ·P), every new block made orthogonal to all before it. With all P and Q side by side, the small matrix
T = PᵀWQ has singular values that approach those of W from below (Rayleigh and Ritz); for each of them

    |σ_i − θ_i| ≤ ‖Wᵀu_i − θ_i v_i‖,

and where gaps are not smaller than that residual, the error is its square over the gap. Sources: Golub and Kahan, SIAM
J. Numer. Anal. 2 (1965); Golub, Luk and Overton, ACM TOMS 7 (1981); Saad, Numerical Methods for Large Eigenvalue
Problems, 2nd ed., theorems 3.8 and 4.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from lora_lab.linalg.blocked import Operator

_EXTRA_COLUMNS: Final = 8
_MOST_STEPS: Final = 200
# Convergence is looked at after this many steps, and then each time their number has grown by a third.
_FIRST_LOOK: Final = 3
_LOOK_GROWTH: Final = 1.35
# A column this small beside the largest is rounding.
_LOST: Final = 1e-6
# Sides up to which the whole matrix is decomposed at once: that is exact, and as fast.
_SMALL_SIDE: Final = 512


class TruncatedSvd(NamedTuple):
    """W ≈ U @ diag(S) @ Vh.

    U : (m, k) float64, orthonormal columns
    S : (k,) float64, descending
    Vh : (k, n) float64, orthonormal rows
    residual : largest ‖Wᵀu − σv‖/σ₁ over the triplets, a bound on every |σ − S|/σ₁; 0 for a zero matrix
    """

    U: torch.Tensor
    S: torch.Tensor
    Vh: torch.Tensor
    residual: float


def truncated_svd(operator: Operator, rank: int, *, seed: int = 0, tolerance: float = 3e-4) -> TruncatedSvd:
    """Compute the `rank` leading singular triplets.

    Parameters
    ----------
    operator : a matrix (m, n)
    rank : k; no more than min(m, n) are given
    seed : of the random block that it starts from
    tolerance : of the residual relative to σ₁, reached unless 200 steps pass; what was reached is in the result

    Returns
    -------
    as :class:`TruncatedSvd`

    Notes
    -----
    Products are float32, the small matrix is float64: values below 10⁻⁷·σ₁ are noise. A matrix with a side of at most
    512 is decomposed whole, in float64. O(m·n·c + (m + n)·c²) time for c columns in all, which a flat spectrum makes
    many and a steep one few; O((m + n)·c) memory.

    Examples
    --------
    >>> from lora_lab.linalg.blocked import RowBlocks
    >>> W = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> truncated_svd(RowBlocks((3, 3), lambda first, end: W[first:end]), 2).S
    tensor([3., 2.], dtype=torch.float64)
    """
    rows, columns = operator.shape
    rank = min(rank, rows, columns)
    if rank < 1:
        return TruncatedSvd(*_empty(rows, columns), 0.0)
    if min(rows, columns) <= max(_SMALL_SIDE, rank + _EXTRA_COLUMNS):
        return _whole(operator, rank)
    generator = torch.Generator().manual_seed(seed)
    with one_thread():
        block = torch.linalg.qr(torch.randn((columns, rank + _EXTRA_COLUMNS), generator=generator)).Q
    basis = _Basis(block)
    next_look = _FIRST_LOOK
    for step in range(1, _MOST_STEPS + 1):
        left = basis.add_left(operator.times(basis.newest_right))
        back = operator.transposed_times(left)  # (n, b): Wᵀ·P of the newest block
        if step >= next_look:
            if basis.residual(back, rank) <= tolerance:
                break
            next_look = max(step + 1, int(step * _LOOK_GROWTH))
        if not basis.add_right(back) or basis.columns > min(rows, columns):
            return _whole(operator, rank)
    return basis.triplets(back, rank)


class _Basis:
    """P and Q side by side, and T = PᵀWQ, which is upper block bidiagonal."""

    def __init__(self, block: torch.Tensor) -> None:
        self._right = block  # (n, c)
        self._left = block.new_zeros((0, 0))
        self._newest = block.shape[1]
        self._T: list[torch.Tensor] = []  # its columns, block by block, each down to its last row that is not zero

    @property
    def columns(self) -> int:
        """Columns of Q."""
        return self._right.shape[1]

    @property
    def newest_right(self) -> torch.Tensor:
        """The newest block of Q, (n, b)."""
        return self._right[:, -self._newest :]

    def add_left(self, image: torch.Tensor) -> torch.Tensor:
        """Take in W times the newest block of Q; the newest block of P."""
        with one_thread():
            left = _orthonormal(image, self._left if self._T else None)
            self._left = torch.cat([self._left, left], dim=1) if self._T else left
            self._T.append(self._left.T @ image)
        return left

    def add_right(self, back: torch.Tensor) -> bool:
        """Take in Wᵀ times the newest block of P; False when it brings no new direction."""
        with one_thread():
            following = _orthonormal(back, self._right)
            self._newest = following.shape[1]
            self._right = torch.cat([self._right, following], dim=1)
        return self._newest > 0

    def _small(self) -> torch.Tensor:
        """T, (c_P, c_Q) float64."""
        T = torch.zeros((self._left.shape[1], sum(part.shape[1] for part in self._T)), dtype=torch.float64)
        at = 0
        for part in self._T:
            T[: part.shape[0], at : at + part.shape[1]] = part
            at += part.shape[1]
        return T

    def _outside(self, back: torch.Tensor, left_vectors: torch.Tensor) -> torch.Tensor:
        """‖Wᵀu − θv‖ of every left Ritz vector.

        Wᵀp of every block but the newest lies within the span of Q, so the residual is what the newest block's image
        has outside of it.
        """
        outside = back - self._right @ (self._right.T @ back)  # (n, b)
        newest = left_vectors[-back.shape[1] :].to(back.dtype)  # (b, k)
        sizes: torch.Tensor = torch.linalg.vector_norm(outside @ newest, dim=0)
        return sizes

    def residual(self, back: torch.Tensor, rank: int) -> float:
        """Largest residual of the leading `rank` Ritz triplets, relative to the first value."""
        with one_thread():
            T = self._small()
            # Leading values are near the first, so that squaring costs none of the digits that matter here.
            squares, vectors = torch.linalg.eigh(T @ T.T)
            first = float(squares[-1].clamp(min=0).sqrt())
            if first == 0.0:
                return 0.0
            return float(self._outside(back, vectors[:, -rank:]).max()) / first

    def triplets(self, back: torch.Tensor, rank: int) -> TruncatedSvd:
        """The leading Ritz triplets."""
        with one_thread():
            U_t, S, V_th = torch.linalg.svd(self._small(), full_matrices=False)
            first = float(S[0])
            residual = float(self._outside(back, U_t[:, :rank]).max()) / first if first > 0 else 0.0
            U = self._left.to(torch.float64) @ U_t[:, :rank]
            Vh = V_th[:rank] @ self._right[:, : V_th.shape[1]].to(torch.float64).T
        return TruncatedSvd(U, S[:rank], Vh, residual)


def _orthonormal(block: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """An orthonormal basis of what `block` has outside the span of `before`; lost directions are left out."""
    if before is not None:
        for _ in range(2):  # once is not enough: Giraud et al., Numer. Math. 101 (2005)
            block = block - before @ (before.T @ block)
    basis: torch.Tensor
    basis, R = torch.linalg.qr(block)
    sizes = R.diagonal().abs()
    largest = float(sizes.max()) if sizes.numel() else 0.0
    basis = basis[:, sizes > _LOST * largest]
    if before is not None and basis.shape[1]:
        basis = torch.linalg.qr(basis - before @ (before.T @ basis)).Q
    return basis


def _whole(operator: Operator, rank: int) -> TruncatedSvd:
    """The exact decomposition of the whole matrix, in float64."""
    rows, columns = operator.shape
    if rows >= columns:
        dense = operator.times(torch.eye(columns, dtype=torch.float64))
    else:
        dense = operator.transposed_times(torch.eye(rows, dtype=torch.float64)).T
    with one_thread():
        U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
    return TruncatedSvd(U[:, :rank], S[:rank], Vh[:rank], 0.0)


def _empty(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    wide = torch.float64
    return torch.zeros((rows, 0), dtype=wide), torch.zeros(0, dtype=wide), torch.zeros((0, columns), dtype=wide)
