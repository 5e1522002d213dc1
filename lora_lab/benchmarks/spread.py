"""What repeated runs say: the middle, the slow end, and how sure the middle is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.figures import bars

if TYPE_CHECKING:
    from collections.abc import Sequence

_DOUBT: Final = 0.025  # on either side of the interval
SURE: Final = 6  # samples, of which the least and the greatest hold the median with 1 − 2/2⁶ = 97 %; of five with 94 %


@dataclass(frozen=True, slots=True)
class Spread:
    """Order statistics of samples, in the unit of the samples.

    low, high : ends of an interval that holds the true median with a probability of at least 95 %, whatever the
        distribution; with fewer than six samples the smallest and the largest, which is less sure
    quartile_range : x(¾) − x(¼)
    """

    count: int
    p50: float
    p95: float
    low: float
    high: float
    quartile_range: float

    @property
    def noise(self) -> float:
        """Quartile range over the median; 0 where all runs took the same."""
        return self.quartile_range / self.p50 if self.p50 else 0.0

    def to_row(self) -> dict[str, Any]:
        """Cells for :data:`~lora_lab.benchmarks.columns.SPREAD`."""
        return {
            "p50_seconds": self.p50,
            "p95_seconds": self.p95,
            "low_seconds": self.low,
            "high_seconds": self.high,
            "noise": self.noise,
            "runs": self.count,
        }


def spread_of(samples: Sequence[float]) -> Spread:
    """Summarise `samples`, of which there is at least one.

    Examples
    --------
    >>> spread = spread_of([5.0, 1.0, 2.0, 4.0, 3.0])
    >>> spread.p50, spread.p95, spread.low, spread.high
    (3.0, 4.8, 1.0, 5.0)
    """
    ordered = sorted(samples)
    below = _certain_rank(len(ordered))
    return Spread(
        count=len(ordered),
        p50=quantile(ordered, 0.5),
        p95=quantile(ordered, 0.95),
        low=ordered[below],
        high=ordered[-1 - below],
        quartile_range=quantile(ordered, 0.75) - quantile(ordered, 0.25),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Value below which `share` of the ascending samples lie, linear between neighbours.

    Source: Hyndman & Fan, The American Statistician 50 (1996), definition 7.
    """
    place = share * (len(ordered) - 1)
    before = math.floor(place)
    after = min(before + 1, len(ordered) - 1)
    return ordered[before] + (place - before) * (ordered[after] - ordered[before])


def histogram(samples: Sequence[float], bins: int) -> str:
    """Draw how often which time was taken: `bins` bars of equal width from the least sample to the greatest.

    Examples
    --------
    >>> histogram([1.0, 1.1, 1.2, 3.0], 4), histogram([2.0, 2.0], 3), histogram([], 4)
    ('█▁▁▃', '█', '')
    """
    if not samples:
        return ""
    low, high = min(samples), max(samples)
    if high == low:
        return bars([1.0])
    counts = [0] * bins
    for sample in samples:
        counts[min(bins - 1, int((sample - low) / (high - low) * bins))] += 1
    return bars([float(count) for count in counts])


def _certain_rank(count: int) -> int:
    """Largest k, from 0, so that the true median lies below x₍k₎ with a probability of at most 2.5 %.

    As many of n samples lie below the median as heads fall in n throws: P(X ≤ k) = Σ_{i≤k} C(n, i)/2ⁿ.
    """
    rank, below = 0, 0.5**count
    while rank + 1 <= count // 2:
        below += math.comb(count, rank + 1) * 0.5**count
        if below > _DOUBT:
            break
        rank += 1
    return rank
