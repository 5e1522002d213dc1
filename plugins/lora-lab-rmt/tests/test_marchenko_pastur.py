"""The law against simulated noise, its published constants, and its own limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lora_lab_rmt.marchenko_pastur import cdf, edge, median, noise_level, threshold


@pytest.mark.parametrize(("beta", "omega"), [(0.05, 1.5194), (0.1, 1.6089), (1.0, 2.8582)])
def test_median_gives_the_published_thresholds(beta: float, omega: float) -> None:
    """Gavish and Donoho's ω(β) = λ(β)/√μ_β, table IV of arXiv 1305.5870, to its own accuracy."""
    root = math.sqrt(beta**2 + 14 * beta + 1)
    known = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + root))
    assert known / math.sqrt(median(beta)) == pytest.approx(omega, abs=3e-4)


@pytest.mark.parametrize("beta", [0.01, 0.3, 1.0])
def test_the_distribution_function_runs_from_zero_to_one(beta: float) -> None:
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    assert cdf(low, beta) == pytest.approx(0.0, abs=1e-10)
    assert cdf(high, beta) == pytest.approx(1.0, abs=1e-10)
    shares = [cdf(x, beta) for x in np.linspace(low, high, 20)]
    assert shares == sorted(shares)


def test_the_law_has_mean_one() -> None:
    """∫x dF = 1, by parts over the distribution function."""
    beta = 0.4
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    points = np.linspace(low, high, 2001)
    mean = high - np.trapezoid([cdf(x, beta) for x in points], points)
    assert mean == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("shape", [(300, 300), (200, 500), (500, 200)])
def test_noise_is_recognised(shape: tuple[int, int]) -> None:
    """The bulk of seeded noise follows the law, and its level is found within a per cent."""
    noise = 0.37 * np.random.default_rng(5).standard_normal(shape)
    spectrum = np.linalg.svd(noise, compute_uv=False)
    found = noise_level(spectrum.tolist(), shape)
    assert found == pytest.approx(0.37, rel=0.01)
    eigenvalues = np.sort(spectrum**2) / (max(shape) * 0.37**2)
    shares = np.array([cdf(x, min(shape) / max(shape)) for x in eigenvalues])
    assert np.abs(shares - np.arange(1, len(shares) + 1) / len(shares)).max() < 0.02
    assert spectrum[0] == pytest.approx(edge(0.37, shape), rel=0.02)


def test_directions_on_top_of_noise_hardly_move_its_level() -> None:
    generator = np.random.default_rng(6)
    shape = (240, 160)
    learnt = 40.0 * generator.standard_normal((240, 3)) @ generator.standard_normal((3, 160)) / math.sqrt(240 * 160)
    spectrum = np.linalg.svd(generator.standard_normal(shape) + 10 * learnt, compute_uv=False).tolist()
    noise = noise_level(spectrum, shape)
    assert noise is not None
    assert noise == pytest.approx(1.0, rel=0.03)
    assert sum(value > threshold(noise, shape, 0.99) for value in spectrum) == 3


def test_the_threshold_holds_the_largest_value_as_often_as_it_says() -> None:
    """σ₁ of 400 noise matrices stays below the 90 % threshold nine times in ten."""
    generator = np.random.default_rng(7)
    largest = np.linalg.norm(generator.standard_normal((400, 60, 40)), ord=2, axis=(1, 2))
    share = (largest < threshold(1.0, (60, 40), 0.9)).mean()
    assert share == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 400))


def test_the_threshold_turns_with_its_matrix_and_scales_with_the_noise() -> None:
    assert threshold(1.0, (30, 70), 0.99) == threshold(1.0, (70, 30), 0.99)
    assert threshold(3.0, (30, 70), 0.99) == pytest.approx(3 * threshold(1.0, (30, 70), 0.99), rel=1e-15)
    assert threshold(2.0, (1, 16), 0.99) == edge(2.0, (1, 16))


@pytest.mark.parametrize("spectrum", [[], [0.0, 0.0], [3.0, 1.0, 0.0, 0.0], [3.0, 1e-12, 1e-12]])
def test_without_a_bulk_there_is_no_noise_level(spectrum: list[float]) -> None:
    assert noise_level(spectrum, (max(1, len(spectrum)), 9)) is None
