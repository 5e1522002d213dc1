"""W + Σ wᵢ(W′ᵢ − W) against dense float64 references, and the bits that must not move."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lab.errors import CompatibilityError
from lora_lab.linalg import updates
from lora_lab.linalg.rounding import Rounding
from lora_lab.linalg.storing import stored_rows
from lora_lab.linalg.updates import Dense, Term, Update, apply_update

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def term(shape: tuple[int, int], rank: int = 3, *, seed: int = 1, **more: object) -> Term:
    return Term(random(rank, shape[1], seed=seed), random(shape[0], rank, seed=seed + 1), 0.5, **more)  # type: ignore[arg-type]


def dense_delta(one: Term) -> np.ndarray:
    return one.scaling * one.lora_B.double().numpy() @ one.lora_A.double().numpy()


def whole(update: Update, weight: torch.Tensor) -> torch.Tensor:
    """The sum of all blocks, dense."""
    if update.needs_columns:
        for _, first, end in update.blocks():
            update.look(weight[first:end], first)
    return torch.cat([update.delta(weight[first:end], first) for _, first, end in update.blocks()])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, the last of them short, even for small weights."""
    monkeypatch.setattr(updates, "BLOCK_ELEMENTS", 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_of_adapters(dtype: torch.dtype) -> None:
    """Half a unit of the stored type away from the exact sum, and what float64, or float32 on the way, may be off."""
    weight = random(37, 10, dtype=dtype)
    terms = [term((37, 10), 3, seed=1, strength=0.7), term((37, 10), 5, seed=7, strength=-1.25)]
    exact = weight.double().numpy() + 0.7 * dense_delta(terms[0]) - 1.25 * dense_delta(terms[1])
    changed = weight.clone()
    fidelity = apply_update(changed, Update("w", (37, 10), terms))
    on_the_way = torch.finfo(torch.float32).eps if dtype.itemsize == 2 else 0.0
    size = np.abs(weight.double().numpy()) + sum(
        abs(one.strength * one.scaling) * np.abs(one.lora_B.numpy()) @ np.abs(one.lora_A.numpy()) for one in terms
    )
    bound = (torch.finfo(dtype).eps / 2 + on_the_way) * np.abs(exact) + 16 * torch.finfo(torch.float64).eps * size
    assert (np.abs(changed.double().numpy() - exact) <= bound).all()
    assert fidelity.elements == 370
    assert fidelity.changed == int((changed != weight).sum())


def test_order_does_not_matter() -> None:
    """Law 4: the sum is of differences from the base, so that adapters may come in any order."""
    weight = random(20, 9)
    parts = [term((20, 9), seed=1, magnitude=random(20, seed=9).abs()), term((20, 9), seed=3), term((20, 9), seed=5)]
    there = whole(Update("w", (20, 9), parts), weight)
    back = whole(Update("w", (20, 9), parts[::-1]), weight)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-13)


