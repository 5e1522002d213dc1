"""Sums of factored updates against dense float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import CompatibilityError, NumericalError
from lora_lab.linalg.combining import best_factors, kept_rank, rounding_error, side_by_side_factors
from lora_lab.linalg.spectra import Pair


def pair(rank: int, outputs: int = 30, inputs: int = 20, *, seed: int = 0, scaling: float = 0.7) -> Pair:
    generator = torch.Generator().manual_seed(seed * 100 + rank)
    lora_A = torch.randn(rank, inputs, generator=generator)
    return Pair("q", lora_A, torch.randn(outputs, rank, generator=generator), scaling)


def dense(one: Pair) -> np.ndarray:
    return one.scaling * one.lora_B.double().numpy() @ one.lora_A.double().numpy()


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 25), min_size=1, max_size=3),
    weights=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    kept=st.integers(1, 30),
)
def test_the_best_of_a_rank_is_that_of_the_dense_sum(ranks: list[int], weights: list[float], kept: int) -> None:
    """Eckart and Young: the truncated dense SVD, and its error; any ranks, wider than the matrix too."""
    pairs = [pair(rank, seed=place) for place, rank in enumerate(ranks)]
    whole = sum(weight * dense(one) for weight, one in zip(weights, pairs, strict=False))
    found = best_factors(*side_by_side_factors(pairs, weights[: len(pairs)]), rank=kept)
    values = np.linalg.svd(whole, compute_uv=False)
    largest = max(
        1e-300, values[0], sum(abs(w) * np.linalg.norm(dense(p)) for w, p in zip(weights, pairs, strict=False))
    )
    left = np.linalg.norm(whole - (found.lora_B @ found.lora_A).numpy())
    assert left == pytest.approx(found.error, abs=1e-12 * largest)
    assert left == pytest.approx(np.linalg.norm(values[kept:]), abs=1e-10 * largest)
    assert found.norm == pytest.approx(np.linalg.norm(whole), rel=1e-12, abs=1e-12 * largest)
    assert found.lora_A.shape[0] <= min(kept, sum(ranks), 20)


def test_a_minus_a_has_no_rank() -> None:
    """Exactly: a noise of rounding is no direction. The same factors twice have the rank of one."""
    a = pair(8)
    gone = best_factors(*side_by_side_factors([a, a], [1.0, -1.0]))
    assert (gone.lora_A.shape, gone.lora_B.shape, gone.norm, gone.error) == ((0, 20), (30, 0), 0.0, 0.0)
    assert best_factors(*side_by_side_factors([a, a], [1.0, 0.5])).lora_A.shape[0] == 8


def test_energy_and_rank_leave_the_least_that_does() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])  # squares 16, 4, 1, 1
    assert [kept_rank(values, energy=share) for share in (16 / 22, 16.1 / 22, 20 / 22, 1.0)] == [1, 2, 2, 4]
    assert kept_rank(values, rank=3, energy=1.0) == 3
    assert kept_rank(torch.zeros(0), energy=0.5) == 0


def test_bits_do_not_depend_on_threads() -> None:
    a, b = pair(16, 300, 200), pair(12, 300, 200, seed=1)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(best_factors(*side_by_side_factors([a, b], [0.3, -2.0]), rank=9))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0].lora_A, results[1].lora_A)
    assert torch.equal(results[0].lora_B, results[1].lora_B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_error_of_rounding(dtype: torch.dtype) -> None:
    found = best_factors(*side_by_side_factors([pair(6)], [1.0]))
    B, A = found.lora_B.to(dtype), found.lora_A.to(dtype)
    real = torch.linalg.vector_norm(B.double() @ A.double() - found.lora_B @ found.lora_A)
    assert rounding_error(found.lora_B, found.lora_A, B, A) == pytest.approx(float(real), rel=1e-6)


def test_shapes_and_numbers_are_refused() -> None:
    with pytest.raises(CompatibilityError, match="expected one shape"):
        side_by_side_factors([pair(2), pair(2, outputs=31)], [1.0, 1.0])
    broken = pair(2)
    broken.lora_A[0, 0] = torch.inf
    with pytest.raises(NumericalError, match="NaN or infinity"):
        best_factors(*side_by_side_factors([broken], [1.0]))
