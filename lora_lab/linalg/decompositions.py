"""All left singular vectors of a base weight, and how those of W + ΔW lie to them.

A weight W (out, in) is decomposed once, exactly, on its smaller side: with S = W where out ≤ in and S = Wᵀ otherwise,

    S Sᵀ = Q diag(σ²) Qᵀ,        Q (k, k) orthogonal, k = min(out, in),

summed and decomposed in float64. Squaring costs half the digits of the smallest σ, and float64 has them to give: σ is
resolved down to √(k·ε)·σ₁, about 7e-7·σ₁ at k = 2048 (a float32 SVD resolves about ε₃₂·√k·σ₁, 5e-6). Below that a
direction is rounding, not W: W's left singular vectors are those of the numerical rank, as they are those of the thin
SVD where out > in.

What an adapter then changes is seen in the coordinates of Q, where W is diagonal and nothing of size out × in is left.
With ΔW = s·B·A and, for out ≤ in, P = s·QᵀB, Z = QᵀWAᵀ, C = AAᵀ,

    Qᵀ(W + ΔW)(W + ΔW)ᵀQ = diag(σ²) + Z Pᵀ + P Zᵀ + P C Pᵀ,

so that the j-th component of an eigenvector y is the cosine of u_j(W) with that left singular vector of W + ΔW. For
out > in the same holds of (W + ΔW)ᵀ(W + ΔW) with P = QᵀAᵀ, Z = s·QᵀWᵀB, C = s²·BᵀB, and u = (W + ΔW) Q y / σ′ gives

    u_jᵀu = (σ_j y_j + (Z_j/σ_j)·(Pᵀy)) / σ′.

The eigenvectors of such a sum are found by :mod:`lora_lab.linalg.diagonal_plus`.

Source: arXiv 2410.21228, section 3; Golub and Van Loan, Matrix Computations, 4th ed., section 8.6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.errors import CompatibilityError, NumericalError, quoted
from lora_lab.linalg.diagonal_plus import DiagonalPlus, leading_eigenpairs
from lora_lab.linalg.threads import one_thread
from lora_lab.linalg.tridiagonal import Reduced
from lora_lab.linalg.updates import Term, Update
from lora_lab.linalg.weight_basis import WeightBasis, product

if TYPE_CHECKING:
    from lora_lab.linalg.spectra import Pair
    from lora_lab.linalg.tridiagonal import TridiagonalProcesses

_EPSILON: Final = 2.0**-52
_PANELS: Final = 4
_BLOCK_ELEMENTS: Final = 1 << 20


class Merged(NamedTuple):
    """The first left singular vectors of W + ΔW against all of W's.

    singular_values : (t,) float64, descending: of W + ΔW
    max_cosines : (t,) float64: max_j |u_j(W)ᵀ u_i(W + ΔW)|
    nearest : (t,) int64: the j of each, from 0
    is_unchanged : whether ΔW is zero
    """

    singular_values: torch.Tensor
    max_cosines: torch.Tensor
    nearest: torch.Tensor
    is_unchanged: bool


def decompose_weight(
    weight: torch.Tensor, *, name: str = "W", processes: TridiagonalProcesses | None = None
) -> WeightBasis:
    """Compute the left singular vectors of `weight`, by an eigendecomposition of its smaller Gram matrix.

    Parameters
    ----------
    weight : (out, in), float of any width, any strides
    processes : those that a weight on the processor is given to, when it is large enough and they can be had

    Raises
    ------
    NumericalError
        it holds NaN or infinity.
    CompatibilityError
        it is no matrix of floats.
    CancelledError
        `processes` were closed.

    Notes
    -----
    On one thread, so that the bits do not depend on their number. O(out·in·k + k³) time; memory beyond `weight`: about
    four float64 squares of side k. Vectors of σ closer than 1e-16·σ₁²/σ to each other are determined only together.

    Examples
    --------
    >>> basis = decompose_weight(torch.diag(torch.tensor([1.0, 3.0, 0.0])))
    >>> basis.singular_values.tolist(), basis.rank
    ([3.0, 1.0, 0.0], 2)
    """
    shape = _shape_of(weight, name)
    side = weight if shape[0] <= shape[1] else weight.T
    with one_thread():
        found = None if processes is None else processes.reduced(side)
        if found is None:
            found = _decomposed(side)
    if not math.isfinite(float(found.squares.sum())):
        raise NumericalError(
            f"The weight {quoted(name)} of the base holds NaN or infinity, expected finite numbers.",
            hint="The file is damaged, or the model diverged.",
        )
    singular_values = found.squares.clamp(min=0.0).sqrt_()
    return WeightBasis(shape, found.vectors, singular_values, found.reflectors, found.scales)


def compare_merged(weight: torch.Tensor, basis: WeightBasis, pair: Pair, top: int) -> Merged:
    """Compare the `top` first left singular vectors of W + ΔW with every one of W's.

    Parameters
    ----------
    weight : (out, in), float of any width, any strides; the one that `basis` is of
    pair : ΔW's factors
    top : how many; fewer where the numerical rank of W + ΔW, or min(out, in), is lower

    Returns
    -------
    as :class:`Merged`; the cosines of a W that is zero, which has no directions, are 0

    Raises
    ------
    CompatibilityError
        ΔW has another shape.

    Notes
    -----
    The basis being rounded to float32 moves a cosine by about 1e-7·‖ΔW‖/σ′ for out ≤ in, and by up to
    1e-7·(σ₁/σ_j)·‖ΔW‖/(σ′√k) with the j-th vector for out > in. O(out·in·r + k²·r) time and a float64 block of memory.

    Examples
    --------
    >>> from lora_lab.linalg.spectra import Pair
    >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
    >>> pair = Pair("q", torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0], [1.0]]), 10.0)
    >>> [round(c, 3) for c in compare_merged(weight, decompose_weight(weight), pair, 1).max_cosines.tolist()]
    [0.726]
    """
    if (pair.lora_B.shape[0], pair.lora_A.shape[1]) != basis.shape:
        raise CompatibilityError(
            f"ΔW of {quoted(pair.name)} is {(pair.lora_B.shape[0], pair.lora_A.shape[1])}, "
            f"expected the weight's {basis.shape}."
        )
    is_left = basis.shape[0] <= basis.shape[1]
    near = pair.scaling * pair.lora_B.to(device=weight.device, dtype=torch.float64)  # (out, r): ΔW = near·farᵀ
    far = pair.lora_A.to(device=weight.device, dtype=torch.float64).T  # (in, r)
    side = weight
    if not is_left:
        near, far, side = far, near, weight.T
    with one_thread():
        image = product(side, far)  # (k, r) = S·far
        turned = basis.coordinates(torch.cat([near, image], dim=1))
        near, image = turned.cpu().chunk(2, dim=1)
        changes = DiagonalPlus(basis.singular_values.square(), near, image, (far.T @ far).cpu())
        return _compared(basis, changes, top)


def compare_changed(
    weight: torch.Tensor,
    basis: WeightBasis,
    changed: torch.Tensor,
    top: int,
    *,
    processes: TridiagonalProcesses | None = None,
) -> Merged:
    """Compare the `top` first left singular vectors of any other matrix with every one of W's.

    For a change that is no low-rank matrix, such as DoRA's, which scales every row anew: `changed` is decomposed whole,
    at the price of W itself.

    Parameters
    ----------
    weight : (out, in), float of any width, any strides; the one that `basis` is of
    changed : (out, in) float of any width: what takes W's place
    top : as :func:`compare_merged`
    processes : as :func:`decompose_weight`

    Raises
    ------
    NumericalError
        `changed` holds NaN or infinity.

    Examples
    --------
    >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
    >>> compare_changed(weight, decompose_weight(weight), torch.ones(2, 2), 1).max_cosines.round(decimals=3).tolist()
    [0.707]
    """
    other = decompose_weight(changed, name="W + ΔW", processes=processes)
    kept, rank = min(top, other.rank), basis.rank
    singular_values = other.singular_values[:kept]
    with one_thread():
        is_unchanged = bool(torch.equal(changed.to(torch.float64), weight.to(torch.float64)))
        vectors = other.leading(kept)  # (k, t)
        if basis.shape[0] <= basis.shape[1]:
            cosines = basis.coordinates(vectors)[:rank]
        else:
            left = product(changed, vectors.to(changed.device)) / singular_values.to(changed.device)  # (out, t)
            across = basis.coordinates(product(weight.T, left).cpu())
            cosines = across[:rank] / basis.singular_values[:rank, None]
    return _nearest(singular_values, cosines, is_unchanged=is_unchanged)


def dora_weight(weight: torch.Tensor, pair: Pair, magnitude: torch.Tensor) -> torch.Tensor:
    """Compute W′ = m ⊙ (W + ΔW)/‖W + ΔW‖ with the norm of each row, (out, in) float64.

    Parameters
    ----------
    weight : (out, in), float of any width, on the processor
    magnitude : (out,), m

    Raises
    ------
    CompatibilityError
        there is not one magnitude for each row.
    NumericalError
        a magnitude is NaN or infinite.

    Notes
    -----
    Source: arXiv 2402.09353, equation 5.

    Examples
    --------
    >>> from lora_lab.linalg.spectra import Pair
    >>> pair = Pair("q", torch.tensor([[0.0, 4.0]]), torch.ones(1, 1), 1.0)
    >>> dora_weight(torch.tensor([[3.0, 0.0]]), pair, torch.tensor([10.0])).tolist()
    [[6.0, 8.0]]
    """
    shape = (weight.shape[0], weight.shape[1])
    if magnitude.shape != shape[:1]:
        raise CompatibilityError(
            f"{quoted(pair.name)} has {tuple(magnitude.shape)} magnitudes, expected one for each of {shape[0]} rows."
        )
    if not torch.isfinite(magnitude).all():
        raise NumericalError(
            f"The magnitudes of {quoted(pair.name)} hold NaN or infinity, expected finite numbers.",
            hint="The training diverged, or the file is damaged.",
        )
    update = Update(pair.name, shape, [Term(pair.lora_A, pair.lora_B, pair.scaling, magnitude=magnitude)])
    with one_thread():
        parts = []
        for _, first, end in update.blocks():
            rows = weight[first:end].to(torch.float64)
            parts.append(rows + update.delta(rows, first))
        return torch.cat(parts)


def pissa_pair(weight: torch.Tensor, basis: WeightBasis, pair: Pair) -> Pair:
    """Factors of scaling·B·A − U_r S_r V_rᵀ, the change of W when training began from W less its r leading triplets.

    With out ≤ in, U_r S_r V_rᵀ = U_r (U_rᵀW); otherwise it is (W V_r) V_rᵀ.

    Parameters
    ----------
    weight : (out, in), float of any width, any strides; the one that `basis` is of
    pair : of rank r

    Returns
    -------
    factors of rank 2r, float64, scaling 1

    Notes
    -----
    Source: arXiv 2404.02948, section 3.

    Examples
    --------
    >>> from lora_lab.linalg.spectra import Pair
    >>> weight = torch.diag(torch.tensor([3.0, 1.0]))
    >>> start = Pair("q", torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0], [0.0]]), 1.0)
    >>> change = pissa_pair(weight, decompose_weight(weight), start)
    >>> (change.lora_B @ change.lora_A).abs().max().item() < 1e-6
    True
    """
    with one_thread():
        leading = basis.leading(pair.lora_A.shape[0]).to(weight.device)  # (k, r)
        if basis.shape[0] <= basis.shape[1]:
            left, right = leading, product(weight.T, leading)
        else:
            left, right = product(weight, leading), leading
        lora_B = torch.cat([pair.scaling * pair.lora_B.to(torch.float64), -left.cpu()], dim=1)
        lora_A = torch.cat([pair.lora_A.to(torch.float64), right.T.cpu()])
    return pair._replace(lora_A=lora_A, lora_B=lora_B, scaling=1.0)


def _compared(basis: WeightBasis, changes: DiagonalPlus, top: int) -> Merged:
    side = changes.diagonal.numel()
    values, vectors = leading_eigenpairs(changes, min(top, side))
    kept = int((values > side * _EPSILON * float(values[0])).sum()) if values.numel() else 0
    singular_values = values[:kept].sqrt()
    vectors = vectors[:, :kept]
    rank = basis.rank
    cosines = vectors[:rank]
    if basis.shape[0] > basis.shape[1]:
        lengths = basis.singular_values[:rank, None]
        cosines = lengths * cosines + (changes.image[:rank] / lengths) @ (changes.near.T @ vectors)
        cosines /= singular_values
    is_unchanged = not (changes.near.any() and changes.gram.any())
    return _nearest(singular_values, cosines, is_unchanged=is_unchanged)


def _nearest(singular_values: torch.Tensor, cosines: torch.Tensor, *, is_unchanged: bool) -> Merged:
    """From the cosines of W's vectors, as rows, with those of W + ΔW."""
    if not cosines.numel():
        nothing = torch.zeros_like(singular_values)
        return Merged(singular_values, nothing, nothing.to(torch.int64), is_unchanged)
    largest = cosines.abs().max(dim=0)
    return Merged(singular_values, largest.values.clamp(max=1.0), largest.indices, is_unchanged)


