"""The streamed low-rank approximation against the dense float64 SVD, whatever the spectrum and the shape."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import NumericalError
from lora_lab.linalg import approximation, blocked
from lora_lab.linalg.approximation import low_rank_approximation, square_of_difference
from lora_lab.linalg.blocked import RowBlocks


@lru_cache(maxsize=16)
def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()).Q


def with_spectrum(rows: int, columns: int, values: torch.Tensor) -> torch.Tensor:
    return orthonormal(rows, len(values), 1) * values.double() @ orthonormal(columns, len(values), 2).T


def blocks(matrix: torch.Tensor) -> RowBlocks:
    return RowBlocks((matrix.shape[0], matrix.shape[1]), lambda first, end: matrix[first:end])


def noise(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


SPECTRA = {
    "steep": torch.logspace(0, -6, 200),
    "flat": torch.linspace(1, 0.9, 200),
    "pairs": torch.repeat_interleave(torch.logspace(0, -2, 100), 2),
    "like a harmonic": 1 / torch.arange(1, 201),
    "gap": torch.cat([torch.full((5,), 10.0), torch.linspace(1, 0.5, 195)]),
}
SHAPES = [(260, 220), (220, 260), (500, 210)]


@pytest.fixture(params=[True, False], ids=["in passes", "at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the matrix is looked at in passes, or decomposed as one block."""
    monkeypatch.setattr(approximation, "_SMALL_ENTRIES", 0 if request.param else 1 << 30)
    return bool(request.param)


@pytest.fixture
def in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the iterative way even for matrices that a test can afford to decompose."""
    monkeypatch.setattr(approximation, "_SMALL_ENTRIES", 0)


def assert_optimal(
    matrix: torch.Tensor, found: approximation.Approximation, rank: int, values: torch.Tensor | None = None
) -> None:
    """The error is that of the factors, at most 1 % and the stated bound above the optimum; U, V orthonormal."""
    exact = np.linalg.svd(matrix.numpy(), compute_uv=False) if values is None else values.double().numpy()
    real = float(torch.linalg.vector_norm(matrix - (found.U * found.S) @ found.Vh))
    optimum = float(np.linalg.norm(exact[rank:]))
    assert len(found.S) == rank
    assert found.norm == pytest.approx(float(np.linalg.norm(exact)), rel=1e-12)
    assert found.error == pytest.approx(real, rel=1e-6, abs=1e-12 * found.norm)
    assert real <= optimum * min(1.01, 1 + found.excess) * (1 + 1e-9) + 1e-7 * found.norm
    for basis in (found.U, found.Vh.T):
        assert float((basis.T @ basis - torch.eye(rank)).abs().max()) < 1e-10


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "very tall"])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA.keys())
@pytest.mark.parametrize("rank", [1, 16])
def test_within_a_hundredth_of_the_optimum(values: torch.Tensor, shape: tuple[int, int], rank: int) -> None:
    """For decaying spectra and for flat ones."""
    matrix = with_spectrum(*shape, values)
    assert_optimal(matrix, low_rank_approximation(blocks(matrix), rank=rank), rank, values)


@pytest.mark.usefixtures("in_passes")
@pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "very tall"])
@pytest.mark.parametrize("seed", range(2))
def test_noise_and_noise_with_a_signal(shape: tuple[int, int], seed: int) -> None:
    """The Gaussian's edge, and what training leaves: some directions above a bulk."""
    bulk = noise(*shape)
    for matrix in (bulk, bulk + with_spectrum(*shape, torch.linspace(200, 50, 8))):
        assert_optimal(matrix, low_rank_approximation(blocks(matrix), rank=12, seed=seed), 12)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "very tall"])
def test_a_matrix_of_lower_rank_is_exact(shape: tuple[int, int]) -> None:
    """No more directions than there are, and an error of rounding."""
    matrix = with_spectrum(*shape, torch.linspace(3, 1, 7))
    found = low_rank_approximation(blocks(matrix), rank=16)
    assert len(found.S) == 7
    assert found.error < 1e-7 * found.norm
    assert found.excess == 0.0


@pytest.mark.usefixtures("way")
def test_zero() -> None:
    """Nothing, of rank 0, without NaN."""
    found = low_rank_approximation(blocks(torch.zeros(30, 40)), rank=4)
    assert (len(found.S), found.norm, found.error, found.relative_error) == (0, 0.0, 0.0, None)
    assert (found.U.shape, found.Vh.shape) == ((30, 0), (0, 40))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA.keys())
def test_the_smallest_rank_that_holds_an_energy(values: torch.Tensor, energy: float) -> None:
    """That of the exact spectrum, or one more; the energy is held."""
    matrix = with_spectrum(240, 220, values)
    squares = values.double().numpy() ** 2
    wanted = int(np.searchsorted(np.cumsum(squares), energy * squares.sum() * (1 - 1e-12))) + 1
    found = low_rank_approximation(blocks(matrix), energy=energy)
    if energy < 1.0:
        assert wanted <= len(found.S) <= wanted + 1
    assert float(found.S.square().sum()) >= energy * squares.sum() * (1 - 1e-9)


@pytest.mark.usefixtures("way")
def test_an_energy_has_a_most() -> None:
    """With a rank besides, no more than that."""
    matrix = with_spectrum(260, 240, SPECTRA["flat"])
    found = low_rank_approximation(blocks(matrix), rank=20, energy=0.9)
    assert_optimal(matrix, found, 20, SPECTRA["flat"])


@pytest.mark.usefixtures("in_passes")
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 45), st.integers(0, 100))
def test_any_shape(rows: int, columns: int, rank: int, seed: int) -> None:
    """Down to single rows and columns, and ranks beyond the sides."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_optimal(matrix, low_rank_approximation(blocks(matrix), rank=rank), min(rank, rows, columns))


@pytest.mark.usefixtures("in_passes")
def test_the_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are worked on one by one and summed in the order of the rows."""
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", 4000)
    matrix = noise(300, 200)
    found = []
    for workers in (1, 2, 5):
        monkeypatch.setattr(blocked, "worker_count", lambda workers=workers: workers)
        found.append(low_rank_approximation(blocks(matrix), rank=5))
    assert all(torch.equal(found[0].U, other.U) and torch.equal(found[0].Vh, other.Vh) for other in found)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    """By name."""
    matrix = noise(30, 20)
    matrix[29, 19] = value
    with pytest.raises(NumericalError, match=r"layers\.3\.q.*NaN or infinity"):
        low_rank_approximation(blocks(matrix), rank=2, name="layers.3.q")


def test_the_distance_to_factors() -> None:
    """‖D − B·A‖² of any factors."""
    D, B, A = noise(50, 40), noise(50, 3), noise(3, 40)
    assert square_of_difference(blocks(D), B, A) == pytest.approx(float((D - B @ A).square().sum()), rel=1e-12)
