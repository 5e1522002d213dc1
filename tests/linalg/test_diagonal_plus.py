"""Eigenpairs of a diagonal plus something of low rank, against the dense ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.linalg import diagonal_plus
from lora_lab.linalg.diagonal_plus import DiagonalPlus, leading_eigenpairs


def change_of(diagonal: torch.Tensor, rank: int, size: float, seed: int) -> DiagonalPlus:
    """(S + P Fᵀ)(S + P Fᵀ)ᵀ of S = diag(√d) and seeded P and F, in the form of this module."""
    generator = torch.Generator().manual_seed(seed)
    side = diagonal.numel()
    near = size * torch.randn(side, rank, generator=generator, dtype=torch.float64)
    far = torch.randn(side, rank, generator=generator, dtype=torch.float64) / side**0.5
    return DiagonalPlus(diagonal, near, diagonal.sqrt()[:, None] * far, far.T @ far)


@given(
    st.integers(60, 200),
    st.integers(1, 6),
    st.sampled_from([1e-6, 1e-3, 0.1, 10.0]),
    st.sampled_from(["flat", "steep", "equal", "steps"]),
    st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_against_the_dense_one(side: int, rank: int, size: float, kind: str, seed: int) -> None:
    """Values, residuals and orthonormality, for spectra from all alike to eight orders of magnitude."""
    diagonal = {
        "flat": torch.linspace(2, 1, side, dtype=torch.float64),
        "steep": torch.logspace(0, -8, side, dtype=torch.float64),
        "equal": torch.ones(side, dtype=torch.float64),
        "steps": torch.linspace(5, 1, side, dtype=torch.float64).round(),
    }[kind]
    matrix = change_of(diagonal, rank, size, seed)
    values, vectors = leading_eigenpairs(matrix, 5)
    expected = np.linalg.eigvalsh(matrix.dense().numpy())[::-1][:5]
    assert values.numpy() == pytest.approx(expected, abs=1e-11 * expected[0])
    assert torch.allclose(vectors.T @ vectors, torch.eye(5).double(), atol=1e-12)
    residual = torch.linalg.vector_norm(matrix.times(vectors) - vectors * values, dim=0)
    assert float(residual.max()) <= 1e-11 * expected[0]


def test_directions_that_the_change_cancels() -> None:
    """The first 20 are taken away exactly: what leads then are unit vectors that the low-rank part does not touch."""
    diagonal = torch.linspace(3, 1, 200, dtype=torch.float64)
    near = torch.eye(200, 20, dtype=torch.float64)
    matrix = DiagonalPlus(diagonal, near, -diagonal[:, None] * near, torch.diag(diagonal[:20]))
    values, vectors = leading_eigenpairs(matrix, 5)
    assert torch.allclose(values, diagonal[20:25], rtol=1e-12)
    assert vectors.abs().argmax(dim=0).tolist() == [20, 21, 22, 23, 24]


def test_a_handful_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps suffice at the dense edge of a random matrix's spectrum; the dense way out is not taken."""
    monkeypatch.setattr(diagonal_plus, "_MOST_STEPS", 8)
    dense = DiagonalPlus.dense
    monkeypatch.setattr(DiagonalPlus, "dense", lambda _: pytest.fail("formed"))
    random = torch.randn(600, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    diagonal = torch.linalg.svdvals(random / 600**0.5).square()
    for size in (1e-5, 1e-2, 1.0, 100.0):
        matrix = change_of(diagonal, 8, size, 1)
        values, vectors = leading_eigenpairs(matrix, 10)
        assert torch.allclose(values, torch.linalg.eigvalsh(dense(matrix)).flip(0)[:10], rtol=1e-10)
        assert torch.allclose(vectors.T @ vectors, torch.eye(10, dtype=torch.float64), atol=1e-10)


def test_without_convergence_the_matrix_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is the same."""
    matrix = change_of(torch.linspace(2, 1, 100, dtype=torch.float64), 3, 0.5, 0)
    iterated = leading_eigenpairs(matrix, 4)
    monkeypatch.setattr(diagonal_plus, "_MOST_STEPS", 0)
    formed = leading_eigenpairs(matrix, 4)
    assert torch.allclose(iterated[0], formed[0], rtol=1e-12)
    assert torch.allclose((iterated[1] * formed[1]).sum(dim=0).abs(), torch.ones(4).double(), atol=1e-9)


def test_products() -> None:
    """The fast product and the dense one are one matrix."""
    matrix = change_of(torch.logspace(0, -3, 30, dtype=torch.float64), 4, 0.7, 2)
    vectors = torch.randn(30, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.allclose(matrix.times(vectors), matrix.dense() @ vectors, atol=1e-13)
