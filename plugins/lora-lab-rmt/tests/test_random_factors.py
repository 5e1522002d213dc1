"""The law of random factors against dense products of them, simulated."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from lora_lab_rmt.random_factors import edges, expected, law, random_spectrum, sample

SIZES = [(40, 6, 50), (50, 6, 40), (20, 20, 20), (5, 8, 30), (30, 8, 5), (7, 1, 9)]


def dense(outputs: int, rank: int, inputs: int, *, draws: int) -> Any:
    """Singular values of B·A, formed in full."""
    generator = np.random.default_rng(11)
    B = generator.standard_normal((draws, outputs, rank))
    A = generator.standard_normal((draws, rank, inputs))
    return np.linalg.svd(B @ A, compute_uv=False)[:, : min(outputs, rank, inputs)]


@pytest.mark.parametrize(("outputs", "rank", "inputs"), SIZES)
def test_cores_are_distributed_like_dense_products(outputs: int, rank: int, inputs: int) -> None:
    """Whichever of the three sizes is the smallest: each ordered value passes a two-sample test."""
    whole = dense(outputs, rank, inputs, draws=600)
    cores = sample(sorted((outputs, rank, inputs)), draws=600, seed=3)
    assert cores.shape == whole.shape
    for place in range(whole.shape[1]):
        assert scipy.stats.ks_2samp(whole[:, place], cores[:, place]).pvalue > 1e-4


@pytest.mark.parametrize("sizes", [(16, 384, 1024), (8, 384, 384), (24, 48, 48), (4, 4096, 11008)])
def test_the_closed_form_is_the_mean(sizes: tuple[int, int, int]) -> None:
    """Within a tenth of the spectrum's width for N as small as 4, as the 1/N correction allows."""
    mean = sample(sizes, draws=200, seed=1).mean(axis=0)
    assert np.abs(expected(sizes) - mean).max() < 0.1 * (mean[0] - mean[-1])


@pytest.mark.parametrize(("c_1", "c_2"), [(0.5, 0.2), (1.0, 1.0), (1e-3, 1e-4), (0.9, 0.01)])
def test_the_law_has_the_moments_of_a_free_product(c_1: float, c_2: float) -> None:
    """Of laws of mean 1 and variance c: mean 1 and variance c₁ + c₂."""
    eigenvalues, shares = law(c_1, c_2)
    middle, mass = 0.5 * (eigenvalues[1:] + eigenvalues[:-1]), np.diff(shares)
    mean = (middle * mass).sum()
    variance = ((middle - mean) ** 2 * mass).sum()
    assert mean == pytest.approx(1.0, abs=5e-3)
    assert variance == pytest.approx(c_1 + c_2, rel=2e-2)


def test_the_edges_of_two_square_factors_are_known() -> None:
    """c₁ = c₂ = 1 is the Fuss–Catalan law on [0, 27/4]."""
    low, high = edges(1.0, 1.0)
    assert low == pytest.approx(0.0, abs=1e-9)
    assert high == pytest.approx(27 / 4, rel=1e-12)


def test_the_edge_of_one_vanishing_ratio_is_marchenko_pastur() -> None:
    low, high = edges(0.25, 1e-12)
    assert low == pytest.approx((1 - 0.5) ** 2, rel=1e-4)
    assert high == pytest.approx((1 + 0.5) ** 2, rel=1e-4)


def test_low_rank_factors_make_almost_equal_values() -> None:
    sizes = (16, 4096, 4096)
    values = expected(sizes)
    width = math.sqrt(16 / 4096 + 16 / 4096)
    assert values.max() / 4096 - 1 == pytest.approx(width, rel=0.15)
    assert 1 - values.min() / 4096 == pytest.approx(width, rel=0.15)


def test_draws_depend_on_seed_and_sizes_alone() -> None:
    first = random_spectrum(40, 6, 50, draws=50, quantile=0.9, seed=1)
    random_spectrum(30, 6, 50, draws=50, quantile=0.9, seed=1)
    random_spectrum.cache_clear()
    assert random_spectrum(40, 6, 50, draws=50, quantile=0.9, seed=1) == first
    assert random_spectrum(50, 6, 40, draws=50, quantile=0.9, seed=1) == first
    assert random_spectrum(40, 6, 50, draws=50, quantile=0.9, seed=2).upper != first.upper


def test_the_global_generators_are_left_alone() -> None:
    before = pickle.dumps(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002 - what must not move
    sample((4, 10, 12), draws=20, seed=0)
    assert pickle.dumps(np.random.get_state()) == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
