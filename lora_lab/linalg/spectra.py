"""The spectrum of ΔW = scaling · lora_B @ lora_A, from the two factors.

With thin QR factors lora_B = Q_b R_b and lora_Aᵀ = Q_a R_a,

    ΔW = scaling · Q_b (R_b R_aᵀ) Q_aᵀ,

and as Q_b and Q_a have orthonormal columns, the non-zero singular values of ΔW are those of the small core
scaling · R_b R_aᵀ. Nothing of size out × in is ever formed, and everything small is float64.

Each pair of factors is decomposed by Householder's QR on one thread; many of them go side by side, or in batches on a
GPU (:mod:`lora_lab.linalg.streaming`). Source: Golub and Van Loan, Matrix Computations, 4th ed., sections 5.2 and 8.6;
blocks of rows: Demmel, Grigori, Hoemmen and Langou, arXiv 0808.2664.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

from lora_lab.errors import CompatibilityError, NumericalError, quoted
from lora_lab.linalg.threads import one_thread

# Elements of the float64 block that one QR works on: 4 MiB, near a processor's second-level cache.
_BLOCK_ELEMENTS: Final = 1 << 19


class Pair(NamedTuple):
    """The two factors of one ΔW, and what to call it in an error.

    lora_A : (r, in), float of any width
    lora_B : (out, r), float of any width
    """

    name: str
    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float


class FactoredSvd(NamedTuple):
    """ΔW = U @ diag(S) @ Vh.

    U : (out, k) float64, orthonormal columns
    S : (k,) float64, descending
    Vh : (k, in) float64, orthonormal rows
    """

    U: torch.Tensor
    S: torch.Tensor
    Vh: torch.Tensor


def factored_singular_values(
    lora_A: torch.Tensor, lora_B: torch.Tensor, scaling: float, *, name: str = "ΔW"
) -> torch.Tensor:
    """Compute the singular values of ``scaling * lora_B @ lora_A`` without forming it.

    Parameters
    ----------
    lora_A : (r, in), float of any width; computed in float64
    lora_B : (out, r), float of any width
    scaling : dimensionless; its sign does not matter
    name : what an error calls this ΔW

    Returns
    -------
    (k,) float64 on the processor, descending, k = min(r, out, in); exact zeros for a zero factor

    Raises
    ------
    CompatibilityError
        the ranks of the two factors differ.
    NumericalError
        a factor holds NaN or infinity, or the product exceeds the range of float64.

    Notes
    -----
    |σ̂ − σ| ≤ c·r·ε·‖lora_B‖₂·‖lora_A‖₂·scaling with ε = 2.2e-16 and c of order 1: the bound that the float64 SVD of the
    dense product has too, and at most 1e-10·σ₁ unless ‖lora_B‖₂·‖lora_A‖₂ exceeds ‖lora_B @ lora_A‖₂ some 10⁴ times.
    The bits do not depend on the number of threads. O((out + in)·r²) time, O((out + in)·r) memory at most.

    Examples
    --------
    >>> B, A = torch.randn(40, 3), torch.randn(3, 50)
    >>> dense = torch.linalg.svdvals(2.0 * B.double() @ A.double())[:3]
    >>> torch.allclose(factored_singular_values(A, B, 2.0), dense, rtol=1e-12)
    True
    """
    with one_thread():
        return core_singular_values(_core(Pair(name, lora_A, lora_B, scaling)), name)


def factored_svd(lora_A: torch.Tensor, lora_B: torch.Tensor, scaling: float, *, name: str = "ΔW") -> FactoredSvd:
    """Compute the thin SVD of ``scaling * lora_B @ lora_A`` without forming it.

    With the core's SVD scaling · R_b R_aᵀ = U_c S V_cᵀ, U = Q_b U_c and V = Q_a V_c. Each row of Vh has its element of
    largest magnitude positive, so that the signs are determined too.

    Parameters
    ----------
    lora_A : (r, in), float of any width
    lora_B : (out, r), float of any width
    scaling : dimensionless; a negative one turns the columns of U around
    name : what an error calls this ΔW

    Raises
    ------
    CompatibilityError, NumericalError
        as :func:`factored_singular_values`.

    Notes
    -----
    Directions of equal singular values, those of a zero ΔW included, are determined only as a subspace.
    O((out + in)·r²) time, O((out + in)·r) memory in float64.

    Examples
    --------
    >>> B, A = torch.randn(40, 3), torch.randn(3, 50)
    >>> U, S, Vh = factored_svd(A, B, 2.0)
    >>> torch.allclose(U @ torch.diag(S) @ Vh, 2.0 * B.double() @ A.double(), atol=1e-12)
    True
    """
    pair = Pair(name, lora_A, lora_B, scaling)
    _check_ranks(pair)
    with one_thread():
        Q_b, R_b = torch.linalg.qr(_as_float64(lora_B))
        Q_a, R_a = torch.linalg.qr(_as_float64(lora_A).T)
        core = _finite(scaling * (R_b @ R_a.T), name)  # (min(out, r), min(in, r))
        U_c, S, V_ch = torch.linalg.svd(core, full_matrices=False)
        U = Q_b @ U_c  # (out, k)
        Vh = V_ch @ Q_a.T  # (k, in)
    if S.numel() and Vh.numel():
        largest = Vh.abs().argmax(dim=1, keepdim=True)
        sign = torch.where(Vh.gather(1, largest) < 0, -1.0, 1.0).to(torch.float64)  # (k, 1)
        U, Vh = U * sign.T, Vh * sign
    if not core.any():
        S = torch.zeros_like(S)
    return FactoredSvd(U, S, Vh)


def delta_inner(first: Pair, second: Pair) -> float:
    """Compute the Frobenius inner product ⟨ΔW₁, ΔW₂⟩ of two factored updates.

    ⟨ΔW₁, ΔW₂⟩ = s₁·s₂·tr((B₁ᵀB₂)(A₂A₁ᵀ)), summed element by element over the two (r₁, r₂) matrices B₁ᵀB₂ and A₁A₂ᵀ.

    Parameters
    ----------
    first, second : of ΔW of one shape; their ranks may differ

    Returns
    -------
    a float64; of one pair with itself it is ‖ΔW‖_F²

    Raises
    ------
    CompatibilityError
        the two ΔW differ in shape.

    Notes
    -----
    The error is at most of order r·ε·‖B₁‖_F‖A₁‖_F‖B₂‖_F‖A₂‖_F·|s₁s₂|. O((out + in)·r₁·r₂) time.

    Examples
    --------
    >>> pair = Pair("q", torch.ones(1, 3), torch.ones(2, 1), 0.5)
    >>> delta_inner(pair, pair)  # ‖ΔW‖_F² of a 2×3 matrix of halves
    1.5
    """
    _check_ranks(first)
    _check_ranks(second)
    shapes = [(pair.lora_B.shape[0], pair.lora_A.shape[1]) for pair in (first, second)]
    if shapes[0] != shapes[1]:
        raise CompatibilityError(
            f"The updates {quoted(first.name)} of shape {shapes[0]} and {quoted(second.name)} of shape {shapes[1]} "
            "have no inner product, expected one shape."
        )
    with one_thread():
        outer = _cross(first.lora_B, second.lora_B)  # (r₁, r₂)
        inner = _cross(first.lora_A.T, second.lora_A.T)  # (r₁, r₂)
        return first.scaling * second.scaling * float((outer * inner).sum())


def triangular_factor(matrix: torch.Tensor) -> torch.Tensor:
    """Compute R of a thin QR of `matrix`, so that RᵀR = matrixᵀ·matrix, in blocks of rows.

    The R of the rows so far, put on top of the next block, has the same Gram matrix as all of them; so R of the pile is
    R of the whole (tall-skinny QR). The blocks are of fixed size, whatever the machine.

    Parameters
    ----------
    matrix : (n, r), float of any width, any strides

    Returns
    -------
    (min(n, r), r) float64; the matrix itself when n ≤ r, which needs no reduction
    """
    rows, rank = matrix.shape
    if rows <= rank:
        return _as_float64(matrix)
    step = max(2 * rank, _BLOCK_ELEMENTS // max(rank, 1))
    factor = torch.empty((0, rank), dtype=torch.float64)
    for start in range(0, rows, step):
        block = matrix[start : start + step]
        above = factor.shape[0]
        # Column-major, as LAPACK wants it: filled as the rows of its transpose.
        pile = torch.empty((rank, above + block.shape[0]), dtype=torch.float64)
        pile[:, :above] = factor.T
        pile[:, above:] = block.T
        factor = torch.linalg.qr(pile.T, mode="r").R
    return factor


def core_singular_values(core: torch.Tensor, name: str) -> torch.Tensor:
    """Singular values of a small core on the processor; exact zeros for a zero one."""
    _finite(core, name)
    if not core.any():
        return torch.zeros(min(core.shape), dtype=torch.float64)
    singular_values: torch.Tensor = torch.linalg.svdvals(core)
    return singular_values


def _core(pair: Pair) -> torch.Tensor:
    """scaling · R_b R_aᵀ, (min(out, r), min(in, r))."""
    _check_ranks(pair)
    R_b = triangular_factor(pair.lora_B)
    R_a = triangular_factor(pair.lora_A.T)
    return pair.scaling * (R_b @ R_a.T)


def _cross(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """firstᵀ·second of two tall matrices, (r₁, r₂) float64, a block of rows at a time."""
    total = torch.zeros((first.shape[1], second.shape[1]), dtype=torch.float64)
    step = max(1, _BLOCK_ELEMENTS // max(total.shape[0], total.shape[1], 1))
    for start in range(0, first.shape[0], step):
        stop = start + step
        total += _as_float64(first[start:stop]).T @ _as_float64(second[start:stop])
    return total


def _as_float64(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.to(device="cpu", dtype=torch.float64)


def _check_ranks(pair: Pair) -> None:
    shape_A, shape_B = tuple(pair.lora_A.shape), tuple(pair.lora_B.shape)
    if len(shape_A) != 2 or len(shape_B) != 2 or shape_A[0] != shape_B[1]:
        raise CompatibilityError(
            f"The factors of {quoted(pair.name)} are lora_A {shape_A} and lora_B {shape_B}, "
            "expected (r, in) and (out, r)."
        )


def _finite(core: torch.Tensor, name: str) -> torch.Tensor:
    if not torch.isfinite(core).all():
        raise NumericalError(
            f"The factors of {quoted(name)} hold NaN or infinity, or their product exceeds the range of float64."
        )
    return core
