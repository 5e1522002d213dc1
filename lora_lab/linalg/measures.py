"""What follows from singular values alone: norms, and the many meanings of "rank".

Every function takes singular values in descending order, none negative, and gives a plain number; of a zero matrix a
ratio is undefined and None. Sums are correctly rounded (``math.fsum``), values are divided by the largest before they
are squared: no spectrum that float64 can hold overflows, and multiplying it by a power of two changes no rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from lora_lab.domain.dtypes import DType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENERGY_SHARES: Final = (0.5, 0.9, 0.95, 0.99)
ZERO_REASON: Final = "ΔW is zero: its spectrum is zero, ratios of it are undefined"

# Spacing of the numbers just above 1.
_EPSILON: Final[dict[DType, float]] = {
    DType.F64: 2.0**-52,
    DType.F32: 2.0**-23,
    DType.F16: 2.0**-10,
    DType.BF16: 2.0**-7,
    DType.F8_E4M3: 2.0**-3,
    DType.F8_E4M3FNUZ: 2.0**-3,
    DType.F8_E5M2: 2.0**-2,
    DType.F8_E5M2FNUZ: 2.0**-2,
}
# A share counts as reached this close below it: round-off alone must not decide a tie.
_TIE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Measures:
    """Everything this page defines, of one spectrum; None where ΔW is zero."""

    frobenius_norm: float
    spectral_norm: float
    nuclear_norm: float
    stable_rank: float | None
    effective_rank: float | None
    participation_ratio: float | None
    numerical_rank: int
    energy_effective_rank: float | None
    nuclear_norm_ratio: float | None
    energy_rank: Mapping[str, int | None]


def measure(singular_values: Sequence[float], *, tolerance: float) -> Measures:
    """Compute every measure of one spectrum.

    Parameters
    ----------
    singular_values : (k,), descending
    tolerance : of the numerical rank, relative to the largest; :func:`rank_tolerance` gives it

    Examples
    --------
    >>> measures = measure([2.0, 2.0, 0.0], tolerance=1e-6)
    >>> measures.stable_rank, measures.numerical_rank, measures.energy_rank["0.9"]
    (2.0, 2, 2)
    >>> measure([0.0], tolerance=1e-6).stable_rank is None
    True
    """
    return Measures(
        frobenius_norm=frobenius_norm(singular_values),
        spectral_norm=spectral_norm(singular_values),
        nuclear_norm=nuclear_norm(singular_values),
        stable_rank=stable_rank(singular_values),
        effective_rank=effective_rank(singular_values),
        participation_ratio=participation_ratio(singular_values),
        numerical_rank=numerical_rank(singular_values, tolerance=tolerance),
        energy_effective_rank=energy_effective_rank(singular_values),
        nuclear_norm_ratio=nuclear_norm_ratio(singular_values),
        energy_rank=energy_ranks(singular_values),
    )


def frobenius_norm(singular_values: Sequence[float]) -> float:
    """‖ΔW‖_F = √Σσ², the root of the sum of squares of all elements."""
    return math.hypot(*singular_values)


def spectral_norm(singular_values: Sequence[float]) -> float:
    """‖ΔW‖₂ = σ₁, the most that ΔW lengthens a vector."""
    return singular_values[0] if singular_values else 0.0


def nuclear_norm(singular_values: Sequence[float]) -> float:
    """‖ΔW‖_* = Σσ."""
    return math.fsum(singular_values)


def stable_rank(singular_values: Sequence[float]) -> float | None:
    """‖ΔW‖_F² / ‖ΔW‖₂², from 1 (one direction) to the rank (all alike).

    Source: Rudelson and Vershynin, J. ACM 54 (2007), under the name of numerical rank.
    """
    relative = _relative(singular_values)
    return math.fsum(value * value for value in relative) if relative else None


def effective_rank(singular_values: Sequence[float]) -> float | None:
    """exp(H(p)) with p = σ/Σσ and H(p) = −Σ p ln p.

    Source: Roy and Vetterli, EUSIPCO 2007. Rivals take p = σ²/Σσ²: that is :func:`energy_effective_rank`.

    Examples
    --------
    >>> round(effective_rank([1.0, 1.0, 1.0]), 12)
    3.0
    """
    return _perplexity(_relative(singular_values))


def energy_effective_rank(singular_values: Sequence[float]) -> float | None:
    """exp(H(p)) with p = σ²/Σσ², the shares of the energy, and H(p) = −Σ p ln p.

    Never above :func:`effective_rank`: squaring makes the shares less alike. Source: the definition of Roy and
    Vetterli, EUSIPCO 2007, with the energies in place of the singular values; several tools print it under their name.

    Examples
    --------
    >>> energy_effective_rank([2.0, 1.0]) < effective_rank([2.0, 1.0])
    True
    """
    return _perplexity([value * value for value in _relative(singular_values)])


def nuclear_norm_ratio(singular_values: Sequence[float]) -> float | None:
    """‖ΔW‖_* / ‖ΔW‖_F = Σσ/√Σσ², from 1 (one direction) to √rank (all alike).

    Source: Lopes, ICML 2013, whose sparsity measure s₁(x) = ‖x‖₁²/‖x‖₂² is its square for x = σ.

    Examples
    --------
    >>> nuclear_norm_ratio([1.0, 1.0, 1.0, 1.0])
    2.0
    """
    relative = _relative(singular_values)
    return math.fsum(relative) / math.hypot(*relative) if relative else None


def participation_ratio(singular_values: Sequence[float]) -> float | None:
    """(Σσ²)² / Σσ⁴, how many directions share the energy.

    Source: Bell and Dean, Discuss. Faraday Soc. 50 (1970), with the energies σ² as weights.
    """
    relative = _relative(singular_values)
    if not relative:
        return None
    energies = [value * value for value in relative]
    return math.fsum(energies) ** 2 / math.fsum(energy * energy for energy in energies)


def energy_rank(singular_values: Sequence[float], share: float) -> int | None:
    """Least k with Σ_{i≤k} σᵢ² ≥ share · Σσ².

    Parameters
    ----------
    singular_values : (k,), descending
    share : in (0, 1]; it counts as reached from 1e-12 of it below, so that round-off decides no tie

    Examples
    --------
    >>> energy_rank([3.0, 1.0], 0.9), energy_rank([3.0, 1.0], 0.95)
    (1, 2)
    """
    relative = _relative(singular_values)
    if not relative:
        return None
    energies = [value * value for value in relative]
    wanted = share * math.fsum(energies) * (1.0 - _TIE)
    reached = (k for k, energy in enumerate(accumulate(energies), start=1) if energy >= wanted)
    return next(reached, len(relative))


def energy_ranks(singular_values: Sequence[float]) -> dict[str, int | None]:
    """:func:`energy_rank` at every share of ``ENERGY_SHARES``, under the share as text."""
    return {f"{share:g}": energy_rank(singular_values, share) for share in ENERGY_SHARES}


def relative_errors(singular_values: Sequence[float]) -> list[float] | None:
    """√(Σ_{i>k} σᵢ² / Σσᵢ²) for k = 1 … all: what the best matrix of rank k leaves of ΔW, as a share of ‖ΔW‖_F.

    Never increasing, and 0 at the end. Source: Eckart and Young, Psychometrika 1 (1936).

    Returns
    -------
    (k,), None for a zero matrix

    Examples
    --------
    >>> relative_errors([4.0, 3.0])
    [0.6, 0.0]
    """
    relative = _relative(singular_values)
    if not relative:
        return None
    # Summed from the smallest: no difference of two near numbers is taken.
    left_over = list(accumulate(value * value for value in reversed(relative)))[::-1]
    return [*(math.sqrt(left / left_over[0]) for left in left_over[1:]), 0.0]


def error_rank(singular_values: Sequence[float], error: float) -> int | None:
    """Least k with √(Σ_{i>k} σᵢ² / Σσᵢ²) ≤ error; the :func:`energy_rank` of the share 1 − error².

    Parameters
    ----------
    error : in [0, 1)

    Examples
    --------
    >>> error_rank([4.0, 3.0], 0.6), error_rank([4.0, 3.0], 0.5)
    (1, 2)
    """
    errors = relative_errors(singular_values)
    if errors is None:
        return None
    return next(rank for rank, left in enumerate(errors, start=1) if left <= error * (1.0 + _TIE))


def numerical_rank(singular_values: Sequence[float], *, tolerance: float) -> int:
    """Count the σ > tolerance · σ₁; 0 for a zero matrix."""
    threshold = tolerance * spectral_norm(singular_values)
    return sum(value > threshold for value in singular_values)


def rank_tolerance(stored: Sequence[DType], rank: int) -> float:
    """Relative size below which a singular value of s·B·A cannot be told from zero.

    max(ε_stored, 4·√r·ε_computed), with ε the spacing of numbers above 1, of the coarsest type that a factor is stored
    in, and of the type it was computed in: float64 where both factors are stored so, float32 otherwise.

    Rounding a factor to its type disturbs ΔW by a matrix whose norm is about 0.15·ε_stored·σ₁; adding r products, and
    decomposing what came of it, adds roundings that grow like √r·ε_computed·σ₁. A rank-deficient product that was
    computed and stored in floating point so keeps the rank that it was meant to have. The usual max(out, in)·ε would be
    5e-4 for float32 and above 1 for bfloat16 at 4096: what bounds the noise is the small core, not the full matrix.

    Parameters
    ----------
    stored : types of the two factors
    rank : r

    Examples
    --------
    >>> rank_tolerance([DType.F32, DType.F32], 16) == 16 * 2**-23
    True
    >>> rank_tolerance([DType.F32, DType.BF16], 16) == 2**-7
    True
    """
    spacings = [_EPSILON[dtype] for dtype in stored]
    computed = _EPSILON[DType.F64] if max(spacings) <= _EPSILON[DType.F64] else _EPSILON[DType.F32]
    return max(*spacings, 4 * math.sqrt(rank) * computed)


def spacing(dtype: DType) -> float:
    """Distance from 1 to the next number of a float type; KeyError for what is no float.

    Examples
    --------
    >>> spacing(DType.BF16)
    0.0078125
    """
    return _EPSILON[dtype]


def _perplexity(weights: Sequence[float]) -> float | None:
    """exp(−Σ p ln p) with p = w/Σw; None without weights."""
    if not weights:
        return None
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    return math.exp(-math.fsum(share * math.log(share) for share in shares if share > 0.0))


def _relative(singular_values: Sequence[float]) -> list[float]:
    """σ/σ₁, empty for a zero matrix."""
    largest = spectral_norm(singular_values)
    return [value / largest for value in singular_values] if largest > 0.0 else []
