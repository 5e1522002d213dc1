"""The norm of the leading part of a weight against the dense float64 decomposition, and the bound that is stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.linalg import leading
from lora_lab.linalg.blocked import RowBlocks
from lora_lab.linalg.leading import leading_norm

FLOAT32 = 2.0**-23


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()).Q


def with_spectrum(rows: int, columns: int, values: torch.Tensor) -> torch.Tensor:
    return orthonormal(rows, len(values), 1) * values.double() @ orthonormal(columns, len(values), 2).T


def blocks(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> RowBlocks:
    stored = matrix.to(dtype)
    return RowBlocks((matrix.shape[0], matrix.shape[1]), lambda first, end: stored[first:end])


def exact(matrix: torch.Tensor, rank: int) -> float:
    return float(np.linalg.norm(np.linalg.svd(matrix.double().numpy(), compute_uv=False)[:rank]))


SPECTRA = {
    "steep": torch.logspace(0, -6, 500),
    "flat": torch.linspace(1, 0.9, 500),
    "pairs": torch.repeat_interleave(torch.logspace(0, -2, 250), 2),
    "gap": torch.cat([torch.full((5,), 10.0), torch.linspace(1, 0.5, 495)]),
    "all alike": torch.ones(500),
    "of rank 7": torch.linspace(3, 1, 7),
    "of rank 40": torch.linspace(3, 1, 40),
}


@pytest.fixture
def large_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the iterative way even for matrices that a test can afford to decompose."""
    monkeypatch.setattr(leading, "_SMALL_SIDE", 0)


@pytest.mark.usefixtures("large_matters")
@pytest.mark.parametrize("shape", [(600, 500), (500, 600)], ids=["tall", "wide"])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA.keys())
@pytest.mark.parametrize("rank", [1, 6, 16])
def test_the_norm_and_its_bound(values: torch.Tensor, shape: tuple[int, int], rank: int) -> None:
    """Right to the bound that is stated, and to a millionth; never above but for rounding."""
    matrix = with_spectrum(*shape, values).float()
    truth = exact(matrix, rank)
    for weight in (blocks(matrix), blocks(matrix).held()):
        found = leading_norm(weight, rank)
        assert found.error <= 1e-6
        assert -(found.error + 8 * FLOAT32) <= found.norm / truth - 1 <= 8 * FLOAT32


@pytest.mark.usefixtures("large_matters")
@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-4])
def test_the_bound_holds_before_convergence(tolerance: float) -> None:
    """Stopped early at the edge of a Gaussian, the hardest there is: what lacks is no more than is said."""
    matrix = torch.randn(1100, 1000, generator=torch.Generator().manual_seed(0))
    truth = exact(matrix, 16)
    found = leading_norm(blocks(matrix), 16, tolerance=tolerance)
    assert 0 < found.error <= tolerance
    assert 1 - found.error <= found.norm / truth <= 1 + 8 * FLOAT32


@pytest.mark.usefixtures("large_matters")
def test_it_iterates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spectrum that falls needs no decomposition of the whole."""
    monkeypatch.setattr(leading, "_whole", None)
    matrix = with_spectrum(700, 500, SPECTRA["steep"]).float()
    assert leading_norm(blocks(matrix), 8).norm == pytest.approx(exact(matrix, 8), rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 700), (700, 40), (40, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_matrices_are_exact(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """A matrix with a short side: all eigenvalues of the Gram matrix, in float64."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    for weight in (blocks(matrix, dtype), blocks(matrix, dtype).held()):
        found = leading_norm(weight, 5)
        assert found.norm == pytest.approx(exact(matrix, 5), rel=1e-12)
        assert found.error == 0.0


@given(rows=st.integers(0, 60), columns=st.integers(0, 60), rank=st.integers(1, 70), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_any_shape_and_rank(rows: int, columns: int, rank: int, seed: int) -> None:
    """A rank beyond the sides gives the norm of all of W; nothing of nothing."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = leading_norm(blocks(matrix, torch.float64), rank)
    truth = exact(matrix, rank) if rows and columns else 0.0
    assert found.norm == pytest.approx(truth, rel=1e-12)


@pytest.mark.usefixtures("large_matters")
def test_zero() -> None:
    """Nothing in, zero out."""
    assert leading_norm(blocks(torch.zeros(300, 200)), 3) == (0.0, 0.0)


@pytest.mark.usefixtures("large_matters")
@pytest.mark.parametrize("shape", [(900, 500), (500, 900)])
def test_the_bits_do_not_depend_on_threads(shape: tuple[int, int]) -> None:
    """A seed decides the start; threads of torch and workers change no bit, another seed no more than said."""
    matrix = with_spectrum(*shape, SPECTRA["pairs"]).float()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for workers in (1, 3):
                weight = RowBlocks(shape, lambda first, end: matrix[first:end], workers=workers).held()
                found.append(leading_norm(weight, 6).norm)
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1
    assert leading_norm(blocks(matrix).held(), 6, seed=1).norm == pytest.approx(found[0], rel=2e-6)


@pytest.mark.parametrize("shape", [(1200, 700), (700, 1200), (3, 4), (0, 4), (4, 0)])
@pytest.mark.parametrize("is_held", [False, True])
def test_products_of_the_gram_matrix(shape: tuple[int, int], is_held: bool) -> None:
    """Against NumPy, of the smaller side, in the type of the columns."""
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(shape, generator=generator)
    weight = blocks(matrix).held() if is_held else blocks(matrix)
    side = matrix.double().numpy() if shape[0] >= shape[1] else matrix.double().numpy().T
    truth = side.T @ side
    np.testing.assert_allclose(weight.gram().numpy(), truth, rtol=0, atol=1e-12 * max(shape) ** 1.5)
    columns = torch.randn(min(shape), 5, generator=generator, dtype=torch.float64)
    for dtype, width in ((torch.float64, 2.0**-52), (torch.float32, FLOAT32)):
        found = weight.gram_times(columns.to(dtype))
        assert found.dtype == dtype
        slack = 8 * width * max(shape) ** 1.5
        np.testing.assert_allclose(found.double().numpy(), truth @ columns.numpy(), rtol=0, atol=slack)
