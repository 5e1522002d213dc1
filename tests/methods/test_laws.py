"""Laws of methods, on factors that nobody chose: sums, optima, selections, order, identity and what cancels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.extension.contracts import Combination, Factors, MergeContext, MergeMethod
from lora_lab.linalg.counters import key_of
from lora_lab.methods.catalogue import BUILT_IN

METHODS = {method.id: method for method in BUILT_IN}
ENTRIES = [name for name, method in METHODS.items() if not method.is_low_rank]
SHAPE = (24, 20)


def made(ranks: list[int], seed: int = 0, shape: tuple[int, int] = SHAPE) -> list[Factors]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Factors(
            torch.randn(rank, shape[1], generator=generator),
            torch.randn(shape[0], rank, generator=generator),
            0.5 + place,
        )
        for place, rank in enumerate(ranks)
    ]


def dense(one: Factors | Combination) -> np.ndarray:
    if isinstance(one, Combination):
        one = one.factors
    return one.scaling * (one.lora_B.double().numpy() @ one.lora_A.double().numpy())


def context(method: MergeMethod, rank: int | None = None, seed: int = 0, **chosen: Any) -> MergeContext:
    return MergeContext({parameter.id: parameter.default for parameter in method.parameters} | chosen, rank, seed=seed)


RANKS = st.lists(st.integers(1, 24), min_size=1, max_size=3)
WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 3), st.floats(-3, -1e-3)), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(RANKS, WEIGHTS, st.integers(0, 50), st.sampled_from(["linear", "cat"]))
def test_sums_are_exact(ranks: list[int], weights: list[float], seed: int, name: str) -> None:
    """Σ wᵢΔWᵢ to 1e-12 of what is added, of any ranks, of more than the matrix has too."""
    factors = made(ranks, seed)
    parts = [weight * dense(one) for weight, one in zip(weights, factors, strict=False)]
    found = METHODS[name].combine(factors, weights[: len(ranks)], context(METHODS[name]))
    size = sum(np.linalg.norm(part) for part in parts)
    assert np.linalg.norm(dense(found) - sum(parts)) <= 1e-12 * size
    assert found.norm == pytest.approx(np.linalg.norm(sum(parts)), rel=1e-12, abs=1e-12 * size)
    assert found.error == 0.0
    if name == "linear":
        assert found.factors.lora_A.shape[0] <= min(sum(ranks), *SHAPE)


@settings(max_examples=40, deadline=None)
@given(RANKS, WEIGHTS, st.integers(0, 50), st.integers(1, 20))
def test_the_best_of_a_rank_is_the_dense_optimum(ranks: list[int], weights: list[float], seed: int, kept: int) -> None:
    """σ̂ within 1e-10·σ₁, and the error of Eckart and Young that is told is the real one."""
    factors = made(ranks, seed)
    whole = sum(weight * dense(one) for weight, one in zip(weights, factors, strict=False))
    size = sum(abs(weight) * np.linalg.norm(dense(one)) for weight, one in zip(weights, factors, strict=False))
    found = METHODS["svd"].combine(factors, weights[: len(ranks)], context(METHODS["svd"], kept))
    exact = np.linalg.svd(whole, compute_uv=False)
    values = np.linalg.svd(dense(found), compute_uv=False)
    assert np.abs(values[:kept] - exact[:kept]).max() <= 1e-10 * exact[0] + 1e-13 * size
    real = np.linalg.norm(whole - dense(found))
    assert found.error == pytest.approx(real, abs=1e-10 * exact[0] + 1e-13 * size)
    assert real <= np.linalg.norm(exact[kept:]) + 1e-10 * exact[0] + 1e-13 * size


# The dense arithmetic of the methods on entries, once more, in numpy and in float64 of float32 entries.


def word(key: int, place: int) -> int:
    """Of SplitMix64."""
    mask = (1 << 64) - 1
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def drawn(key: int) -> np.ndarray:
    """A number in [0, 1) for every entry: two of a row share a word, the lower half first, as signed integers."""
    rows, columns = SHAPE
    half = (columns + 1) // 2
    words = np.array([[word(key, row * half + place) for place in range(half)] for row in range(rows)], dtype=object)
    pieces = np.stack([words & 0xFFFFFFFF, words >> 32], axis=2).reshape(rows, 2 * half)[:, :columns].astype(np.uint64)
    return ((pieces + (1 << 31)) % (1 << 32)).astype(np.float64) / 2**32


def largest(x: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(x.size, dtype=bool)
    mask[np.argsort(-np.abs(x).ravel(), kind="stable")[:count]] = True
    return mask.reshape(x.shape)


def sparse(name: str, x: np.ndarray, key: int, chosen: dict[str, Any]) -> np.ndarray:
    density, total = chosen["density"], x.size
    if name.startswith("dare"):
        return np.where(drawn(key) < density, x / density, 0)
    if name.startswith("della"):
        rank = np.argsort(np.argsort(np.abs(x), axis=1, kind="stable"), axis=1, kind="stable")
        chance = density - chosen["epsilon"] + 2 * chosen["epsilon"] * rank / (x.shape[1] - 1)
        return np.where(drawn(key) < chance, x / chance, 0)
    if name.startswith("breadcrumbs"):
        kept = int(density * total)
        left = min(int(chosen["gamma"] * total), total - kept)
        return np.where(largest(x, kept + left) & ~largest(x, left), x, 0)
    return np.where(largest(x, int(density * total)), x, 0)


def reference(name: str, factors: list[Factors], weights: list[float], chosen: dict[str, Any], seed: int) -> np.ndarray:
    w = np.array(weights).reshape(-1, 1, 1)
    x = np.stack(
        [
            sparse(
                name,
                dense(one).astype(np.float32).astype(np.float64),
                key_of(seed, one.lora_A, one.lora_B, scaling=one.scaling),
                chosen,
            )
            for one in factors
        ]
    )
    if "election" not in chosen:
        return (w * x).sum(axis=0)
    voters = w * x if chosen["election"] == "after" else x
    votes = voters if chosen["majority"] == "total" else np.sign(voters)
    agrees = np.sign(voters) == np.where(votes.sum(axis=0) >= 0, 1, -1)
    if chosen["election"] == "before":
        return (w * x * agrees).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)
    divisor = (w * agrees).sum(axis=0)
    return (w * x * agrees).sum(axis=0) / np.where(divisor == 0, 1, divisor)


@pytest.mark.parametrize("name", ENTRIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_entries_are_those_of_a_dense_implementation(name: str, data: Any) -> None:
    """The very same entries are kept, and their values are equal to a millionth; any parameters, strengths, seeds."""
    method = METHODS[name]
    chosen: dict[str, Any] = {"density": data.draw(st.sampled_from([0.2, 0.35, 0.5, 0.8]))}
    names = {parameter.id for parameter in method.parameters}
    for key, values in (
        ("gamma", [0.0, 0.05, 0.3]),
        ("epsilon", [0.0, 0.1, 0.19]),
        ("majority", ["total", "frequency"]),
        ("election", ["before", "after"]),
    ):
        if key in names:
            chosen[key] = data.draw(st.sampled_from(values))
    seed, count = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 3))
    weights = [data.draw(st.sampled_from([1.0, 0.5, -0.75, 2.0])) for _ in range(count)]
    factors = made([3, 5, 2][:count], seed)
    found = dense(method.combine(factors, weights, context(method, min(SHAPE), seed, **chosen)))
    expected = reference(name, factors, weights, chosen, seed)
    scale = np.abs(expected).max()
    assert np.array_equal(np.abs(found) > 1e-9 * scale, np.abs(expected) > 1e-9 * scale)
    np.testing.assert_allclose(found, expected, atol=1e-6 * scale)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("cat", "slerp")])
def test_no_bit_depends_on_the_order(name: str) -> None:
    """Of the inputs, given with their strengths; cat alone keeps the order of the factors."""
    method, factors, weights = METHODS[name], made([3, 5, 2], 4), [1.0, 0.5, -0.25]
    results = [
        method.combine([factors[place] for place in order], [weights[place] for place in order], context(method, 4))
        for order in itertools.permutations(range(3))
    ]
    for other in results[1:]:
        assert torch.equal(other.factors.lora_A, results[0].factors.lora_A)
        assert torch.equal(other.factors.lora_B, results[0].factors.lora_B)
        assert (other.norm, other.error) == (results[0].norm, results[0].error)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(METHODS)), st.integers(1, 20), st.integers(0, 50))
def test_one_adapter_at_strength_one_is_itself(name: str, rank: int, seed: int) -> None:
    """Of slerp from an adapter to itself; of methods on entries where all are kept, to float32."""
    method = METHODS[name]
    chosen = {"density": 1.0} if name in ENTRIES else {}
    (one,) = made([rank], seed)
    several = [one, one] if name == "slerp" else [one]
    found = method.combine(several, [1.0] * len(several), context(method, None, **chosen))
    bound = 1e-6 if name in ENTRIES else 1e-12
    assert np.linalg.norm(dense(found) - dense(one)) <= bound * np.linalg.norm(dense(one))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([name for name in sorted(METHODS) if name not in ("slerp", "multislerp")]),
    st.integers(1, 20),
    st.integers(0, 50),
)
def test_an_adapter_taken_from_itself_leaves_nothing(name: str, rank: int, seed: int) -> None:
    """Exactly, by whatever is a sum, and by TIES that elects before weighting; interpolations have no such thing."""
    method = METHODS[name]
    (one,) = made([rank], seed)
    found = method.combine([one, one], [1.0, -1.0], context(method))
    assert np.abs(dense(found)).max(initial=0.0) <= 1e-13 * np.abs(dense(one)).max()
    assert found.norm <= 1e-13 * np.linalg.norm(dense(one))
