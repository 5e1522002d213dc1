"""Methods on the entries of ΔW against dense ones written down independently in NumPy: selection to the bit."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import CompatibilityError, NumericalError
from lora_lab.linalg import blocked, counters
from lora_lab.linalg.consensus import Election, Majority, elected, summed
from lora_lab.linalg.entries import Entries, entries_of, largest
from lora_lab.linalg.sparsifying import kept_by_chance, kept_by_rank, kept_largest, kept_middle
from lora_lab.linalg.spectra import Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPES = [(37, 53), (200, 90), (1, 300), (120, 1)]


@pytest.fixture(params=[64, 1000, 1 << 19], ids=["rows", "few rows", "whole"])
def block_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many elements of a block."""
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", request.param)
    return int(request.param)


def pair(shape: tuple[int, int], seed: int, rank: int = 4) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    return Pair(
        "q", torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator), 0.7
    )


def dense(one: Pair) -> np.ndarray:
    """The entries as they are defined: float64 products, rounded once."""
    product = (one.lora_B.double() * one.scaling).numpy() @ one.lora_A.double().numpy()
    return product.astype(np.float32)


def entries(values: np.ndarray) -> Entries:
    held = torch.from_numpy(values)
    return Entries((held.shape[0], held.shape[1]), lambda first, end: held[first:end].clone())


def whole(found: Entries) -> np.ndarray:
    """All rows, asked for in three pieces that are no blocks of anything."""
    cuts = sorted({0, found.shape[0] // 3, found.shape[0] * 2 // 3, found.shape[0]})
    return np.concatenate([found.rows(a, b).numpy() for a, b in itertools.pairwise(cuts)])


def top(values: np.ndarray, count: int) -> np.ndarray:
    """Mask of the `count` largest magnitudes, of equal ones the first along the rows."""
    order = np.argsort(-np.abs(values).ravel(), kind="stable")[:count]
    mask = np.zeros(values.size, dtype=bool)
    mask[order] = True
    return mask.reshape(values.shape)


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.003, 0.2, 0.77, 1.0])
def test_the_largest_are_the_largest(shape: tuple[int, int], density: float) -> None:
    """⌊density·m·n⌋ of them, whatever the blocks; values untouched."""
    one = pair(shape, 0)
    values = dense(one)
    found = whole(kept_largest(entries_of(one), density))
    np.testing.assert_array_equal(found, np.where(top(values, int(density * values.size)), values, 0))


@pytest.mark.usefixtures("block_elements")
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 400), st.integers(1, 6))
def test_equal_magnitudes_are_taken_from_the_first_row_on(seed: int, count: int, kinds: int) -> None:
    """With few different numbers nearly every threshold falls among equals: zeros, signs, subnormals, the largest."""
    generator = np.random.default_rng(seed)
    numbers = np.array([0.0, -0.0, 1e-40, -1.0, 1.0, 3e38, -2.0], dtype=np.float32)[:kinds]
    values = generator.choice(numbers, size=(20, 20))
    threshold = largest(entries(values), [count])[0]
    held = torch.from_numpy(values)
    found = torch.cat([threshold.kept(first, held[first : first + 3]) for first in range(0, 20, 3)]).numpy()
    np.testing.assert_array_equal(found, np.where(top(values, count), values, 0))


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.2, 0.0), (0.95, 0.2), (0.0, 0.3), (1.0, 0.5)])
def test_breadcrumbs(density: float, gamma: float) -> None:
    """The largest are left out, then so many of the next kept; fewer outliers where both do not fit."""
    one = pair((60, 70), 1)
    values = dense(one)
    kept, outliers = int(density * values.size), int(gamma * values.size)
    outliers -= max(0, kept + outliers - values.size)
    expected = np.where(top(values, kept + outliers) & ~top(values, outliers), values, 0)
    np.testing.assert_array_equal(
        whole(kept_middle(entries_of(one), density, gamma)), values if density == 1.0 else expected
    )


