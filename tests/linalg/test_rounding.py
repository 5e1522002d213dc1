"""One rounding into a stored type."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.errors import NumericalError
from lora_lab.linalg.nonfinite import require_finite
from lora_lab.linalg.rounding import block_generator, rounded

NARROW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", NARROW)
def test_nearest_is_the_systems_own(dtype: torch.dtype) -> None:
    """Ties to even, as IEEE 754 has it: halfway values go to the even neighbour."""
    one = torch.ones(1, dtype=dtype)
    step = float(torch.finfo(dtype).eps)
    halves = torch.tensor([1 + step / 2, 1 + 3 * step / 2])
    assert rounded(halves, dtype).tolist() == [1.0, 1 + 2 * step]
    assert rounded(one.float(), dtype).equal(one)


@pytest.mark.parametrize("dtype", NARROW)
@given(value=st.floats(-1000, 1000, width=32), seed=st.integers(0, 2**40))
def test_stochastic_goes_to_a_neighbour(dtype: torch.dtype, value: float, seed: int) -> None:
    """The result is one of the two stored numbers around the value; a stored number stays itself."""
    values = torch.full((16,), value)
    results = rounded(values, dtype, generator=block_generator(seed, "w", 0))
    nearest = values.to(dtype)
    around = {float(torch.nextafter(nearest, torch.full_like(nearest, sign * math.inf))[0]) for sign in (-1.0, 1.0)} | {
        float(nearest[0])
    }
    assert set(results.float().tolist()) <= around
    gap = max(around) - min(around)
    assert all(abs(result - value) < gap for result in results.float().tolist() if value)
    stored = nearest.float()
    assert rounded(stored, dtype, generator=block_generator(seed, "w", 1)).equal(nearest)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_stochastic_keeps_the_mean(dtype: torch.dtype, part: float) -> None:
    """E[result] = value, within five standard errors of 100,000 draws."""
    step = float(torch.finfo(dtype).eps)
    values = torch.full((100_000,), 1 + part * step, dtype=torch.float64)
    results = rounded(values, dtype, generator=block_generator(0, "w", 0)).double()
    error = step * math.sqrt(part * (1 - part) / len(values))
    assert abs(float(results.mean()) - (1 + part * step)) < 5 * error


def test_draws_depend_on_seed_name_and_block_alone() -> None:
    """Each of the three makes other draws; the same three make the same."""
    draws = {
        torch.rand(4, generator=block_generator(seed, name, block)).numpy().tobytes()
        for seed in (0, 1)
        for name in ("a", "b")
        for block in (0, 1)
    }
    assert len(draws) == 8
    first, second = (torch.rand(4, generator=block_generator(5, "a", 2)) for _ in range(2))
    assert first.equal(second)


def test_overflow_is_told_from_damage() -> None:
    """A sum too large for its type is our fault to tell; NaN in the base is the base's."""
    with pytest.raises(NumericalError, match=r"exceeds the range of torch\.float16 at 1 of 2"):
        require_finite(torch.tensor([1.0, 1e6]).half(), torch.tensor([1.0, 2.0]).half(), "w")
    broken = torch.tensor([math.nan, 1.0])
    with pytest.raises(NumericalError, match="The base's 'w' holds NaN"):
        require_finite(broken, broken, "w")
