"""Order statistics against numpy's and scipy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from lora_lab.benchmarks.spread import spread_of

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)


@given(TIMES)
def test_quantiles_are_numpys(samples: list[float]) -> None:
    """p50, p95 and the quartile range as numpy's linear quantiles."""
    spread = spread_of(samples)
    p25, p50, p75, p95 = np.quantile(samples, [0.25, 0.5, 0.75, 0.95])
    assert spread.p50 == pytest.approx(p50)
    assert spread.p95 == pytest.approx(p95)
    assert spread.quartile_range == pytest.approx(p75 - p25, abs=1e-9 * p75)
    assert spread.low <= spread.p50 <= spread.high
    assert spread.count == len(samples)


@pytest.mark.parametrize("count", [*range(6, 40), 101])
def test_interval_holds_the_median_and_is_the_narrowest_that_does(count: int) -> None:
    """x₍ₖ₎ … x₍ₙ₊₁₋ₖ₎ holds it unless fewer than k samples lie on one side of it; k + 1 would be too few."""
    spread = spread_of([float(number) for number in range(count)])
    k = int(spread.low) + 1
    assert spread.high == count - k
    held = 1.0 - 2.0 * binom.cdf(k - 1, count, 0.5)
    assert held >= 0.95
    assert 1.0 - 2.0 * binom.cdf(k, count, 0.5) < 0.95


def test_noise_of_equal_runs_is_none() -> None:
    """Nothing spreads, and a zero median divides nothing."""
    assert spread_of([2.0, 2.0, 2.0]).noise == 0.0
    assert spread_of([0.0]).noise == 0.0
