"""The best approximation of low rank of a matrix D of which blocks of rows are made one after another.

Block Lanczos with full reorthogonalisation on DᵀD: from a random block of orthonormal columns the space is widened by
DᵀD times its newest block, one pass over the rows each, and within the space the eigenvectors of DᵀD (Rayleigh and
Ritz) approach the right singular vectors of D. With V the R leading ones, one more pass gives D·V, and

    D_R = (D V) Vᵀ,        ‖D − D_R‖_F² = ‖D‖_F² − ‖D V‖_F²

whatever V is, as long as its columns are orthonormal: the error that is stated is that of the factors that are given,
not an estimate. How far it is from the optimum √(σ_{R+1}² + …) follows from E, what DᵀD times the newest block has
outside of the space. In a basis of the space and its complement DᵀD is [[T, Eᵀ], [E, C]], and for ‖C‖₂ ≤ θ_R

    Σ_{i≤R} (σ_i² − θ_i)  ≤  Σ_{i≤R} σ_i(E)                                  (Ky Fan's norms are subadditive)
    Σ_{i≤R} (σ_i² − θ_i)  ≤  R · (ρ₁² + … + ρ_s²) / (θ_R − ν_s)               (Mathias; gaps are large where D decays)

with ρ the norms of the Ritz vectors' residuals and ν_s a bound of what is left after the first s. That the complement
hides no larger value than the space has is what a random start makes sure of but for a probability near zero.

Sources: Golub and Underwood, in Mathematical Software III (1977); Musco and Musco, arXiv 1504.05477, theorem 1; Fan,
PNAS 37 (1951); Mathias, SIAM J. Matrix Anal. Appl. 19 (1998); Kuczyński and Woźniakowski, ibid. 13 (1992).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import NumericalError, quoted
from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from lora_lab.linalg.blocked import RowBlocks

VERSION: Final = 1  # of the method: other versions may give other bits
_EXTRA_COLUMNS: Final = 8
_LANES: Final = 8  # blocks of a multiple of so many columns are multiplied fastest
_LEAST_STEPS: Final = 3
_MOST_STEPS: Final = 40
# Entries up to which the whole is one block: it is decomposed at once.
_SMALL_ENTRIES: Final = 1 << 16
# The square of the error may exceed the optimum's by this share of itself, or by this share of ‖D‖².
_EXCESS: Final = 0.019
_NEGLIGIBLE: Final = 1e-13
# Below this share of ‖D‖² the difference of two squares has lost too many digits to be the error.
_CANCELLED: Final = 1e-9
# A column this small beside the largest is rounding.
_LOST: Final = 1e-10


class Approximation(NamedTuple):
    """D_R = U @ diag(S) @ Vh.

    U : (m, k) float64, orthonormal columns
    S : (k,) float64, descending
    Vh : (k, n) float64, orthonormal rows
    norm : ‖D‖_F
    error : ‖D − D_R‖_F
    excess : the error is at most 1 + excess times the smallest that rank k allows
    """

    U: torch.Tensor
    S: torch.Tensor
    Vh: torch.Tensor
    norm: float
    error: float
    excess: float

    @property
    def relative_error(self) -> float | None:
        """‖D − D_R‖/‖D‖; None for a zero matrix."""
        return self.error / self.norm if self.norm > 0.0 else None


def low_rank_approximation(
    matrix: RowBlocks, *, rank: int | None = None, energy: float | None = None, seed: int = 0, name: str = "matrix"
) -> Approximation:
    """Compute the best approximation of one rank, or of the smallest rank that holds a share of ‖D‖².

    Parameters
    ----------
    matrix : D (m, n), whose blocks of rows are made anew in every pass, float32 or float64
    rank : R, the rank; with `energy` the most that it may be
    energy : share E in (0, 1]: the smallest k with σ₁² + … + σ_k² ≥ E·‖D‖², or one more where values are close
    seed : of the random block
    name : what an error calls D

    Returns
    -------
    as :class:`Approximation`, of rank min(R, numerical rank of D); the rank 0 for a zero matrix

    Raises
    ------
    NumericalError
        D holds NaN or infinity.

    Notes
    -----
    Sums are float64: values below 10⁻⁸·σ₁ are noise. O(m·n·c) time for c columns in all, in 4 to 8 passes over the
    blocks of D for a given rank; O((m + n)·c) memory beyond some blocks. Bits do not depend on the number of threads.

    Examples
    --------
    >>> from lora_lab.linalg.blocked import RowBlocks
    >>> D = torch.diag(torch.tensor([4.0, 3.0, 1.0]))
    >>> found = low_rank_approximation(RowBlocks((3, 3), lambda first, end: D[first:end]), rank=2)
    >>> found.S, round(found.error, 12)
    (tensor([4., 3.], dtype=torch.float64), 1.0)
    """
    rows, columns = matrix.shape
    most = min(rows, columns) if rank is None else min(rank, rows, columns)
    with one_thread():  # the processors belong to the workers
        if rows * columns <= _SMALL_ENTRIES:
            return _decomposed(matrix, most, energy, name)
        search = _Search(matrix, most, energy, seed, name)
        vectors = search.run()
        return _projected(matrix, vectors, search)


class _Search:
    """The leading right singular vectors of D, found in a space that grows."""

    def __init__(self, matrix: RowBlocks, most: int, energy: float | None, seed: int, name: str) -> None:
        self._matrix = matrix
        self._most = most
        self._energy = energy
        self._name = name
        self._generator = torch.Generator().manual_seed(seed)
        self.square = -1.0  # ‖D‖²
        self.excess = 0.0  # Σ_{i≤R} (σ_i² − θ_i) is at most this

    def run(self) -> torch.Tensor:
        """V, (n, k)."""
        columns = self._matrix.shape[1]
        wanted = self._most if self._energy is None else min(self._most, 4 * _LANES)
        while True:
            found = self._lanczos(min(columns, _LANES * -(-(wanted + _EXTRA_COLUMNS) // _LANES)))
            if found is not None:
                return found
            wanted *= 4

    def _lanczos(self, width: int) -> torch.Tensor | None:
        """V from blocks of `width` columns; None when so narrow ones do not get there."""
        columns = self._matrix.shape[1]
        start = torch.randn((columns, width), generator=self._generator, dtype=torch.float64)
        block = torch.linalg.qr(start).Q
        space, T = block, block.new_zeros((0, 0))
        for step in range(1, _MOST_STEPS + 1):
            image = self._gram_times(block)
            T = _bordered(T, space.T @ image)
            outside = _without(_without(image, space), space)
            values, vectors = torch.linalg.eigh(T)
            values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
            rank = self._rank(values)
            following = _orthonormal(outside, space, float(values[0])) if space.shape[1] < columns else space[:, :0]
            is_whole = not following.shape[1]
            if is_whole or (
                step >= _LEAST_STEPS and rank is not None and self._is_close(values, vectors, outside, rank)
            ):
                if is_whole:
                    self.excess = 0.0
                rank = min(self._most, _numerical_rank(values)) if rank is None else rank
                leading: torch.Tensor = space @ vectors[:, :rank]
                return leading
            if self._energy is not None and rank is None and step * width < self._most and step >= 8:
                return None
            block = following
            space = torch.cat([space, block], dim=1)
        best: torch.Tensor = space @ vectors[:, : self._most if rank is None else rank]
        return best

    def _gram_times(self, block: torch.Tensor) -> torch.Tensor:
        """DᵀD·X, and ‖D‖² on the first pass."""
        is_first = self.square < 0.0
        total = torch.zeros_like(block)
        squares = []

        def one(_first: int, rows: torch.Tensor) -> tuple[torch.Tensor, float]:
            wide = rows.to(torch.float64)
            square = float(torch.linalg.vector_norm(wide).square()) if is_first else 0.0
            return wide.T @ (wide @ block), square

        for part, square in self._matrix.each(one):
            total += part
            squares.append(square)
        if is_first:
            self.square = math.fsum(squares) if all(map(math.isfinite, squares)) else math.inf
            _require_finite(self.square, self._name)
        return total

    def _rank(self, values: torch.Tensor) -> int | None:
        """How many values are wanted; None while the space does not hold as many or as much."""
        known = _numerical_rank(values)
        if self._energy is None:
            return min(self._most, known) if known >= self._most or known < len(values) else None
        held = torch.cumsum(values, 0) >= self._energy * self.square * (1 - 1e-12)
        rank = int(held.to(torch.int8).argmax()) + 1 if bool(held.any()) else None
        if rank is None and len(values) >= self._most + _EXTRA_COLUMNS:
            return self._most
        return None if rank is None else min(rank, self._most)

    def _is_close(self, values: torch.Tensor, vectors: torch.Tensor, outside: torch.Tensor, rank: int) -> bool:
        """Whether the squares of the first `rank` values are as large as they need be."""
        if not rank:
            self.excess = 0.0
            return True
        left = max(0.0, self.square - float(values[:rank].sum()))
        allowed = _EXCESS * left
        if self._energy is not None:  # what is missed is less than one more value, which the rank may then exceed by
            allowed = min(allowed, float(values[rank - 1]))
        allowed = max(allowed, _NEGLIGIBLE * self.square)
        E = outside @ vectors[-outside.shape[1] :]  # (n, c): residuals of all Ritz vectors
        residuals = E.square().sum(dim=0)
        hidden = float(values[rank] + residuals[rank].sqrt()) if rank < len(values) else float(values[0])
        coupling = float(torch.linalg.svdvals(torch.linalg.qr(E[:, :rank]).R).sum())
        bounds = [coupling + float((hidden - values[:rank]).clamp(min=0.0).sum())]
        above = float(values[rank - 1])
        for s in range(rank, len(values)):
            below = float(values[s] + residuals[s].sqrt())
            if below < above:
                bounds.append(rank * float(residuals[:s].sum()) / (above - below))
        self.excess = min(bounds)
        return self.excess <= allowed


def _projected(matrix: RowBlocks, vectors: torch.Tensor, search: _Search) -> Approximation:
    """D_R = (D V)Vᵀ, and its error."""
    images = _times(matrix, vectors)
    U, S, W_h = _thin_svd(images)
    Vh = W_h @ vectors.T
    left = search.square - float(S.square().sum())
    if left < _CANCELLED * search.square:
        left = square_of_difference(matrix, U * S, Vh) if search.square > 0.0 else 0.0
    smallest = left - search.excess
    excess = math.sqrt(left / smallest) - 1.0 if smallest > 0.0 else 0.0 if left <= 0.0 else math.inf
    if left <= 1e-12 * search.square:  # as good as exact: no ratio of two roundings
        excess = 0.0
    return Approximation(U, S, Vh, math.sqrt(search.square), math.sqrt(max(left, 0.0)), excess)


def _times(matrix: RowBlocks, vectors: torch.Tensor) -> torch.Tensor:
    """D·V, written where it belongs: small pieces that are kept would hold on to the memory between them."""
    images = vectors.new_empty((matrix.shape[0], vectors.shape[1]))

    def one(first: int, rows: torch.Tensor) -> None:
        torch.mm(rows.to(torch.float64), vectors, out=images[first : first + rows.shape[0]])

    for _ in matrix.each(one):
        pass
    return images


def square_of_difference(matrix: RowBlocks, B: torch.Tensor, A: torch.Tensor) -> float:
    """‖D − B·A‖², block by block."""

    def one(first: int, rows: torch.Tensor) -> float:
        rest = torch.addmm(rows.to(torch.float64), B[first : first + rows.shape[0]], A, alpha=-1)
        return float(torch.linalg.vector_norm(rest).square())

    return math.fsum(matrix.each(one))


def _decomposed(matrix: RowBlocks, most: int, energy: float | None, name: str) -> Approximation:
    """The same of a matrix that is one block."""
    parts = list(matrix.each(lambda _first, rows: rows.to(torch.float64)))
    dense = torch.cat(parts) if parts else torch.zeros(matrix.shape, dtype=torch.float64)
    square = float(torch.linalg.vector_norm(dense).square())
    _require_finite(square, name)
    U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
    squares = S.square()
    least = float(S[0]) * max(dense.shape) * torch.finfo(S.dtype).eps if len(S) else 0.0
    rank = min(most, int((least < S).sum()))
    if energy is not None and rank:
        held = torch.cumsum(squares, 0) >= energy * squares.sum() * (1 - 1e-12)
        rank = min(rank, int(held.to(torch.int8).argmax()) + 1)
    error = float(torch.linalg.vector_norm(S[rank:]))
    return Approximation(
        U[:, :rank].contiguous(), S[:rank].contiguous(), Vh[:rank].contiguous(), math.sqrt(square), error, 0.0
    )


def _bordered(T: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
    """T with the columns, and by symmetry the rows, of the newest block; `newest` is (c, b)."""
    held, width = T.shape[0], newest.shape[1]
    larger = newest.new_zeros((held + width, held + width))
    larger[:held, :held] = T
    larger[:, held:] = newest
    larger[held:, :held] = newest[:held].T
    corner = larger[held:, held:]
    larger[held:, held:] = (corner + corner.T) / 2
    return larger


def _numerical_rank(squares: torch.Tensor) -> int:
    """Of the eigenvalues of a Gram matrix, descending."""
    if not len(squares) or float(squares[0]) <= 0.0:
        return 0
    return int((squares > squares[0] * len(squares) * torch.finfo(squares.dtype).eps * 4).sum())


def _without(block: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """What `block` has outside of `space`; twice is enough: Giraud et al., Numer. Math. 101 (2005)."""
    return torch.addmm(block, space, space.T @ block, alpha=-1)


def _orthonormal(outside: torch.Tensor, space: torch.Tensor, largest: float) -> torch.Tensor:
    """An orthonormal basis of `outside`, orthogonal to `space`; those lost in the rounding of `largest` are out."""
    basis, S, _ = _thin_svd(outside)
    least = _LOST * max(largest, float(S[0]) if len(S) else 0.0)
    basis = basis[:, least < S]
    basis = basis[:, : max(0, space.shape[0] - space.shape[1])]
    if basis.shape[1]:
        basis = torch.linalg.qr(_without(basis, space)).Q
    return basis


def _thin_svd(tall: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The SVD of a tall matrix by way of its triangular factor."""
    Q, R = torch.linalg.qr(tall)
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    return Q @ U, S, Vh


def _require_finite(square: float, name: str) -> None:
    if not math.isfinite(square):
        raise NumericalError(
            f"{quoted(name)} holds NaN or infinity, or its norm exceeds the range of float64, expected finite numbers.",
            hint="The training diverged, or a file is damaged.",
        )
