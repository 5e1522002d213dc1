"""Every method against its authors' formula, written down once more for dense matrices in NumPy's float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from lora_lab_subspace.core_space import CoreSpace
from lora_lab_subspace.isotropic import IsoC, IsoCTS
from lora_lab_subspace.knots import Knots
from lora_lab_subspace.svd_orthogonal import SvdOrthogonal
from lora_lab_subspace.task_vectors import TsvM

from lora_lab.extension.contracts import Factors, MergeContext
from lora_lab.methods.ties import Ties

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lora_lab.extension.contracts import MergeMethod

    Matrix = NDArray[np.float64]

# Roundings of some hundred operations on numbers that conditions of up to some hundred magnify.
TOLERANCE = 1e5 * np.finfo(np.float64).eps


class Case(NamedTuple):
    """Sides, ranks and strengths."""

    outputs: int
    inputs: int
    ranks: tuple[int, ...]
    strengths: tuple[float, ...]


CASES = {
    "two of one rank": Case(14, 11, (3, 3), (1.0, 1.0)),
    "mixed ranks and strengths": Case(12, 17, (4, 1, 2), (0.7, -1.5, 0.3)),
    "one alone": Case(9, 8, (3,), (2.0,)),
    "more directions than there is room for": Case(5, 7, (3, 4), (1.0, 0.5)),
    "one output": Case(1, 6, (2, 1), (1.0, -0.5)),
    "five of a row": Case(16, 16, (3, 2, 4, 1, 3), (1.0, 0.9, 0.8, 0.7, 0.6)),
}
pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def factors_of(case: Case, dtype: torch.dtype = torch.float32) -> list[Factors]:
    generator = torch.Generator().manual_seed(7)
    return [
        Factors(
            torch.randn(rank, case.inputs, generator=generator).to(dtype),
            torch.randn(case.outputs, rank, generator=generator).to(dtype),
            0.25 * (place + 1),
        )
        for place, rank in enumerate(case.ranks)
    ]


def dense(one: Factors) -> Matrix:
    product: Matrix = (one.scaling * one.lora_B.double() @ one.lora_A.double()).numpy()
    return product


def require(method: MergeMethod, case: Case, expected: Matrix, **parameters: Any) -> None:
    """The whole result, and its best approximations of every rank, with the norm and the error that they have."""
    values = {parameter.id: parameter.default for parameter in method.parameters} | parameters
    size = max(float(np.linalg.norm(expected)), 1e-300)
    sigma = np.linalg.svd(expected, compute_uv=False)
    for rank in (None, *range(1, min(expected.shape) + 1)):
        found = method.combine(factors_of(case), case.strengths, MergeContext(values, rank))
        assert found.factors.scaling == 1.0
        assert found.factors.lora_A.dtype == torch.float64
        result = dense(found.factors)
        if rank is None:
            np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE * size)
            assert found.factors.lora_A.shape[0] <= sum(case.ranks)
        else:
            assert found.factors.lora_A.shape[0] <= rank
            best = math.sqrt(float((sigma[rank:] ** 2).sum()))
            assert found.error == pytest.approx(best, rel=1e-9, abs=TOLERANCE * size)
        assert found.error == pytest.approx(float(np.linalg.norm(expected - result)), rel=1e-9, abs=TOLERANCE * size)
        assert found.norm == pytest.approx(size, rel=1e-12)


def thin(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Singular triplets above rounding."""
    U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
    kept = int((1e-12 * S[0] < S).sum()) if S[0] > 0 else 0
    return U[:, :kept], S[:kept], Vt[:kept]


def nearest_orthonormal(stacked: Matrix) -> Matrix:
    """P·Qᵀ of P·Σ·Qᵀ, as the authors do it; without the directions that columns which coincide leave empty."""
    P, sigma, Qt = np.linalg.svd(stacked, full_matrices=False)
    kept = sigma > 1e-7
    product: Matrix = P[:, kept] @ Qt[kept]
    return product


