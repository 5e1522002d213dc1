"""Weights changed in memory against dense float64, whatever the threads, and residuals that restore every bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.linalg import in_place
from lora_lab.linalg.in_place import Change, merge_all, ready, swap_all
from lora_lab.linalg.kept_residuals import kept_residual, restore_kept
from lora_lab.linalg.residuals import residual_of, restore
from lora_lab.linalg.subtraction import doubt_about
from lora_lab.linalg.updates import Term, Update, apply_update

SHAPES = [(7, 5), (130, 3000), (1, 1), (33, 4096)]  # blocks of 262144 elements: one, two with a rest, one, one
TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def term(shape: tuple[int, int], rank: int, seed: int, strength: float = 1.0) -> Term:
    """A random adapter of some per cent of a weight of ones."""
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
    return Term(A * 0.1, B * 0.1, 0.5, strength)


def delta(one: Term) -> torch.Tensor:
    """ΔW in float64."""
    return one.strength * one.scaling * (one.lora_B.double() @ one.lora_A.double())


def weight_of(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """A random weight."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_merge_is_the_float64_sum_rounded_once(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Into a kept copy, and in place, several weights at once."""
    kept, one = weight_of(shape, dtype), term(shape, 4, 1)
    update = ready(Update("w", shape, [one]))
    weights = [torch.zeros_like(kept), kept.clone()]
    merge_all([Change(weights[0], update, kept=kept), Change(weights[1], update)])
    right = (kept.double() + delta(one)).to(dtype)
    ulp = torch.finfo(dtype).eps
    for weight in weights:
        # The order of a float64 sum may move a tie: by one unit in the last place, of the stored type.
        assert torch.allclose(weight.double(), right.double(), rtol=ulp, atol=0.0)
        assert float((weight != right).double().mean()) < 1e-3 or dtype is torch.float64
    assert torch.equal(weights[0], weights[1])
    single = kept.clone()
    apply_update(single, Update("w", shape, [one]), is_measured=False)
    assert torch.equal(weights[0], single)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_swap_is_two_sums_each_rounded(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """round(round(W′ − ΔA) + ΔB), within what the order of a float32 sum can move."""
    old, new = term(shape, 3, 1), term(shape, 5, 2)
    merged = (weight_of(shape, dtype).double() + delta(old)).to(dtype)
    found = merged.clone()
    taken, put = (ready(Update("w", shape, [one])) for one in (old, new))
    swap_all([Change(found, put, taken)])
    middle = (merged.double() - delta(old)).to(dtype)
    right = (middle.double() + delta(new)).to(dtype)
    size = merged.double().abs() + delta(old).abs() + delta(new).abs()
    assert ((found.double() - right.double()).abs() <= 3 * torch.finfo(dtype).eps * size).all()
    # Where float32 tells the neighbours of 16 bits apart, hardly any element falls on the other side.
    assert float((found != right).double().mean()) < 1e-2 or dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", TYPES[:3])
def test_a_device_without_float64_sums_in_float32_and_dora_on_the_processor(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Metal is; what is within a rounding in float32 is right."""
    shape = (33, 64)
    monkeypatch.setattr(in_place, "has_float64", lambda device: False)
    kept, old, new = weight_of(shape, dtype), term(shape, 3, 1), term(shape, 5, 2)
    dora = old._replace(magnitude=1.0 + torch.rand(33, generator=torch.Generator().manual_seed(3)))
    taken, put, other = (ready(Update("w", shape, [one])) for one in (old, new, dora))
    assert taken.single_A is not None
    assert other.single_A is None
    eps = max(torch.finfo(dtype).eps, 2.0**-22)
    wrong = [step for step in (taken, put) if step.update.plain_factors[0].dtype != torch.float64]
    assert not wrong
    for step, right in (
        (put, kept.double() + delta(new)),
        (other, Update("w", shape, [dora]).moved(kept, 0)),
    ):
        found = torch.zeros_like(kept)
        merge_all([Change(found, step, kept=kept)])
        assert torch.allclose(found.double(), right, rtol=eps, atol=8 * eps)
    found = kept.clone()
    swap_all([Change(found, put, taken)])
    assert torch.allclose(found.double(), kept.double() - delta(old) + delta(new), rtol=4 * eps, atol=8 * eps)


def test_the_same_bytes_whatever_the_threads_and_the_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """One lane or three, alone or among others: law 8."""
    shape = (257, 2048)
    old, new = term(shape, 16, 1), term(shape, 16, 2)
    taken, put = (ready(Update("w", shape, [one])) for one in (old, new))
    start = weight_of(shape, torch.bfloat16)
    found = []
    for lanes, company in ((1, 0), (3, 0), (2, 3)):
        monkeypatch.setattr(in_place, "worker_count", lambda lanes=lanes: lanes)
        weights = [start.clone() for _ in range(company + 1)]
        swap_all([Change(weight, put, taken) for weight in weights])
        found += weights
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        swap_all([Change(again := start.clone(), put, taken)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, again) for one in found)


def test_swapping_back_and_forth_does_not_add_up() -> None:
    """Updates that stay within the binade of W: after a hundred swaps as close as after two."""
    shape = (64, 512)
    generator = torch.Generator().manual_seed(3)
    kept = (1.25 + 0.5 * torch.rand(shape, generator=generator)).to(torch.bfloat16)
    ones = [term(shape, 4, seed)._replace(scaling=0.02) for seed in (1, 2)]
    puts = [ready(Update("w", shape, [one])) for one in ones]
    weight = kept.clone()
    merge_all([Change(weight, puts[0])])
    rights = [weight.clone(), kept.clone()]
    merge_all([Change(rights[1], puts[1])])
    differing = []
    for number in range(100):
        here, there = number % 2, 1 - number % 2
        swap_all([Change(weight, puts[there], puts[here])])
        differing.append(int((weight != rights[there]).sum()))
    assert differing[-1] <= differing[1] + kept.numel() // 1000


def test_the_middle_rounding_keeps_a_swap_near() -> None:
    """Most weights are those of a merge into the base; in one rounding of the sum every fourth is not."""
    shape = (256, 512)
    kept = (0.02 * weight_of(shape, torch.float64)).to(torch.bfloat16)
    one, two = (term(shape, 8, seed)._replace(scaling=0.02) for seed in (1, 2))
    old, new = (ready(Update("w", shape, [each])) for each in (one, two))
    weight, wanted, at_once = (torch.empty_like(kept) for _ in range(3))
    merge_all([Change(weight, old, kept=kept), Change(wanted, new, kept=kept)])
    both = ready(Update("w", shape, [one._replace(strength=-1.0), two]))
    merge_all([Change(at_once, both, kept=weight)])
    back = weight.clone()
    swap_all([Change(back, None, old)])
    expected = doubt_about(weight, back).expected_fraction
    swap_all([Change(weight, new, old)])
    assert expected is not None
    assert (weight != wanted).double().mean() <= 1.1 * expected < 0.1
    assert (at_once != wanted).double().mean() > 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_thousand_swaps(dtype: torch.dtype) -> None:
    """From a kept copy the last is, to the bit, a merge into the base; without one the error is there and grows."""
    shape = (24, 32)
    kept = (0.1 * weight_of(shape, torch.float64)).to(dtype)
    steps = [ready(Update("w", shape, [term(shape, 4, seed)._replace(scaling=0.3)])) for seed in range(10)]
    exact, fast, wanted = kept.clone(), kept.clone(), kept.clone()
    merge_all([Change(place, steps[0]) for place in (exact, fast)])
    drifts = []
    for number in range(1000):
        old, new = steps[number % 10], steps[(number + 1) % 10]
        merge_all([Change(exact, new, kept=kept)])
        swap_all([Change(fast, new, old)])
        if number in (0, 99, 999):
            merge_all([Change(wanted, new, kept=kept)])
            assert torch.equal(exact, wanted)
            drifts.append(float((fast.double() - wanted.double()).norm() / wanted.double().norm()))
    eps = torch.finfo(dtype).eps
    assert 0 < drifts[0] <= eps
    assert drifts[0] < drifts[1] <= 100 * eps
    assert drifts[2] <= 1000 * eps


@pytest.mark.parametrize("is_by_column", [False, True])
def test_dora_is_merged_as_everywhere(is_by_column: bool) -> None:
    """The bits of :func:`apply_update`, also when another weight was looked at before."""
    shape = (40, 24)
    one = term(shape, 4, 1)
    magnitude = torch.rand(shape[1 if is_by_column else 0], generator=torch.Generator().manual_seed(1)) + 1.0
    update = Update("w", shape, [one._replace(magnitude=magnitude, is_by_column=is_by_column)])
    step = ready(update)
    for seed in (1, 2):
        kept = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
        found, right = torch.empty_like(kept), kept.clone()
        merge_all([Change(found, step, kept=kept)])
        apply_update(right, Update("w", shape, [one._replace(magnitude=magnitude, is_by_column=is_by_column)]))
        assert torch.equal(found, right)


BITS = st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1)), min_size=1, max_size=50)


@given(BITS, st.sampled_from([torch.bfloat16, torch.float16]))
def test_a_kept_residual_restores_every_bit(bits: list[tuple[int, int]], dtype: torch.dtype) -> None:
    """Of any two patterns, NaN, infinity, −0 and subnormal numbers among them, as the one in files does."""
    codes = np.array(bits, dtype=np.uint16).astype(np.int16)
    before, predicted = (torch.from_numpy(codes[:, side].copy()).view(dtype) for side in (0, 1))
    residual = kept_residual(before, predicted)
    found = restore_kept(predicted.clone(), residual)
    assert torch.equal(found.view(torch.int16), before.view(torch.int16))
    as_file = restore(predicted.clone(), residual_of(before, predicted))
    assert torch.equal(found.view(torch.int16), as_file.view(torch.int16))
    assert residual.nbytes == 6 * len(residual.values)