def _decomposed(side: torch.Tensor) -> Reduced:
    """S Sᵀ decomposed in one go, here; of one that is not finite nothing but its trace is told."""
    gram = _gram(side)
    trace = gram.trace()
    if not math.isfinite(float(trace)):
        return Reduced(trace.cpu(), torch.empty(0, 0))
    values, vectors = torch.linalg.eigh(gram)
    del gram
    rows = vectors.T.to(torch.float32).flip(0)  # LAPACK's columns are rows in memory
    return Reduced(values.flip(0).cpu(), rows.cpu())


def _gram(side: torch.Tensor) -> torch.Tensor:
    """side·sideᵀ, (k, k) float64, from blocks of columns; only panels on and above the diagonal are multiplied."""
    rows, columns = side.shape
    gram = torch.zeros((rows, rows), dtype=torch.float64, device=side.device)
    height = max(1, -(-rows // _PANELS))
    step = max(256, _BLOCK_ELEMENTS // max(rows, 1))
    for first in range(0, columns, step):
        block = side[:, first : first + step].to(torch.float64)
        for above in range(0, rows, height):
            gram[above : above + height, above:].addmm_(block[above : above + height], block[above:].T)
    for above in range(height, rows, height):
        gram[above : above + height, :above] = gram[:above, above : above + height].T
    return gram


def _shape_of(weight: torch.Tensor, name: str) -> tuple[int, int]:
    if weight.ndim != 2 or not weight.dtype.is_floating_point:
        raise CompatibilityError(
            f"The weight {quoted(name)} of the base is {tuple(weight.shape)} of {weight.dtype}, expected a matrix of "
            "floats.",
            hint="A quantised base has to be dequantised first.",
        )
    return (weight.shape[0], weight.shape[1])
