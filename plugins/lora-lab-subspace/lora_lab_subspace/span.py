"""The space that several factored updates span, and the small matrices that they are in it.

With thin QR factors of everything side by side, [s₁B₁ … s_TB_T] = Q_b·R_b and [A₁; …; A_T]ᵀ = Q_a·R_a, each update is

    ΔW_t = Q_b · C_t · Q_aᵀ,        C_t = R_b[:, t] · R_a[:, t]ᵀ,

where [:, t] takes the columns of its own factors. The cores C_t have at most Σr rows and columns, and whatever a method
does with singular values and vectors it does with theirs: those of ΔW_t are the same, turned by Q_b and Q_a. Nothing of
size out × in is formed. O((out + in)·(Σr)² + T·(Σr)³) time, O((out + in)·Σr + T·(Σr)²) memory, float64. Source: Golub
and Van Loan, Matrix Computations, 4th ed., sections 5.2 and 8.6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import NumericalError, quoted
from lora_lab.extension.contracts import Combination, Factors
from lora_lab.linalg.combining import kept_rank
from lora_lab.linalg.counters import key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import MergeContext

_EPS: Final = torch.finfo(torch.float64).eps
# Below this sine an angle between directions cannot be told from none in float64: its cosine is 1.
_COINCIDENT: Final = math.sqrt(_EPS)


class Svd(NamedTuple):
    """U · diag(S) · Vᵀ, without what is rounding.

    U : (m, k) orthonormal columns
    S : (k,) descending, above zero
    V : (n, k) orthonormal columns
    """

    U: torch.Tensor
    S: torch.Tensor
    V: torch.Tensor

    @property
    def rank(self) -> int:
        """k, the numerical rank."""
        return len(self.S)

    def leading(self, count: int) -> Svd:
        """Of the first singular values alone."""
        return Svd(self.U[:, :count], self.S[:count], self.V[:, :count])


class Update(NamedTuple):
    """One ΔW in the span.

    core : (p, q), C with ΔW = left · C · rightᵀ, its own scaling included, its strength not
    triplets : the SVD of the core
    strength : w
    noise : what rounding makes of a singular value that is zero
    factors : as they were given
    """

    core: torch.Tensor
    triplets: Svd
    strength: float
    noise: float
    factors: Factors

    def svd(self) -> Svd:
        """Of w · C; the sign of w turns the columns of U."""
        U, S, V = self.triplets
        return Svd(U * math.copysign(1.0, self.strength), S * abs(self.strength), V)


class Span(NamedTuple):
    """What the updates of one module are made of.

    left : (out, p) orthonormal columns, which every lora_B is combined of
    right : (in, q) the same of every lora_Aᵀ
    left_factor : (p, Σr), right_factor : (q, Σr): the stacked factors in these bases
    updates : those that are not zero; p = q = 0 where all are
    """

    left: torch.Tensor
    right: torch.Tensor
    left_factor: torch.Tensor
    right_factor: torch.Tensor
    updates: tuple[Update, ...]

    def total(self) -> Svd:
        """Of Σ w·C, the weighted sum."""
        total = torch.zeros((self.left.shape[1], self.right.shape[1]), dtype=torch.float64)
        for one in self.updates:
            total += one.strength * one.core
        noise = math.fsum(abs(one.strength) * one.noise for one in self.updates)
        return decomposed(total, noise)


def span_of(
    factors: Sequence[Factors], strengths: Sequence[float], *, name: str = "ΔW", is_sequential: bool = False
) -> Span:
    """Find the span of some updates and their cores.

    A zero update, and one of strength 0, is as if it were not there. Unless the order means something, the updates are
    put into one that follows from their numbers alone, so that the bits of a result do not depend on it.

    Parameters
    ----------
    factors : of ΔW of one shape, of any ranks
    strengths : w of each
    name : what an error calls the module
    is_sequential : leave the order as it is

    Raises
    ------
    NumericalError
        a factor holds NaN or infinity, or a product exceeds the range of float64.

    Examples
    --------
    >>> one = Factors(torch.ones(1, 3), torch.ones(2, 1), 0.5)
    >>> span = span_of([one, one], [1.0, -1.0])
    >>> span.left.shape, span.total().rank
    (torch.Size([2, 2]), 0)
    """
    given = [
        (one, strength)
        for one, strength in zip(factors, strengths, strict=True)
        if strength != 0.0 and one.scaling != 0.0 and one.lora_A.any() and one.lora_B.any()
    ]
    if not is_sequential:
        given.sort(key=lambda pair: (key_of(0, pair[0].lora_A, pair[0].lora_B, scaling=pair[0].scaling), pair[1]))
    outputs, inputs = factors[0].lora_B.shape[0], factors[0].lora_A.shape[1]
    lora_B = torch.cat([_wide(one.lora_B) * one.scaling for one, _ in given] or [_empty(outputs)], dim=1)
    lora_A = torch.cat([_wide(one.lora_A).T for one, _ in given] or [_empty(inputs)], dim=1)
    if not (torch.isfinite(lora_B).all() and torch.isfinite(lora_A).all()):
        raise _not_finite(name)
    left, left_factor = torch.linalg.qr(lora_B)
    right, right_factor = torch.linalg.qr(lora_A)
    updates, at = [], 0
    for one, strength in given:
        end = at + one.lora_A.shape[0]
        core = left_factor[:, at:end] @ right_factor[:, at:end].T
        size = float(torch.linalg.vector_norm(lora_B[:, at:end]) * torch.linalg.vector_norm(lora_A[:, at:end]))
        if not (math.isfinite(size * strength) and torch.isfinite(core * strength).all()):
            raise _not_finite(name)
        noise = 4 * math.sqrt(end - at) * _EPS * size
        triplets = decomposed(core, noise)
        if triplets.rank:
            updates.append(Update(core, triplets, strength, noise, one))
        at = end
    return Span(left, right, left_factor, right_factor, tuple(updates))


def decomposed(matrix: torch.Tensor, noise: float) -> Svd:
    """Compute the SVD of a small matrix, without the singular values up to `noise`.

    Each column of U has its element of largest magnitude positive, so that signs are determined too.

    Examples
    --------
    >>> decomposed(torch.diag(torch.tensor([3.0, 1e-20, 2.0], dtype=torch.float64)), 1e-15).S
    tensor([3., 2.], dtype=torch.float64)
    """
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = int((noise < S).sum())
    U, V = U[:, :kept], Vh[:kept].T
    if kept:
        signs = U.gather(0, U.abs().argmax(dim=0, keepdim=True)).sign()
        U, V = U * signs, V * signs
    return Svd(U, S[:kept], V)


def orthonormalised(stacked: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Compute the polar factor P·Qᵀ of stacked = P·Σ·Qᵀ, the matrix of orthonormal columns that is nearest to it.

    Where columns depend on each other there are no such columns in their span. The factor is then the one that is
    nearest in it, a partial isometry (Higham, Functions of Matrices, theorem 8.3), which is unique: directions that
    coincide share one. LAPACK's answer would be filled up with arbitrary directions.

    Parameters
    ----------
    stacked : (n, k) columns of norm 1

    Returns
    -------
    (n, k), and whether its columns are orthonormal

    Examples
    --------
    >>> twice = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    >>> factor, is_complete = orthonormalised(twice)
    >>> factor.round(decimals=4), is_complete
    (tensor([[0.7071, 0.7071],
            [0.0000, 0.0000]], dtype=torch.float64), False)
    """
    P, S, Qh = torch.linalg.svd(stacked, full_matrices=False)
    kept = int((_COINCIDENT * S[:1] < S).sum())
    return P[:, :kept] @ Qh[:kept], kept == stacked.shape[1]


