"""What two random factors would make: the singular values of B·A for Gaussian B and A.

Let B be out×r and A r×in, of independent N(0, 1) entries. The non-zero singular values of B·A have a law that depends
only on the three numbers out, r and in, not on which of them is the inner one (weak commutation: Ipsen and Kieburg,
arXiv 1310.4154). With N ≤ M₁ ≤ M₂ these numbers in order, they are those of an N×N core R₁R₂ᵀ whose R's are the
triangular factors of Gaussian M₁×N and M₂×N matrices: by Bartlett's decomposition (Proc. R. Soc. Edinburgh 53, 1933)
independent entries, χ with M − i degrees of freedom at place i of the diagonal and N(0, 1) above it. A draw costs O(N³)
whatever the size of ΔW.

As the three grow, λ = σ²/(M₁M₂) follows the free product of two Marchenko–Pastur laws of ratios c₁ = N/M₁, c₂ = N/M₂.
The S-transform of each is 1/(1 + c·z), those of a free product multiply, and so z(λ) = λ·G(λ) − 1, with G the law's
Stieltjes transform, solves

    λ·z = (1 + z)(1 + c₁z)(1 + c₂z),        density(λ) = |Im z|/(πλ),

a cubic (Müller, IEEE Trans. Inf. Theory 48 (2002); Burda, Janik and Waclaw, arXiv 0912.3422). For N ≪ M₁ it shrinks
to a semicircle around 1 of half width 2√(c₁ + c₂): random factors of low rank make almost equal singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy.optimize import brentq

from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_GRID: Final = 2048
# Float64 elements of the cores that are decomposed at once: 32 MiB.
_CHUNK_ELEMENTS: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class RandomSpectrum:
    """Ordered singular values of the product of two standard Gaussian factors.

    expected : (N,) descending, by the closed form
    upper : (N,) quantile of the k-th largest, over the draws
    """

    expected: tuple[float, ...]
    upper: tuple[float, ...]


@lru_cache(maxsize=256)
def random_spectrum(outputs: int, rank: int, inputs: int, *, draws: int, quantile: float, seed: int) -> RandomSpectrum:
    """Give the law of the ordered singular values for factors of these sizes and entries of variance 1.

    Parameters
    ----------
    outputs, rank, inputs : sizes of the factors (outputs, rank) and (rank, inputs)
    draws : how many random cores the quantiles are taken over
    quantile : in (0, 1)
    seed : with the three sizes it determines the draws, whatever else is computed and in whatever order

    Notes
    -----
    O(draws·N³) time with N = min(outputs, rank, inputs), bounded memory. The closed form's error against the mean is
    about 1/N of the spectrum's width.
    """
    sizes = sorted((outputs, rank, inputs))
    values = sample(sizes, draws=draws, seed=seed)  # (draws, N)
    upper = np.quantile(values, quantile, axis=0)
    return RandomSpectrum(tuple(expected(sizes).tolist()), tuple(upper.tolist()))


def sample(sizes: Sequence[int], *, draws: int, seed: int) -> NDArray[np.float64]:
    """Draw ordered singular values of products of standard Gaussian factors.

    Parameters
    ----------
    sizes : (N, M₁, M₂), ascending
    draws : how many
    seed : non-negative

    Returns
    -------
    (draws, N), each row descending
    """
    count = sizes[0]
    generator = np.random.default_rng([seed, *sizes])
    chunk = max(1, _CHUNK_ELEMENTS // max(1, count * count))
    drawn = []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        first, second = (_bartlett(generator, size, rows, count) for rows in sizes[1:])
        cores = torch.from_numpy(first @ second.transpose(0, 2, 1))
        with one_thread():
            drawn.append(torch.linalg.svdvals(cores).numpy())
    return np.concatenate(drawn)


def expected(sizes: Sequence[int]) -> NDArray[np.float64]:
    """Place the N singular values at the quantiles (k − ½)/N of the limiting law.

    Parameters
    ----------
    sizes : (N, M₁, M₂), ascending

    Returns
    -------
    (N,) descending
    """
    count, middle, largest = sizes
    eigenvalues, shares = law(count / middle, count / largest)
    places = 1.0 - (np.arange(count) + 0.5) / count
    return np.sqrt(np.interp(places, shares, eigenvalues) * middle * largest)


def law(c_1: float, c_2: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distribution function of the free product of two Marchenko–Pastur laws.

    Parameters
    ----------
    c_1, c_2 : ratios in (0, 1]

    Returns
    -------
    (eigenvalues, shares): ascending grid over the support, and the share of the law up to each point
    """
    low, high = edges(c_1, c_2)
    theta = np.linspace(0.0, math.pi, _GRID + 1)
    middle = 0.5 * (theta[1:] + theta[:-1])
    half = 0.5 * (high - low)

    def eigenvalue(angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return low + half * (1.0 - np.cos(angle))

    # dλ = half·sin θ dθ: the square-root edges become smooth, the midpoint rule converges fast.
    mass = _density(eigenvalue(middle), c_1, c_2) * half * np.sin(middle)
    shares = np.concatenate([[0.0], np.cumsum(mass)])
    return eigenvalue(theta), shares / shares[-1]


def edges(c_1: float, c_2: float) -> tuple[float, float]:
    """Ends of the law's support: where λ(z) = (1 + z)(1 + c₁z)(1 + c₂z)/z is stationary.

    dλ/dz = 0 is 2e₃z³ + e₂z² = 1 with e₂ = c₁ + c₂ + c₁c₂ and e₃ = c₁c₂. Its positive root gives the upper end, the
    negative one next to −1 the lower end.

    Examples
    --------
    >>> low, high = edges(1e-4, 1e-4)
    >>> round((high - low) / 4, 3) == round((2e-4) ** 0.5, 3)  # the semicircle's half width is 2√(c₁ + c₂)
    True
    """
    e_2, e_3 = c_1 + c_2 + c_1 * c_2, c_1 * c_2

    def slope(z: float) -> float:
        return 2.0 * e_3 * z**3 + e_2 * z**2 - 1.0

    def at(z: float) -> float:
        return (1.0 + z) * (1.0 + c_1 * z) * (1.0 + c_2 * z) / z

    high = at(brentq(slope, 0.0, 1.0 / math.sqrt(e_2), xtol=1e-14))
    low = at(brentq(slope, -e_2 / (3.0 * e_3), -1.0, xtol=1e-14))
    return max(0.0, float(low)), float(high)


def _density(eigenvalues: NDArray[np.float64], c_1: float, c_2: float) -> NDArray[np.float64]:
    """|Im z|/(πλ), from u = 1/z, a root of u³ + (1 + c₁ + c₂ − λ)u² + e₂u + e₃ = 0."""
    companion: NDArray[Any] = np.zeros((len(eigenvalues), 3, 3))
    companion[:, 0, 0] = eigenvalues - (1.0 + c_1 + c_2)
    companion[:, 0, 1] = -(c_1 + c_2 + c_1 * c_2)
    companion[:, 0, 2] = -c_1 * c_2
    companion[:, 1, 0] = companion[:, 2, 1] = 1.0
    roots = np.linalg.eigvals(companion)
    largest = np.take_along_axis(roots, np.abs(roots.imag).argmax(axis=1)[:, None], axis=1)[:, 0]
    density: NDArray[np.float64] = np.abs(largest.imag) / (np.abs(largest) ** 2 * math.pi * eigenvalues)
    return density


def _bartlett(generator: np.random.Generator, draws: int, rows: int, columns: int) -> NDArray[np.float64]:
    """Triangular factors of Gaussian rows×columns matrices, columns ≤ rows: (draws, columns, columns)."""
    factors = np.triu(generator.standard_normal((draws, columns, columns)), k=1)
    place = np.arange(columns)
    factors[:, place, place] = np.sqrt(generator.chisquare(rows - place, size=(draws, columns)))
    return factors
