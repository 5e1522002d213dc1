"""Sums of factored updates, and their best approximations of lower rank, from the factors alone.

Put side by side, the factors of Σ cᵢΔWᵢ are one pair of rank Σrᵢ,

    Σ cᵢ·Bᵢ·Aᵢ = [c₁B₁ … c_kB_k]·[A₁; …; A_k] = Q_b (R_b R_aᵀ) Q_aᵀ,

and the SVD of the small core R_b R_aᵀ is that of the sum. Cutting it after R values leaves the best matrix of rank R,
whose error is √(σ_{R+1}² + …) exactly (Eckart and Young, Psychometrika 1 (1936); Mirsky, Quart. J. Math. 11 (1960)).
Nothing of size out × in is formed, and everything is float64. Q is applied as Householder's reflections, to the columns
that are kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import CompatibilityError, NumericalError, quoted
from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.linalg.spectra import Pair

_EPS: Final = torch.finfo(torch.float64).eps
# A share of the energy that rounding may take from a sum of squares.
_SLACK: Final = 1e-12


class Balanced(NamedTuple):
    """ΔW ≈ lora_B @ lora_A with lora_B = U√S and lora_A = √S·Vh, both factors of one norm.

    lora_B : (out, k) float64
    lora_A : (k, in) float64
    singular_values : of all that is not rounding, float64, descending; the first k of them are kept
    norm : ‖ΔW‖_F
    error : ‖ΔW − lora_B @ lora_A‖_F
    """

    lora_B: torch.Tensor
    lora_A: torch.Tensor
    singular_values: torch.Tensor
    norm: float
    error: float


def side_by_side_factors(pairs: Sequence[Pair], coefficients: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of Σ cᵢΔWᵢ without loss.

    Parameters
    ----------
    pairs : of ΔW of one shape; their ranks may differ
    coefficients : cᵢ

    Returns
    -------
    lora_B (out, Σr) and lora_A (Σr, in), float64; the coefficients and scalings are in lora_B

    Raises
    ------
    CompatibilityError
        the shapes differ.

    Examples
    --------
    >>> from lora_lab.linalg.spectra import Pair
    >>> pair = Pair("q", torch.ones(1, 3), torch.ones(2, 1), 0.5)
    >>> B, A = side_by_side_factors([pair, pair], [1.0, -1.0])
    >>> B @ A
    tensor([[0., 0., 0.],
            [0., 0., 0.]], dtype=torch.float64)
    """
    shapes = {(pair.lora_B.shape[0], pair.lora_A.shape[1]) for pair in pairs}
    if len(shapes) != 1:
        told = ", ".join(str(shape) for shape in sorted(shapes))
        raise CompatibilityError(
            f"The updates of {quoted(pairs[0].name) if pairs else 'nothing'} have the shapes {told or 'none'}, "
            "expected one shape."
        )
    (outputs, inputs) = shapes.pop()
    total = sum(pair.lora_A.shape[0] for pair in pairs)
    # Column-major, as LAPACK wants both: filled as the rows of a transpose.
    left = torch.empty((total, outputs), dtype=torch.float64)
    right = torch.empty((total, inputs), dtype=torch.float64)
    at = 0
    with one_thread():
        for pair, coefficient in zip(pairs, coefficients, strict=True):
            end = at + pair.lora_A.shape[0]
            left[at:end] = pair.lora_B.T
            left[at:end] *= pair.scaling * coefficient
            right[at:end] = pair.lora_A
            at = end
    return left.T, right