def splitmix(key: int, place: int) -> int:
    """Word number `place` of SplitMix64, in Python's integers."""
    mask = (1 << 64) - 1
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def drawn(key: int, shape: tuple[int, int]) -> np.ndarray:
    """32 bits an entry, two entries of a row a word, the lower bits first."""
    words = (shape[1] + 1) // 2
    bits = [
        [splitmix(key, row * words + column // 2) >> (32 * (column % 2)) & 0xFFFFFFFF for column in range(shape[1])]
        for row in range(shape[0])
    ]
    return np.array(bits, dtype=np.uint64).astype(np.uint32).view(np.int32).reshape(shape)


@pytest.mark.parametrize("shape", [(5, 8), (7, 9), (3, 1)])
def test_random_bits_are_those_of_the_generator(shape: tuple[int, int]) -> None:
    """SplitMix64 as published, whose first words for the key 1234567 are known, and any part of a matrix alike."""
    assert splitmix(1234567, 0) == 6457827717110365317
    key = 0xFEDCBA9876543210
    expected = drawn(key, shape)
    np.testing.assert_array_equal(counters.random_integers(key, (0, shape[0]), shape[1]).numpy(), expected)
    np.testing.assert_array_equal(counters.random_integers(key, (2, 3), shape[1]).numpy(), expected[2:3])


def test_random_bits_are_fair() -> None:
    """Mean, variance and the correlation of neighbours, of four million, within five standard deviations."""
    bits = counters.random_integers(99, (0, 2000), 2000).double() / 2**32
    count = bits.numel()
    assert abs(float(bits.mean())) < 5 / (12 * count) ** 0.5
    assert float(bits.square().mean()) == pytest.approx(1 / 12, rel=5 * (0.8 / count) ** 0.5)
    for one, other in ((bits[:, :-1], bits[:, 1:]), (bits[:-1], bits[1:])):
        assert abs(float((one * other).mean())) * 12 < 5 / count**0.5


def test_keys_differ_by_seed_and_content_alone() -> None:
    """One bit of one factor, the shape or the seed make another key; a copy does not."""
    A = torch.arange(6, dtype=torch.bfloat16)
    keys = {
        counters.key_of(0, A),
        counters.key_of(1, A),
        counters.key_of(0, A.reshape(2, 3)),
        counters.key_of(0, A + 1),
    }
    assert len(keys) == 4
    assert counters.key_of(0, A[::1].clone()) == counters.key_of(0, A)
    assert counters.key_of(0, A, scaling=2.0) != counters.key_of(0, A)


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize("density", [0.0, 0.3, 1 - 1e-12, 1.0])
def test_dare(density: float) -> None:
    """The drawn entries divided by the density; the same whatever the blocks."""
    one = pair((41, 33), 2)
    values = dense(one)
    kept = drawn(5, values.shape) < round(density * 2**32) - 2**31
    expected = np.where(kept, values / np.float32(density or 1), 0) if density < 1 else values
    np.testing.assert_allclose(whole(kept_by_chance(entries_of(one), density, 5)), expected, rtol=1e-6)


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize("columns", [33, 1])
def test_della(columns: int) -> None:
    """The probability rises from density − ε to density + ε along the ranks of a row, and divides what is kept."""
    one = pair((41, columns), 3)
    values = dense(one)
    order = np.argsort(np.abs(values), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(columns), order.shape), axis=1)
    chances = 0.5 - 0.2 + 0.4 * ranks / (columns - 1) if columns > 1 else np.full(values.shape, 0.5)
    kept = drawn(6, values.shape) < np.round(chances * 2**32) - 2**31
    expected = np.where(kept, values / chances, 0)
    np.testing.assert_allclose(whole(kept_by_rank(entries_of(one), 0.5, 0.2, 6)), expected, rtol=1e-6)


def test_the_mean_of_what_chance_keeps_is_the_entry() -> None:
    """Over many keys, for DARE and DELLA: within five standard deviations."""
    values = np.array([[1.0, -2.0, 0.5, 3.0]], dtype=np.float32)
    keys = range(4000)
    for sparse in (
        lambda key: kept_by_chance(entries(values), 0.4, key),
        lambda key: kept_by_rank(entries(values), 0.4, 0.2, key),
    ):
        mean = np.mean([sparse(key * 7919 + 1).rows(0, 1).numpy() for key in keys], axis=0)
        assert np.abs(mean / values - 1).max() < 5 * (4 / len(keys)) ** 0.5


def ties(parts: list[np.ndarray], strengths: list[float], majority: str, election: str) -> np.ndarray:
    """As the papers and PEFT say it, one entry after another."""
    x = np.stack([part.astype(np.float64) for part in parts])
    w = np.array(strengths).reshape(-1, 1, 1)
    votes = x * w if election == "after" else x
    sign = np.where((votes if majority == "total" else np.sign(votes)).sum(axis=0) >= 0, 1, -1)
    agrees = np.sign(votes) == sign
    total = (w * x * agrees).sum(axis=0)
    if election == "before":
        return total / np.maximum(agrees.sum(axis=0), 1)
    weight = (w * agrees).sum(axis=0)
    return total / np.where(weight == 0, 1, weight)


@pytest.mark.parametrize("majority", list(Majority))
@pytest.mark.parametrize("election", list(Election))
@pytest.mark.parametrize("strengths", [[1.0, 1.0, 1.0], [0.25, 2.0, -0.5]], ids=["equal", "weighted"])
def test_ties(majority: Majority, election: Election, strengths: list[float]) -> None:
    """Both elections, both majorities, a negative strength among them."""
    pairs = [pair((50, 64), seed) for seed in range(3)]
    kept = [kept_largest(entries_of(one), 0.3) for one in pairs]
    found = whole(elected(kept, strengths, majority=majority, election=election))
    parts = [np.where(top(dense(one), int(0.3 * 3200)), dense(one), 0) for one in pairs]
    expected = ties(parts, strengths, majority, election)
    np.testing.assert_array_equal(found != 0, expected != 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_ties_is_what_peft_does() -> None:
    """Its own functions on the dense matrices."""
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    pairs = [pair((50, 64), seed) for seed in range(3)]
    tensors = [torch.from_numpy(dense(one)) for one in pairs]
    weights = torch.tensor([0.25, 2.0, -0.5])
    for majority in Majority:
        found = elected(
            [kept_largest(entries_of(one), 0.3) for one in pairs],
            weights.tolist(),
            majority=majority,
            election=Election.BEFORE,
        )
        expected = merge_utils.ties(tensors, weights, 0.3, majority.value)
        torch.testing.assert_close(torch.from_numpy(whole(found)), expected, rtol=1e-6, atol=1e-6)
    pruned = summed([kept_largest(entries_of(one), 0.3) for one in pairs], weights.tolist())
    torch.testing.assert_close(
        torch.from_numpy(whole(pruned)), merge_utils.magnitude_prune(tensors, weights, 0.3), rtol=1e-6, atol=1e-6
    )


def test_what_is_not_finite_is_refused() -> None:
    """Named, and so are factors of two ranks."""
    broken = Pair("layers.0.q", torch.full((2, 4), 1e30), torch.full((3, 2), 1e30), 1.0)
    with pytest.raises(NumericalError, match=r"layers\.0\.q.*exceeds float32"):
        kept_largest(entries_of(broken), 0.5)
    with pytest.raises(CompatibilityError, match="ranks 2 and 3"):
        entries_of(Pair("q", torch.ones(2, 4), torch.ones(3, 3), 1.0))


def test_blocks_are_the_callers_own() -> None:
    """Making rows twice gives the same: nothing is changed in place that is made again."""
    found = elected(
        [kept_largest(entries_of(pair((30, 40), seed)), 0.5) for seed in range(2)],
        [1.0, 2.0],
        majority=Majority.TOTAL,
        election=Election.AFTER,
    )
    assert torch.equal(found.rows(3, 9), found.rows(3, 9))


def each_thread_count() -> Iterator[int]:
    yield from (1, 2, 3)


def test_threads_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same threshold and the same bits for any number of workers."""
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", 500)
    found = []
    for workers in each_thread_count():
        monkeypatch.setattr(blocked, "worker_count", lambda workers=workers: workers)
        found.append(whole(kept_largest(entries_of(pair((90, 80), 4)), 0.1)))
    assert all(np.array_equal(found[0], other) for other in found[1:])