def weighted(case: Case) -> list[Matrix]:
    return [weight * dense(one) for one, weight in zip(factors_of(case), case.strengths, strict=True)]


def ties(parts: list[Matrix], weights: tuple[float, ...], density: float) -> Matrix:
    """Algorithm 1 of TIES, entry by entry."""
    trimmed = []
    for part in parts:
        count = int(density * part.size)
        order = np.argsort(-np.abs(part), axis=None)
        kept = np.zeros(part.size)
        kept[order[:count]] = part.ravel()[order[:count]]
        trimmed.append(kept.reshape(part.shape))
    merged = np.zeros_like(parts[0])
    for place in np.ndindex(merged.shape):
        column = np.array([part[place] for part in trimmed])
        elected = 1.0 if column.sum() >= 0 else -1.0
        agreeing = [at for at, value in enumerate(column) if value * elected > 0]
        if agreeing:
            merged[place] = sum(weights[at] * column[at] for at in agreeing) / len(agreeing)
    return merged


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2])
def test_knots(case: Case, density: float) -> None:
    updates = [dense(one) for one in factors_of(case)]
    U, S, Vt = thin(np.hstack(updates))
    parts = np.hsplit(np.diag(S) @ Vt, len(updates))
    require(Knots(), case, U @ ties(parts, case.strengths, density), inner="ties", density=density)
    require(Knots(), case, sum(weighted(case), np.zeros_like(updates[0])), inner="linear")