def best_factors(
    lora_B: torch.Tensor,
    lora_A: torch.Tensor,
    *,
    rank: int | None = None,
    energy: float | None = None,
    name: str = "ΔW",
) -> Balanced:
    """Compute the best approximation of lora_B @ lora_A of a rank, or of the smallest rank that keeps an energy.

    Parameters
    ----------
    lora_B : (out, r), lora_A : (r, in), float64
    rank : the most that the rank may be; None means the numerical rank
    energy : share in (0, 1] of ‖ΔW‖²: the smallest k with σ₁² + … + σ_k² ≥ energy·‖ΔW‖²
    name : what an error calls this ΔW

    Raises
    ------
    NumericalError
        a factor holds NaN or infinity, or the product exceeds the range of float64.

    Notes
    -----
    Singular values below 4·√r·ε·‖lora_B‖_F·‖lora_A‖_F, which is what rounding makes of a zero, count as zero, so that
    a − a has the rank 0. O((out + in)·r²) time. The bits do not depend on the number of threads.

    Examples
    --------
    >>> B, A = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double(), torch.eye(2, dtype=torch.float64)
    >>> found = best_factors(B, A, rank=1)
    >>> round(found.error, 12), found.lora_B.shape
    (1.0, torch.Size([2, 1]))
    """
    with one_thread():
        left, right = _Reflected(lora_B), _Reflected(lora_A.T)
        core = left.R @ right.R.T
        if not torch.isfinite(core).all():
            raise NumericalError(
                f"The factors of {quoted(name)} hold NaN or infinity, or their product exceeds the range of float64."
            )
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        # ‖R‖ = ‖factor‖: the reflections keep it.
        size = float(torch.linalg.vector_norm(left.R)) * float(torch.linalg.vector_norm(right.R))
        noise = 4 * math.sqrt(lora_A.shape[0]) * _EPS * size
        S = S[: int((noise < S).sum())]
        kept = kept_rank(S, rank=rank, energy=energy)
        root = S[:kept].sqrt()
        B = left.times(U[:, :kept] * root)
        A = right.times(Vh[:kept].T * root).T
    norm = float(torch.linalg.vector_norm(S))
    return Balanced(B, A, S, norm, float(torch.linalg.vector_norm(S[kept:])))


def kept_rank(singular_values: torch.Tensor, *, rank: int | None = None, energy: float | None = None) -> int:
    """How many of the singular values, descending, a rank and an energy leave.

    Examples
    --------
    >>> kept_rank(torch.tensor([3.0, 1.0, 0.1]), energy=0.95), kept_rank(torch.tensor([3.0, 1.0]), rank=5)
    (2, 2)
    """
    most = len(singular_values) if rank is None else min(rank, len(singular_values))
    if energy is None or not most:
        return most
    held = torch.cumsum(singular_values.square(), 0)
    enough = held >= energy * (1 - _SLACK) * held[-1]
    return min(most, int(enough.to(torch.int8).argmax()) + 1)


def rounding_error(lora_B: torch.Tensor, lora_A: torch.Tensor, stored_B: torch.Tensor, stored_A: torch.Tensor) -> float:
    """‖B̃Ã − BA‖_F of factors and what became of them, without cancellation: δB·Ã + B·δA from small Gram matrices.

    Examples
    --------
    >>> B, A = torch.full((2, 1), 1 / 3, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    >>> error = rounding_error(B, A, B.float(), A.float())
    >>> bool(abs(error - torch.linalg.vector_norm(B.float().double() @ A - B @ A)) < 1e-20)
    True
    """
    with one_thread():
        wide_A = stored_A.to(torch.float64)
        dB, dA = stored_B.to(torch.float64) - lora_B, wide_A - lora_A
        square = ((dB.T @ dB) * (wide_A @ wide_A.T)).sum()
        square += 2 * ((dB.T @ lora_B) * (wide_A @ dA.T)).sum()
        square += ((lora_B.T @ lora_B) * (dA @ dA.T)).sum()
    return math.sqrt(max(0.0, float(square)))


def distance_of_factors(
    lora_B: torch.Tensor, lora_A: torch.Tensor, other_B: torch.Tensor, other_A: torch.Tensor
) -> float:
    """‖BA − B̂Â‖_F of two pairs of factors, of any ranks, as the norm of one core: nothing cancels but what is equal.

    Parameters
    ----------
    lora_B, other_B : (out, r), (out, r̂), float of any width
    lora_A, other_A : (r, in), (r̂, in)

    Examples
    --------
    >>> B, A = torch.ones(2, 1), torch.ones(1, 2)
    >>> round(distance_of_factors(B, A, B, 0.5 * A), 12)
    1.0
    """
    with one_thread():
        left = torch.cat([lora_B.to(torch.float64), other_B.to(torch.float64)], dim=1)
        right = torch.cat([lora_A.to(torch.float64), -other_A.to(torch.float64)])
        core = _Reflected(left).R @ _Reflected(right.T).R.T
        return float(torch.linalg.vector_norm(core))


class _Reflected:
    """A thin QR of a tall matrix whose Q stays a product of reflections.

    R : (min(n, r), r)
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self._reflections, self._scales = torch.geqrf(matrix)
        self.R = self._reflections[: len(self._scales)].triu()

    def times(self, columns: torch.Tensor) -> torch.Tensor:
        """Q·columns, (n, k)."""
        whole = columns.new_zeros((columns.shape[1], self._reflections.shape[0])).T
        whole[: columns.shape[0]] = columns
        if not columns.shape[1]:
            return whole
        return torch.ormqr(self._reflections[:, : len(self._scales)], self._scales, whole)
