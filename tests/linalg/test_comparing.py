"""Differences and signs of updates against the dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import NumericalError
from lora_lab.linalg import comparing
from lora_lab.linalg.comparing import difference_norm, equal_numbers, sign_counts, tensor_difference
from lora_lab.linalg.spectra import Pair


def pair_of(rank: int, inputs: int, outputs: int, seed: int, scaling: float = 2.0) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    lora_A = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    lora_B = torch.randn(outputs, rank, generator=generator, dtype=torch.float64)
    return Pair(f"m{seed}", lora_A, lora_B, scaling)


def dense(pair: Pair) -> np.ndarray:
    return pair.scaling * pair.lora_B.double().numpy() @ pair.lora_A.double().numpy()


@pytest.mark.parametrize(("rank_a", "rank_b"), [(3, 3), (2, 7), (8, 1)])
@pytest.mark.parametrize(("inputs", "outputs"), [(30, 20), (4, 50), (50, 4)])
def test_the_norm_of_the_difference(rank_a, rank_b, inputs, outputs):
    first, second = pair_of(rank_a, inputs, outputs, 1, -0.5), pair_of(rank_b, inputs, outputs, 2, 1.5)
    assert difference_norm(first, second) == pytest.approx(np.linalg.norm(dense(first) - dense(second)), rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1e-8, 1e-12]))
@settings(max_examples=30, deadline=None)
def test_near_updates_lose_no_digits(seed, distance):
    """Exact in 53 bits: the factors are small multiples of powers of two."""
    generator = np.random.default_rng(seed)
    lora_A, lora_B = (generator.integers(-8, 9, shape).astype(float) for shape in ((3, 20), (15, 3)))
    step = 2.0 ** round(math.log2(distance))
    moved = lora_B + step * generator.integers(-8, 9, lora_B.shape)
    first, second = (Pair("m", torch.from_numpy(lora_A), torch.from_numpy(B), 0.5) for B in (lora_B, moved))
    expected = np.linalg.norm(0.5 * ((lora_B - moved) @ lora_A))
    assert difference_norm(first, second) == pytest.approx(expected, rel=1e-11, abs=0)


def test_equal_pairs_differ_by_nothing_and_other_factorisations_by_rounding():
    pair = pair_of(4, 30, 20, 3)
    assert difference_norm(pair, pair) == 0.0
    R = pair_of(4, 4, 4, 4).lora_A
    same = pair._replace(lora_A=torch.linalg.solve(R, pair.lora_A), lora_B=pair.lora_B @ R)
    wider = pair._replace(lora_A=pair.lora_A.repeat(2, 1), lora_B=torch.cat((pair.lora_B / 2, pair.lora_B / 2), dim=1))
    size = np.linalg.norm(dense(pair))
    assert 0 <= difference_norm(pair, same) < 1e-12 * size
    assert 0 <= difference_norm(pair, wider) < 1e-14 * size
    assert difference_norm(pair, pair._replace(scaling=-2.0)) == pytest.approx(2 * size, rel=1e-12)


def test_a_difference_out_of_range_is_refused():
    pair = pair_of(2, 5, 4, 5)
    with pytest.raises(NumericalError, match="'m5'"):
        difference_norm(pair._replace(lora_A=pair.lora_A * math.inf), pair)


# Signs


def expected_signs(pairs: list[Pair], strengths: list[float]) -> tuple[np.ndarray, np.ndarray, int, int]:
    signs = np.stack([np.sign(weight * dense(pair)).ravel() for pair, weight in zip(pairs, strengths, strict=True)])
    shared = np.array([[((one != 0) & (other != 0)).sum() for other in signs] for one in signs])
    conflicts = np.array([[(one * other < 0).sum() for other in signs] for one in signs])
    several = (signs != 0).sum(axis=0) >= 2
    mixed = (signs > 0).any(axis=0) & (signs < 0).any(axis=0)
    return shared, conflicts, int(several.sum()), int((several & mixed).sum())


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("block", [1, 64, 1 << 18])
def test_counts_are_those_of_the_entries(monkeypatch, count, block):
    monkeypatch.setattr(comparing, "_BLOCK_ENTRIES", block)
    pairs = [pair_of(2 + seed, 30, 25, seed, 2.0 if seed % 2 else -2.0) for seed in range(count)]
    pairs[0].lora_B[3:9] = 0.0  # rows of exact zeros
    pairs[1].lora_A[:, 5:11] = 0.0
    strengths = [1.0, -0.5, 2.0, 0.0, 1.0][:count]
    found = sign_counts(pairs, strengths)
    shared, conflicts, several, mixed = expected_signs(pairs, strengths)
    np.testing.assert_array_equal(found.pair_shared, shared)
    np.testing.assert_array_equal(found.pair_conflicts, conflicts)
    assert (found.shared, found.conflicts) == (several, mixed)


def test_rows_are_drawn_by_the_seed():
    pairs = [pair_of(3, 40, 60, seed) for seed in (1, 2)]
    few, again, other = (sign_counts(pairs, [1, 1], rows=10, seed=seed) for seed in (0, 0, 1))
    assert few.shared == again.shared == 400
    assert few.conflicts == again.conflicts != other.conflicts
    assert sign_counts(pairs, [1, 1], rows=60).conflicts == sign_counts(pairs, [1, 1]).conflicts
    assert sign_counts(pairs, [1, 1], rows=1000, seed=5).shared == 2400


def test_an_update_agrees_with_itself_and_conflicts_with_its_opposite():
    pair = pair_of(3, 20, 10, 6)
    assert sign_counts([pair, pair], [1, 3]).conflicts == 0
    assert sign_counts([pair, pair], [1, -3]).conflicts == 200
    assert sign_counts([pair, pair], [1, 0]).shared == 0


# Stored tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_differences_of_stored_tensors(monkeypatch, dtype):
    monkeypatch.setattr(comparing, "_TENSOR_ELEMENTS", 7)
    first, second = (torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (1, 2))
    found = tensor_difference(first, second)
    a, b = first.double().numpy(), second.double().numpy()
    expected = [np.linalg.norm(a), np.linalg.norm(b), np.linalg.norm(a - b)]
    assert list(found) == pytest.approx(expected, rel=1e-12)
    assert found.relative == pytest.approx(expected[2] / max(expected[:2]), rel=1e-12)
    zero = torch.zeros_like(first)
    assert tensor_difference(zero, zero).relative is None


def test_numbers_count_and_types_do_not():
    numbers = torch.tensor([1.5, math.nan, -0.0, math.inf])
    assert equal_numbers(numbers, numbers.to(torch.bfloat16))
    assert not equal_numbers(numbers, numbers[:3])
    assert not equal_numbers(numbers, torch.tensor([1.5, 0.0, 0.0, math.inf]))
    assert not equal_numbers(torch.tensor([1.0]), torch.tensor([1.0 + 2**-20]))
    assert equal_numbers(torch.tensor([2**24 + 1]), torch.tensor([2**24 + 1], dtype=torch.int32))
    assert not equal_numbers(torch.tensor([2**60]), torch.tensor([2**60 + 1]))
    with pytest.raises(NumericalError, match="'head'"):
        tensor_difference(numbers, numbers, name="head")