def singular_basis(factor: torch.Tensor) -> torch.Tensor:
    """Left singular vectors of stacked factors, (p, k), without those of rounding; k is their numerical rank."""
    noise = 4 * math.sqrt(factor.shape[1]) * _EPS * float(torch.linalg.vector_norm(factor))
    return decomposed(factor, noise).U


def levelled(found: Svd) -> Svd:
    """Give all singular values their mean; directions stay in their order."""
    return found._replace(S=found.S.mean().expand(found.rank)) if found.rank else found


def composed(parts: Sequence[Svd], *, is_level: bool = False) -> Svd:
    """Orthonormalise the directions of several decompositions together, each keeping its singular value.

    With U = [U₁ … U_T] and V = [V₁ … V_T], of which U⊥ and V⊥ are the polar factors, the SVD of U⊥ · diag(s₁ … s_T) ·
    V⊥ᵀ. As its columns are orthonormal, this product is one already, but for the order and where directions coincide.

    Parameters
    ----------
    is_level : give all of them the mean of the singular values
    """
    U, is_left_complete = orthonormalised(torch.cat([part.U for part in parts], dim=1))
    V, is_right_complete = orthonormalised(torch.cat([part.V for part in parts], dim=1))
    S = torch.cat([part.S for part in parts])
    order = S.argsort(descending=True, stable=True)
    U, S, V = U[:, order], S.mean().expand(len(S)) if is_level else S[order], V[:, order]
    if is_left_complete and is_right_complete:
        return Svd(U, S, V)
    return decomposed((U * S) @ V.T, 8 * math.sqrt(len(S)) * _EPS * float(torch.linalg.vector_norm(S)))


def combination(
    left: torch.Tensor, found: Svd, right: torch.Tensor, context: MergeContext, *, is_transposed: bool
) -> Combination:
    """Factors U√S and √S·Vᵀ of left · found · rightᵀ, cut to what `context` asks for.

    The error is √(σ_{k+1}² + …), the least that rank k allows (Eckart and Young, Psychometrika 1 (1936)).

    Parameters
    ----------
    left : (out, p), right : (in, q), orthonormal columns
    """
    kept = kept_rank(found.S, rank=context.rank, energy=context.energy)
    root = found.S[:kept].sqrt()
    lora_B = left @ (found.U[:, :kept] * root)
    lora_A = (right @ (found.V[:, :kept] * root)).T
    norm, error = (float(torch.linalg.vector_norm(values)) for values in (found.S, found.S[kept:]))
    return Combination(Factors(lora_A, lora_B, 1.0, is_transposed), norm, error)


def _wide(factor: torch.Tensor) -> torch.Tensor:
    return factor.to("cpu", torch.float64)


def _empty(rows: int) -> torch.Tensor:
    return torch.zeros((rows, 0), dtype=torch.float64)


def _not_finite(name: str) -> NumericalError:
    return NumericalError(
        f"The factors of {quoted(name)} hold NaN or infinity, or their product exceeds the range of float64."
    )