def test_knots_by_chance(case: Case) -> None:
    """Each entry of an aligned part is kept, divided by the density, or is not; with TIES the kept ones elect."""
    updates = [dense(one) for one in factors_of(case)]
    U, S, Vt = thin(np.hstack(updates))
    parts = np.hsplit(np.diag(S) @ Vt, len(updates))
    values = {"inner": "dare_linear", "density": 0.6}
    found = Knots().combine(factors_of(case), case.strengths, MergeContext(values, seed=5))
    aligned = U.T @ dense(found.factors)
    possible = np.zeros((1, *aligned.shape))
    for part, weight in zip(parts, case.strengths, strict=True):
        possible = np.concatenate([possible, possible + weight * part / 0.6])
    off = np.abs(possible - aligned).min(axis=0)
    assert off.max() <= TOLERANCE * np.linalg.norm(aligned)
    again = Knots().combine(factors_of(case), case.strengths, MergeContext(values, seed=5))
    other = Knots().combine(factors_of(case), case.strengths, MergeContext(values, seed=6))
    assert torch.equal(again.factors.lora_A, found.factors.lora_A)
    assert aligned.size < 30 or not np.allclose(dense(other.factors), dense(found.factors))
    everything = {"inner": "dare_ties", "density": 1.0}
    elected = Knots().combine(factors_of(case), case.strengths, MergeContext(everything))
    np.testing.assert_allclose(U.T @ dense(elected.factors), ties(parts, case.strengths, 1.0), atol=1e-10)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_task_singular_vectors(case: Case, fraction: float) -> None:
    parts = [thin(part) for part in weighted(case)]
    room = max(1, min(case.outputs, case.inputs) // len(parts))
    counts = [min(room, math.ceil(fraction * len(S))) for _, S, _ in parts]
    U = nearest_orthonormal(np.hstack([part[0][:, :count] for part, count in zip(parts, counts, strict=True)]))
    V = nearest_orthonormal(np.hstack([part[2][:count].T for part, count in zip(parts, counts, strict=True)]))
    S = np.concatenate([part[1][:count] for part, count in zip(parts, counts, strict=True)])
    require(TsvM(), case, U @ np.diag(S) @ V.T, fraction=fraction)


def test_isotropic(case: Case) -> None:
    U, S, Vt = thin(sum(weighted(case), np.zeros((case.outputs, case.inputs))))
    require(IsoC(), case, S.mean() * U @ Vt)
    require(IsoCTS(), case, S.mean() * U @ Vt, common_space_fraction=1.0)
    require(CoreSpace(), case, S.mean() * U @ Vt, inner="linear", isotropize=True)


@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.0])
def test_isotropic_in_common_and_specific_subspaces(case: Case, fraction: float) -> None:
    parts = weighted(case)
    U, S, Vt = thin(sum(parts, np.zeros((case.outputs, case.inputs))))
    tasks, size = len(parts), len(S)
    own = min(size // tasks, round((size - int(size * fraction)) / tasks))
    common = size - tasks * own
    left, values, right = [U[:, :common]], [S[:common]], [Vt[:common].T]
    for part in parts:
        U_t, S_t, Vt_t = np.linalg.svd(part - U[:, :common] @ U[:, :common].T @ part, full_matrices=False)
        count = min(own, int((S_t > 1e-12 * np.linalg.norm(part)).sum()))
        left.append(U_t[:, :count])
        values.append(S_t[:count])
        right.append(Vt_t[:count].T)
    mean = np.concatenate(values).mean()
    expected = mean * nearest_orthonormal(np.hstack(left)) @ nearest_orthonormal(np.hstack(right)).T
    require(IsoCTS(), case, expected, common_space_fraction=fraction)


@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize("isotropize", [False, True])
def test_core_space(case: Case, density: float, isotropize: bool) -> None:
    given = factors_of(case)
    U = thin(np.hstack([one.scaling * one.lora_B.double().numpy() for one in given]))[0]
    Vt = thin(np.vstack([one.lora_A.double().numpy() for one in given]))[2]
    cores = [U.T @ dense(one) @ Vt.T for one in given]
    for core, one in zip(cores, given, strict=True):
        np.testing.assert_allclose(U @ core @ Vt, dense(one), atol=1e-12 * float(np.linalg.norm(dense(one))))
    merged = ties(cores, case.strengths, density)
    if isotropize:
        U_m, S_m, Vt_m = thin(merged)
        merged = S_m.mean() * U_m @ Vt_m if len(S_m) else merged
    require(CoreSpace(), case, U @ merged @ Vt, inner="ties", density=density, isotropize=isotropize)
    if not isotropize:  # what the built-in method does with float32 entries
        values = {"density": density, "majority": "total", "election": "before", "space": "core"}
        other = Ties().combine(given, case.strengths, MergeContext(values, rank=sum(case.ranks)))
        size = float(np.linalg.norm(U @ merged @ Vt))
        np.testing.assert_allclose(dense(other.factors), U @ merged @ Vt, rtol=0, atol=1e-5 * size)


def test_core_space_with_task_singular_vectors(case: Case) -> None:
    parts = [thin(part) for part in weighted(case)]
    size = min(sum(case.ranks), case.outputs, case.inputs)
    room = max(1, size // len(parts))
    U = nearest_orthonormal(np.hstack([part[0][:, :room] for part in parts]))
    V = nearest_orthonormal(np.hstack([part[2][:room].T for part in parts]))
    S = np.concatenate([part[1][:room] for part in parts])
    require(CoreSpace(), case, U @ np.diag(S) @ V.T, inner="tsv")


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.0, 1.0])
def test_svd_orthogonal(case: Case, alpha: float) -> None:
    parts = weighted(case)
    total = parts[0]
    for part in parts[1:]:
        U, S, Vt = thin(total)
        leading = sum(1 for k in range(1, len(S) + 1) if S[:k].sum() <= alpha * S.sum() * (1 + 1e-14))
        added = part.copy()
        for i in range(len(S)):
            for j in range(len(S)):
                if (i < leading and j < leading) or i == j:
                    added -= (U[:, i] @ part @ Vt[j]) * np.outer(U[:, i], Vt[j])
        assert abs((added * total).sum()) <= TOLERANCE * np.linalg.norm(part) * np.linalg.norm(total)
        total = total + added
    mean = np.mean([np.linalg.norm(part) for part in parts])
    require(SvdOrthogonal(), case, total, alpha=alpha, length="sum")
    require(SvdOrthogonal(), case, total * mean / np.linalg.norm(total), alpha=alpha, length="mean")
