"""Leading singular triplets against the dense float64 decomposition, whatever the spectrum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.linalg import truncated
from lora_lab.linalg.blocked import RowBlocks
from lora_lab.linalg.truncated import truncated_svd


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()).Q


def with_spectrum(rows: int, columns: int, values: torch.Tensor) -> torch.Tensor:
    return orthonormal(rows, len(values), 1) * values.double() @ orthonormal(columns, len(values), 2).T


def operator(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> RowBlocks:
    stored = matrix.to(dtype)
    return RowBlocks((matrix.shape[0], matrix.shape[1]), lambda first, end: stored[first:end])


SPECTRA = {
    "steep": torch.logspace(0, -6, 300),
    "flat": torch.linspace(1, 0.9, 300),
    "pairs": torch.repeat_interleave(torch.logspace(0, -2, 150), 2),
    "gap": torch.cat([torch.full((5,), 10.0), torch.linspace(1, 0.5, 295)]),
    "of rank 7": torch.linspace(3, 1, 7),
}


@pytest.fixture
def large_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the iterative way even for matrices that a test can afford to decompose."""
    monkeypatch.setattr(truncated, "_SMALL_SIDE", 0)


@pytest.mark.usefixtures("large_matters")
@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (900, 310)], ids=["tall", "wide", "very tall"])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA.keys())
def test_values_vectors_and_the_bound(values: torch.Tensor, shape: tuple[int, int]) -> None:
    """Values within the residual that is stated; U and V orthonormal; W·v = σ·u to it; the spans are the true ones."""
    matrix = with_spectrum(*shape, values)
    found = truncated_svd(operator(matrix), 6)
    exact = np.linalg.svd(matrix.numpy(), compute_uv=False)
    rounding = 64 * torch.finfo(torch.float32).eps
    assert found.residual <= 3e-4
    assert np.abs(found.S.numpy() - exact[:6]).max() <= (found.residual + rounding) * exact[0]
    for basis in (found.U, found.Vh.T):
        assert float((basis.T @ basis - torch.eye(6)).abs().max()) < 1e-5
    images = matrix @ found.Vh.T
    assert float((images - found.U * found.S).abs().max()) <= (3e-4 + rounding) * exact[0]


@pytest.mark.usefixtures("large_matters")
def test_leading_energy_of_a_flat_bulk() -> None:
    """The Gaussian's edge is the hardest: √Σσ² of the first sixteen is right to a millionth."""
    matrix = torch.randn(700, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = truncated_svd(operator(matrix), 16)
    exact = np.linalg.svd(matrix.numpy(), compute_uv=False)[:16]
    assert float(torch.linalg.vector_norm(found.S)) == pytest.approx(np.linalg.norm(exact), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_matrices_are_exact(dtype: torch.dtype) -> None:
    """A matrix with a short side is decomposed whole, in float64."""
    matrix = torch.randn(40, 700, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    found = truncated_svd(operator(matrix, dtype), 5)
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[:5]
    np.testing.assert_allclose(found.S.numpy(), exact, rtol=1e-12)
    assert found.residual == 0.0


@pytest.mark.usefixtures("large_matters")
@given(rows=st.integers(1, 60), columns=st.integers(1, 60), rank=st.integers(1, 70), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_any_shape_and_rank(rows: int, columns: int, rank: int, seed: int) -> None:
    """As many triplets as there are, the largest first, none of them NaN."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = truncated_svd(operator(matrix), rank)
    count = min(rank, rows, columns)
    exact = np.linalg.svd(matrix.numpy(), compute_uv=False)[:count]
    assert found.S.shape == (count,)
    np.testing.assert_allclose(found.S.numpy(), exact, atol=1e-3 * exact[0])


@pytest.mark.usefixtures("large_matters")
@pytest.mark.parametrize("shape", [(200, 100), (0, 5), (5, 0)])
def test_zero_and_empty(shape: tuple[int, int]) -> None:
    """Nothing in, zeros out."""
    found = truncated_svd(operator(torch.zeros(shape)), 3)
    assert found.S.tolist() == [0.0] * min(3, *shape)
    assert found.residual == 0.0


@pytest.mark.usefixtures("large_matters")
def test_the_same_every_time() -> None:
    """A seed decides the start; one worker and several give the same bits."""
    matrix = with_spectrum(500, 300, SPECTRA["steep"]).float()
    results = [
        truncated_svd(RowBlocks((500, 300), lambda first, end: matrix[first:end], workers=workers), 4)
        for workers in (1, 4)
    ]
    assert results[0].S.equal(results[1].S)
    assert results[0].U.equal(results[1].U)
