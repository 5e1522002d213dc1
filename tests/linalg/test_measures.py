"""Norms and ranks against NumPy, scipy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.domain.dtypes import DType
from lora_lab.linalg.measures import (
    energy_rank,
    error_rank,
    frobenius_norm,
    measure,
    numerical_rank,
    rank_tolerance,
    relative_errors,
)
from lora_lab.linalg.spectra import factored_singular_values

SPECTRA = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40).map(lambda values: sorted(values, reverse=True))
TYPES = {DType.F64: torch.float64, DType.F32: torch.float32, DType.F16: torch.float16, DType.BF16: torch.bfloat16}


@given(SPECTRA)
def test_equal_their_definitions(spectrum):
    sigma = np.array(spectrum)
    found = measure(spectrum, tolerance=1e-9)
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(sigma), rel=1e-13)
    assert found.spectral_norm == sigma.max()
    assert found.nuclear_norm == pytest.approx(sigma.sum(), rel=1e-13)
    assert found.stable_rank == pytest.approx((sigma**2).sum() / sigma.max() ** 2, rel=1e-12)
    assert found.effective_rank == pytest.approx(math.exp(scipy.stats.entropy(sigma)), rel=1e-12)
    assert found.participation_ratio == pytest.approx((sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-12)
    assert found.numerical_rank == (sigma > 1e-9 * sigma.max()).sum()
    assert found.energy_effective_rank == pytest.approx(math.exp(scipy.stats.entropy(sigma**2)), rel=1e-12)
    assert found.nuclear_norm_ratio == pytest.approx(sigma.sum() / np.linalg.norm(sigma), rel=1e-12)


@given(SPECTRA)
def test_errors_of_lower_ranks_fall_to_zero(spectrum):
    sigma = np.array(spectrum)
    errors = relative_errors(spectrum)
    expected = [np.linalg.norm(sigma[rank:]) / np.linalg.norm(sigma) for rank in range(1, len(sigma) + 1)]
    np.testing.assert_allclose(errors, expected, rtol=1e-12, atol=0)
    assert errors[-1] == 0.0
    assert errors == sorted(errors, reverse=True)


@given(SPECTRA, st.floats(0.0, 0.999))
def test_the_rank_of_an_error_is_the_energy_rank_of_what_it_keeps(spectrum, error):
    rank = error_rank(spectrum, error)
    errors = [1.0, *relative_errors(spectrum)]
    assert errors[rank] <= error * (1 + 1e-9)
    assert rank == 1 or errors[rank - 1] > error
    # 1 − error² is rounded: the two may part where the error is within a round-off of a tie.
    shares = (1 - error**2 - 1e-11, 1 - error**2 + 1e-11)
    assert energy_rank(spectrum, shares[0]) <= rank
    assert shares[1] >= 1 or rank <= energy_rank(spectrum, shares[1])


def test_squaring_the_weights_makes_the_effective_rank_smaller():
    found = measure([4.0, 2.0, 1.0], tolerance=1e-6)
    assert 1 < found.energy_effective_rank < found.effective_rank < 3


def test_a_zero_spectrum_has_no_errors():
    assert relative_errors([0.0, 0.0]) is None
    assert relative_errors([]) is None
    assert error_rank([0.0], 0.1) is None
    found = measure([0.0, 0.0], tolerance=1e-6)
    assert (found.energy_effective_rank, found.nuclear_norm_ratio) == (None, None)


@given(SPECTRA)
def test_ranks_lie_between_one_and_the_number_of_values(spectrum):
    found = measure(spectrum, tolerance=1e-9)
    slack = 1e-9 * len(spectrum)
    for rank in (found.stable_rank, found.effective_rank, found.participation_ratio):
        assert 1 - slack <= rank <= len(spectrum) + slack
    assert list(found.energy_rank.values()) == sorted(found.energy_rank.values())


@given(SPECTRA, st.integers(-300, 300))
def test_a_power_of_two_changes_no_rank(spectrum, exponent):
    once, scaled = (
        measure([math.ldexp(value, shift) for value in spectrum], tolerance=1e-9) for shift in (0, exponent)
    )
    assert (once.stable_rank, once.effective_rank, once.participation_ratio) == (
        scaled.stable_rank,
        scaled.effective_rank,
        scaled.participation_ratio,
    )
    assert (once.numerical_rank, once.energy_rank) == (scaled.numerical_rank, scaled.energy_rank)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 64])
def test_equal_values_have_every_rank_equal_to_their_number(count):
    found = measure([0.3] * count, tolerance=1e-9)
    for rank in (found.stable_rank, found.effective_rank, found.participation_ratio, found.numerical_rank):
        assert rank == pytest.approx(count, rel=1e-13)


@pytest.mark.parametrize("spectrum", [[], [0.0], [0.0, 0.0, 0.0]])
def test_of_a_zero_update_ratios_are_undefined(spectrum):
    found = measure(spectrum, tolerance=1e-9)
    assert (found.frobenius_norm, found.spectral_norm, found.nuclear_norm, found.numerical_rank) == (0, 0, 0, 0)
    assert (found.stable_rank, found.effective_rank, found.participation_ratio) == (None, None, None)
    assert found.energy_rank == {"0.5": None, "0.9": None, "0.95": None, "0.99": None}


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_nothing_overflows(size):
    found = measure([size, size / 2], tolerance=1e-9)
    assert found.participation_ratio == pytest.approx(1.25**2 / 1.0625)
    assert found.frobenius_norm == pytest.approx(size * math.sqrt(1.25))


def test_energy_ranks_by_hand():
    spectrum = [math.sqrt(energy) for energy in (50.0, 40.0, 5.0, 4.0, 1.0)]
    found = measure(spectrum, tolerance=1e-9).energy_rank
    assert found == {"0.5": 1, "0.9": 2, "0.95": 3, "0.99": 4}
    assert energy_rank(spectrum, 1.0) == 5


@given(st.integers(1, 60), st.floats(1e-3, 1e3))
def test_round_off_decides_no_tie(count, size):
    assert energy_rank([size] * (10 * count), 0.9) == 9 * count


def test_frobenius_norm_is_that_of_the_dense_product(random_factors, dense):
    factors = random_factors(5, 40, 30)
    found = frobenius_norm(factored_singular_values(*factors, 3.0).tolist())
    assert found == pytest.approx(np.linalg.norm(dense(*factors, 3.0)), rel=1e-13)


@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize(
    ("rank", "true_rank", "outputs", "inputs"),
    [(16, 4, 512, 384), (8, 1, 64, 64), (64, 60, 256, 512), (128, 5, 512, 256)],
)
def test_a_rank_deficient_product_is_counted_right(stored, rank, true_rank, outputs, inputs):
    """lora_B = X·Y of inner rank `true_rank`, computed in floating point, rounded to the stored type."""
    computed = torch.float64 if stored is DType.F64 else torch.float32
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        X, Y, lora_A = (
            torch.randn(shape, generator=generator, dtype=computed)
            for shape in ((outputs, true_rank), (true_rank, rank), (rank, inputs))
        )
        lora_A, lora_B = lora_A.to(TYPES[stored]), (X @ Y).to(TYPES[stored])
        spectrum = factored_singular_values(lora_A, lora_B, 2.0).tolist()
        tolerance = rank_tolerance([stored, stored], rank)
        assert numerical_rank(spectrum, tolerance=tolerance) == true_rank


@pytest.mark.parametrize("stored", TYPES)
def test_a_full_rank_product_is_counted_full(stored, random_factors):
    lora_A, lora_B = random_factors(8, 300, 200, dtype=TYPES[stored])
    spectrum = factored_singular_values(lora_A, lora_B, 2.0).tolist()
    assert numerical_rank(spectrum, tolerance=rank_tolerance([stored, stored], 8)) == 8


def test_every_type_of_a_factor_has_a_tolerance():
    for dtype in DType:
        if dtype.is_float:
            assert 0 < rank_tolerance([dtype, dtype], 16) < 1
