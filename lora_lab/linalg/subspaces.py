"""How the subspaces of two factored updates lie to each other: cross-Gram, φ, principal angles, distances.

With thin QR factors lora_B = Q_b R_b and lora_Aᵀ = Q_a R_a, and the core's SVD scaling · R_b R_aᵀ = U_c S V_cᵀ, the
left- and right-singular vectors of ΔW are U = Q_b U_c and V = Q_a V_c. Two updates meet in one small matrix, on the
right side

    X = V₁ᵀV₂ = V_c₁ᵀ (Q_a₁ᵀQ_a₂) V_c₂,

whose squares, summed over the first i rows and j columns, are ‖V₁ⁱᵀV₂ʲ‖²_F for all i and j at once. The QR is
Householder's: the Gram matrices of the factors would give X in half the time and lose κ(lora_A)² of its digits.

Sources: Hu et al., arXiv 2106.09685, section 7.2 and appendix G (φ); Björck and Golub, Mathematics of Computation 27
(1973) (principal angles); Edelman, Arias and Smith, SIAM J. Matrix Anal. Appl. 20 (1998) (distances).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import CompatibilityError, LoraLabError, NumericalError, quoted
from lora_lab.linalg.measures import numerical_rank
from lora_lab.linalg.spectra import Pair, delta_inner, triangular_factor
from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Sides of an update: right- and left-singular vectors of ΔW, right-singular of lora_A, left-singular of lora_B.
SIDES: Final = ("right", "left", "A", "B")
# Above this square of a cosine an angle is taken from its sine: the arc cosine loses digits near 1, the arc sine there
# none.
_NEAR_ONE: Final = 0.5


class Directions(NamedTuple):
    """Singular directions of an update on one side, the largest first: the columns of Q @ C.

    pair : the update itself
    Q : (d, q) float64, orthonormal columns
    C : (q, k) float64, orthonormal columns; k is the numerical rank
    norm : ‖ΔW‖_F
    """

    pair: Pair
    Q: torch.Tensor
    C: torch.Tensor
    norm: float

    @property
    def rank(self) -> int:
        """k, how many there are."""
        return int(self.C.shape[1])

    @property
    def dimension(self) -> int:
        """d, of the space that they lie in."""
        return int(self.Q.shape[0])

    def vectors(self) -> torch.Tensor:
        """The directions themselves, (d, k)."""
        return self.Q @ self.C


class Overlap(NamedTuple):
    """What two updates have in common.

    cross : (rank_a, rank_b) float64, the cross-Gram U_AᵀU_B
    angles : (min(rank_a, rank_b),) float64, ascending, radians in [0, π/2]
    dimension : d of the space that both subspaces lie in
    cosine : of ΔW_A and ΔW_B; None where one of them is zero
    norm_a, norm_b : ‖ΔW‖_F
    inner : ⟨ΔW_A, ΔW_B⟩
    """

    cross: torch.Tensor
    angles: torch.Tensor
    dimension: int
    cosine: float | None
    norm_a: float
    norm_b: float
    inner: float


def compare(first: Pair, second: Pair, *, side: str = "right", tolerances: tuple[float, float] = (0.0, 0.0)) -> Overlap:
    """Compare two updates of one shape, and the subspaces they span on one side.

    Parameters
    ----------
    first, second : of ΔW of one shape; their ranks may differ
    side : one of ``SIDES``
    tolerances : relative size below which a singular value counts as zero and its direction as none, of each;
        :func:`~lora_lab.linalg.measures.rank_tolerance` gives it

    Raises
    ------
    CompatibilityError
        the shapes differ.
    NumericalError
        a factor holds NaN or infinity, or a product exceeds the range of float64.

    Notes
    -----
    Where σᵢ and σᵢ₊₁ differ by g·σ₁ the first i directions are known to some ε·r/g, as those of a float64 SVD of the
    dense ΔW. O((out + in)·r²) time, O((out + in)·r) memory in float64.

    Examples
    --------
    >>> A, B, R = torch.randn(3, 50).double(), torch.randn(40, 3).double(), torch.randn(3, 3).double()
    >>> same = compare(Pair("q", A, B, 2.0), Pair("q", torch.linalg.solve(R, A), B @ R, 2.0))
    >>> bool(same.angles.max() < 1e-9), round(same.cosine, 9)
    (True, 1.0)
    """
    inner = delta_inner(first, second)
    with one_thread():
        return meet(directions(first, side, tolerances[0]), directions(second, side, tolerances[1]), inner=inner)


def directions(pair: Pair, side: str, tolerance: float) -> Directions:
    """Compute the singular directions of one update on one side, without those that are numerically zero.

    Parameters
    ----------
    side : one of ``SIDES``; right and left are those of ΔW, A and B those of one factor alone
    tolerance : relative size below which a singular value counts as zero

    Raises
    ------
    CompatibilityError
        the ranks of the two factors differ.
    NumericalError
        a factor holds NaN or infinity, or the product exceeds the range of float64.
    """
    if side not in SIDES:
        raise LoraLabError(f"The side is {quoted(side)}, expected one of {', '.join(SIDES)}.")
    if pair.lora_A.shape[0] != pair.lora_B.shape[1]:
        shapes = f"lora_A {tuple(pair.lora_A.shape)} and lora_B {tuple(pair.lora_B.shape)}"
        raise CompatibilityError(f"The factors of {quoted(pair.name)} are {shapes}, expected (r, in) and (out, r).")
    is_right = side in ("right", "A")
    near, far = (pair.lora_A.T, pair.lora_B) if is_right else (pair.lora_B, pair.lora_A.T)
    Q, R_near = torch.linalg.qr(near.to("cpu", torch.float64))  # (d, q), (q, r)
    R_far = triangular_factor(far)
    core = pair.scaling * (R_near @ R_far.T)
    if not torch.isfinite(core).all():
        raise NumericalError(
            f"The factors of {quoted(pair.name)} hold NaN or infinity, or their product exceeds the range of float64."
        )
    # Columns of C are singular vectors in the basis Q: of the core for ΔW, of R alone for one factor.
    C, S, _ = torch.linalg.svd(core, full_matrices=False)
    norm = math.hypot(*S.tolist()) if core.any() else 0.0
    if side in ("A", "B"):
        C, S, _ = torch.linalg.svd(R_near, full_matrices=False)
    kept = numerical_rank(S.tolist(), tolerance=tolerance) if S.any() else 0
    return Directions(pair, Q, C[:, :kept], norm)


def meet(first: Directions, second: Directions, *, inner: float | None = None) -> Overlap:
    """Compare two sets of directions in one space.

    Parameters
    ----------
    inner : ⟨ΔW₁, ΔW₂⟩ where it is known already

    Raises
    ------
    NumericalError
        the inner product of the two updates exceeds the range of float64.
    """
    if inner is None:
        inner = delta_inner(first.pair, second.pair)
    if not math.isfinite(inner):
        raise NumericalError(
            f"The inner product of the two updates of {quoted(first.pair.name)} exceeds the range of float64."
        )
    cross = cross_gram(first, second)
    cosine = None
    if first.norm > 0.0 and second.norm > 0.0:
        cosine = max(-1.0, min(1.0, inner / first.norm / second.norm))
    angles = _angles(cross, first, second)
    return Overlap(cross, angles, first.dimension, cosine, first.norm, second.norm, inner)


def principal_angles(first: Directions, second: Directions) -> torch.Tensor:
    """Compute the principal angles between two subspaces, accurately also where they are small.

    cos θ are the singular values of X = U₁ᵀU₂, and sin θ those of (1 − U₁U₁ᵀ)U₂, with U₂ the smaller subspace. An
    angle below 45° is taken from its sine. Source: Björck and Golub, Mathematics of Computation 27 (1973).

    Returns
    -------
    (min(k₁, k₂),) float64, ascending, radians in [0, π/2], each to some 1e-15
    """
    return _angles(cross_gram(first, second), first, second)


def cross_gram(first: Directions, second: Directions) -> torch.Tensor:
    """X = U₁ᵀU₂ = C₁ᵀ(Q₁ᵀQ₂)C₂, the cosines between all directions of one and all of the other.

    Returns
    -------
    (k₁, k₂) float64
    """
    return first.C.T @ (first.Q.T @ second.Q) @ second.C


def _angles(cross: torch.Tensor, first: Directions, second: Directions) -> torch.Tensor:
    if 0 in cross.shape:
        return torch.zeros(0, dtype=torch.float64)
    cosines = torch.linalg.svdvals(cross).clamp(max=1.0)  # descending
    angles = torch.arccos(cosines)
    if cosines[0] ** 2 <= _NEAR_ONE:
        return angles
    if cross.shape[0] < cross.shape[1]:
        first, second, cross = second, first, cross.T
    # What the larger subspace leaves of the smaller one: its singular values are the sines.
    residual = second.vectors() - first.vectors() @ cross
    sines = torch.linalg.svdvals(triangular_factor(residual)).clamp(max=1.0).flip(0)  # ascending
    return torch.where(cosines.square() > _NEAR_ONE, torch.arcsin(sines), angles)


def phi_grid(cross: torch.Tensor) -> torch.Tensor:
    """Compute φ(i,j) = ‖U_AⁱᵀU_Bʲ‖²_F / min(i,j) for all i and j: one cumulative sum down, one across.

    1 where the smaller of the two subspaces lies in the larger, 0 where they are orthogonal. Source: arXiv 2106.09685,
    section 7.2.

    Parameters
    ----------
    cross : (k₁, k₂), the cross-Gram U_AᵀU_B

    Returns
    -------
    (k₁, k₂) float64 in [0, 1]

    Examples
    --------
    >>> phi_grid(torch.eye(3, dtype=torch.float64)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    i, j = _indices(*cross.shape)
    return (cross.square().cumsum(0).cumsum(1) / torch.minimum(i, j)).clamp(max=1.0)


def random_grid(rows: int, columns: int, dimension: int) -> torch.Tensor:
    """Compute what φ(i,j) is on average for a subspace of uniformly random direction: max(i,j)/d.

    A random unit vector u has E(u·v)² = 1/d with any fixed unit vector v, so of i directions with j others
    E‖UⁱᵀU'ʲ‖²_F = i·j/d; divided by min(i,j) that is max(i,j)/d. The vectors of one subspace need not be independent
    of each other for this.

    Parameters
    ----------
    rows, columns : k₁, k₂
    dimension : d

    Returns
    -------
    (k₁, k₂) float64

    Examples
    --------
    >>> random_grid(2, 3, 12).tolist()
    [[0.08333333333333333, 0.16666666666666666, 0.25], [0.16666666666666666, 0.16666666666666666, 0.25]]
    """
    i, j = _indices(rows, columns)
    return torch.maximum(i, j) / dimension


def grassmann_distance(angles: Sequence[float]) -> float:
    """‖θ‖₂ = √Σθ², the length of the shortest way from one subspace to the other, radians.

    Source: Edelman, Arias and Smith, SIAM J. Matrix Anal. Appl. 20 (1998), section 4.3.
    """
    return math.hypot(*angles)


def projection_distance(angles: Sequence[float]) -> float:
    """√(p − Σcos²θ) = √Σsin²θ of p principal angles, from 0 to √p.

    ‖U₁U₁ᵀ − U₂U₂ᵀ‖_F/√2 for subspaces of one dimension. Source: Edelman, Arias and Smith (1998), section 4.3.

    Examples
    --------
    >>> projection_distance([0.0, math.pi / 2])
    1.0
    """
    return math.hypot(*map(math.sin, angles))


def _indices(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    i = torch.arange(1, rows + 1, dtype=torch.float64)[:, None]
    j = torch.arange(1, columns + 1, dtype=torch.float64)[None, :]
    return i, j