@pytest.mark.parametrize("is_by_column", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_dora(strength: float, is_by_column: bool) -> None:
    """W′ = m ⊙ (W + ΔW)/‖W + ΔW‖, of which `strength` times the difference from W is added."""
    weight = random(30, 7)
    magnitude = random(7 if is_by_column else 30, seed=4).abs()
    one = term((30, 7), strength=strength, magnitude=magnitude, is_by_column=is_by_column)
    moved = weight.numpy() + dense_delta(one)
    axis = 0 if is_by_column else 1
    norm = np.linalg.norm(moved, axis=axis, keepdims=True)
    target = moved / norm * (magnitude.numpy()[None, :] if is_by_column else magnitude.numpy()[:, None])
    expected = strength * (target - weight.numpy())
    np.testing.assert_allclose(whole(Update("w", (30, 7), [one]), weight).numpy(), expected, rtol=0, atol=1e-12)


def test_a_row_of_zeros_has_no_direction() -> None:
    """DoRA's direction of a zero row is undefined: the row stays zero, never NaN."""
    one = Term(torch.zeros(1, 4), torch.zeros(3, 1), 1.0, magnitude=torch.ones(3))
    assert whole(Update("w", (3, 4), [one]), torch.zeros(3, 4)).equal(torch.zeros(3, 4, dtype=torch.float64))


def test_dense_parts() -> None:
    """A whole weight takes the place of the base's by its strength; a bias is added; rows change alone."""
    weight = random(20, 6)
    other = random(20, 6, seed=2)
    rows = torch.tensor([0, 11, 19])
    update = Update(
        "w",
        (20, 6),
        [],
        [Dense(other, 0.25), Dense(other, 2.0, is_target=False), Dense(other[rows], 1.0, rows=rows)],
    )
    expected = 0.25 * (other - weight) + 2.0 * other
    expected[rows] += other[rows] - weight[rows]
    torch.testing.assert_close(whole(update, weight), expected, rtol=0, atol=1e-13)


def test_fidelity_is_that_of_the_stored_numbers() -> None:
    """Norms, cosine and arriving strength against the dense matrices; a small update of bf16 arrives in part."""
    weight = (0.02 * random(64, 64)).to(torch.bfloat16)
    one = Term(random(4, 64, seed=1) * 0.001, random(64, 4, seed=2) * 0.005, 1.0)
    changed = weight.clone()
    fidelity = apply_update(changed, Update("w", (64, 64), [one]))
    real = (changed.double() - weight.double()).numpy()
    intended = dense_delta(one)
    assert fidelity.changed_fraction == pytest.approx(np.count_nonzero(real) / real.size)
    assert fidelity.realised_square == pytest.approx((real**2).sum(), rel=1e-5)
    assert fidelity.intended_square == pytest.approx((intended**2).sum(), rel=1e-5)
    cosine = (real * intended).sum() / np.linalg.norm(real) / np.linalg.norm(intended)
    assert fidelity.realised_cosine == pytest.approx(cosine, rel=1e-4)
    assert fidelity.effective_strength == pytest.approx((real * intended).sum() / (intended**2).sum(), rel=1e-4)
    assert 0 < fidelity.changed_fraction < 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_the_same_where_nothing_is_measured(dtype: torch.dtype) -> None:
    """In place and beside, with figures and without: one arithmetic."""
    weight = random(70, 40, dtype=dtype)
    update = Update("w", (70, 40), [term((70, 40))])
    expected = torch.cat(
        [
            stored_rows(weight[first:end], update.moved(weight[first:end], first), dtype)[0]
            for _, first, end in update.blocks()
        ]
    )
    for is_measured in (True, False):
        changed = weight.clone()
        fidelity = apply_update(changed, update, is_measured=is_measured)
        assert changed.equal(expected)
        assert fidelity.elements == (changed.numel() if is_measured else 0)
        assert fidelity.changed == (int((changed != weight).sum()) if is_measured else 0)


def test_a_zero_update_is_undefined_not_nan() -> None:
    """Nothing intended, nothing realised: no cosine and no strength."""
    _, fidelity = stored_rows(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64), torch.float32)
    assert (fidelity.changed_fraction, fidelity.realised_cosine, fidelity.effective_strength) == (0.0, None, None)


@given(rows=st.integers(1, 40), columns=st.integers(1, 30), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_block_size_is_not_in_the_bits(rows: int, columns: int, seed: int) -> None:
    """The same numbers from blocks of one row and from a single one: the product is far finer than what is stored."""
    weight = random(rows, columns, seed=seed, dtype=torch.bfloat16)
    results = []
    for elements in (1, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(updates, "BLOCK_ELEMENTS", elements)
            changed = weight.clone()
            apply_update(changed, Update("w", (rows, columns), [term((rows, columns), seed=seed + 1)]))
            results.append(changed)
    assert results[0].equal(results[1])


def test_shapes_are_checked() -> None:
    """Factors of another weight are refused."""
    with pytest.raises(CompatibilityError, match=r"ΔW of 'w' is \(3, 4\), expected the weight's \(4, 3\)"):
        Update("w", (4, 3), [term((3, 4))])


@pytest.mark.parametrize("rounding", list(Rounding))
def test_threads_are_not_in_the_bits(rounding: Rounding) -> None:
    """One thread and several give the same bytes; so does the same seed again, and another seed does not."""
    program = textwrap.dedent(f"""
        import hashlib, torch
        from lora_lab.linalg.rounding import Rounding
        from lora_lab.linalg.updates import Term, Update, apply_update
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(2000, 300, generator=generator).bfloat16()
        term = Term(torch.randn(16, 300, generator=generator), torch.randn(2000, 16, generator=generator) * 1e-3, 0.5)
        apply_update(weight, Update("w", (2000, 300), [term]), rounding=Rounding("{rounding}"), seed=3)
        print(hashlib.sha256(weight.view(torch.uint8).numpy().tobytes()).hexdigest())
    """)
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "5")
    }
    assert len(digests) == 1
