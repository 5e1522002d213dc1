"""Where the singular values of pure noise lie: the Marchenko–Pastur law.

Let X be M×N, N ≤ M, of independent entries of variance τ², and β = N/M. As both grow, the eigenvalues x of
XᵀX/(M·τ²) follow the density √((b − x)(x − a))/(2πβx) on [a, b], a, b = (1 ∓ √β)². The largest singular value of noise
is then near τ(√M + √N); what lies beyond is not noise.

Sources: Marchenko and Pastur, Math. USSR Sbornik 1 (1967); the noise level from the median: Gavish and Donoho, IEEE
Trans. Inf. Theory 60 (2014), arXiv 1305.5870; the largest of finitely many: Johnstone, Ann. Stat. 29 (2001), with the
gamma approximation of the Tracy–Widom law by Chiani, J. Multivariate Anal. 129 (2014), arXiv 1209.3394.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import gamma

if TYPE_CHECKING:
    from collections.abc import Sequence

# Tracy–Widom law of order 1 ≈ Gamma(shape, scale) − shift; its distribution function is off by less than 1e-3.
_TW_SHAPE: Final = 46.446
_TW_SCALE: Final = 0.186054
_TW_SHIFT: Final = 9.84801


def cdf(x: float, beta: float) -> float:
    """Share of the law's eigenvalues up to `x`.

    With x = 1 + β − 2√β·cos θ the density becomes (2/π)·sin²θ/x dθ, smooth on [0, π].

    Parameters
    ----------
    x : eigenvalue of XᵀX/(M·τ²)
    beta : N/M in (0, 1]

    Examples
    --------
    >>> cdf(0.0, 0.5), round(cdf(3.0, 0.5), 12)
    (0.0, 1.0)
    """
    cosine = (1.0 + beta - x) / (2.0 * math.sqrt(beta))
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if angle == 0.0:
        return 0.0

    def density(theta: float) -> float:
        # x = 1 + β − 2√β·cos θ, without cancellation
        below = (1.0 - math.sqrt(beta)) ** 2 + 4.0 * math.sqrt(beta) * math.sin(0.5 * theta) ** 2
        # At β = 1 the law reaches x = 0, where sin²θ/x tends to (1 + cos θ)/2 = 1.
        return (2.0 / math.pi) * (math.sin(theta) ** 2 / below if below > 0.0 else 1.0)

    share, _ = quad(density, 0.0, angle, epsabs=1e-12)
    return min(1.0, float(share))


@lru_cache(maxsize=256)
def median(beta: float) -> float:
    """μ_β, the median of the law.

    Examples
    --------
    >>> round((4 / 3**0.5) / median(1.0) ** 0.5, 3)  # Gavish and Donoho's ω(1)
    2.858
    """
    low, high = (1.0 - math.sqrt(beta)) ** 2, (1.0 + math.sqrt(beta)) ** 2
    return float(brentq(lambda x: cdf(x, beta) - 0.5, low, high, xtol=1e-13))


def noise_level(singular_values: Sequence[float], shape: tuple[int, int]) -> float | None:
    """Estimate τ, the standard deviation of the noise in each entry, from the bulk: τ̂ = median(σ)/√(M·μ_β).

    A few directions that were learnt move the median of many values little. When half the values or more are zero, as
    those of any ΔW = B·A of rank below min(out, in)/2, there is no bulk to estimate from: the level is undefined.

    Parameters
    ----------
    singular_values : all N = min(out, in) of them, descending; those up to 2√(N·ε)·σ₁, what a Gram matrix in float64
        cannot tell from zero, count as zero
    shape : (out, in)

    Returns
    -------
    standard deviation of an entry, in the entries' unit; None when undefined
    """
    count = len(singular_values)
    if not count:
        return None
    if singular_values[count // 2] <= 2.0 * math.sqrt(count * sys.float_info.epsilon) * singular_values[0]:
        return None
    middle = 0.5 * (singular_values[(count - 1) // 2] + singular_values[count // 2])
    return middle / math.sqrt(max(shape) * median(min(shape) / max(shape)))


def edge(noise: float, shape: tuple[int, int]) -> float:
    """Largest singular value of infinitely much noise: τ(√M + √N).

    Examples
    --------
    >>> edge(2.0, (9, 16))
    14.0
    """
    return noise * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


def threshold(noise: float, shape: tuple[int, int], quantile: float) -> float:
    """Singular value that the largest one of Gaussian noise stays below with probability `quantile`.

    σ₁² ≈ τ²(μ + s·TW₁) with μ = (√(M−1) + √N)², s = √μ·(1/√(M−1) + 1/√N)^{1/3}, and TW₁ the Tracy–Widom law of order 1.

    Parameters
    ----------
    noise : τ
    shape : (out, in); a single row has no law and gets the edge
    quantile : in (0, 1)
    """
    larger, smaller = max(shape), min(shape)
    if larger < 2 or smaller < 2:
        return edge(noise, shape)
    rows, columns = math.sqrt(larger - 1), math.sqrt(smaller)
    centre = (rows + columns) ** 2
    scale = (rows + columns) * (1.0 / rows + 1.0 / columns) ** (1.0 / 3.0)
    deviate = float(gamma.ppf(quantile, _TW_SHAPE)) * _TW_SCALE - _TW_SHIFT
    return noise * math.sqrt(centre + scale * deviate)
