"""How a merged weight compares with the one that W + Δ rounded once would be, and what a wrong one is instead.

With D = M − W of the merged weight M and I = round(W + Δ) − W of the ideal one, ŝ = ⟨D, Δ⟩/⟨Δ, Δ⟩ is the strength
that arrived. Rounding swallows a part of small updates, so that ŝ of the ideal is below 1 too; the ratio of the two is
1 for a right merge however coarse the type. The ratio looks at the whole; the worst entry error, in units in the last
place of max(|W|, |Δ|, |M|), at each value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.linalg.rounding import rounded
from lora_lab.linalg.storing import stored_rows

if TYPE_CHECKING:
    from collections.abc import Callable

# One rounding is off by at most half a unit; float32 on the way to it by far less than a hundredth.
ONE_ROUNDING_ULP: Final = 0.51
# Rounding Δ, its factors or its scaling as well adds at most some halves.
SOME_ROUNDINGS_ULP: Final = 2.0
# DoRA's sum, norm, quotient and product, each rounded.
DORA_ROUNDINGS_ULP: Final = 3.5
RATIO_TOLERANCE: Final = 0.003
_EXPONENTS: Final = {torch.float32: (torch.int32, 0xFF << 23), torch.float64: (torch.int64, 0x7FF << 52)}
_SURE: Final = 4.0  # standard errors
_FEWEST_MOVED: Final = 8  # entries that must have moved before their not moving says anything


class Diagnosis(StrEnum):
    """What a merged weight is."""

    RIGHT = "right"  # W + Δ, rounded once
    ROUNDED_ELSEWHERE = "rounded_elsewhere"  # W + Δ, with more roundings on the way
    PARTLY_MERGED = "partly_merged"  # a part of the rows, columns, ranks or adapters
    WRONG_STRENGTH = "wrong_strength"  # W + sΔ
    SIGN_FLIPPED = "sign_flipped"  # W − Δ
    TRANSPOSED = "transposed"  # W + Δᵀ
    NOT_APPLIED = "not_applied"  # W
    OTHER_ADAPTER = "other_adapter"  # W and something that Δ does not explain
    WRONG_VALUES = "wrong_values"  # right but for a few values
    NOT_FINITE = "not_finite"  # NaN or infinity where W + Δ has none
    INCONCLUSIVE = "inconclusive"  # Δ is too small for the type to tell

    @property
    def is_sound(self) -> bool:
        """Whether the weight is W + Δ."""
        return self in (Diagnosis.RIGHT, Diagnosis.ROUNDED_ELSEWHERE)


@dataclass(slots=True)
class Comparison:
    """One merged weight beside the ideal; sums over blocks of rows add up.

    changed, ideal_changed : values that differ from W in the merged type, in M and in the ideal
    differing : values in which M is not the ideal, bit for bit
    inner, ideal_inner : ⟨D, Δ⟩, ⟨I, Δ⟩
    update_square, moved_square : ‖Δ‖², ‖D‖²
    noise_square, ideal_noise_square : ‖D − Δ‖², ‖I − Δ‖²
    apart_square : Σ ((D − I)·Δ)², from which the error of the ratio
    weighed_… : the same sums with every value divided by its unit in the last place
    twice : values that W + Δ rounded once does not come to, a last bit of Δ's own sum in float32 granted
    wrong : values off by more than some units in the last place and what the products that make Δ were rounded by
    clean_inner, clean_ideal : ⟨D, Δ⟩ and ⟨I, Δ⟩ without those
    not_finite : values of M that are NaN or infinite where the ideal is not
    """

    elements: int = 0
    changed: int = 0
    ideal_changed: int = 0
    differing: int = 0
    twice: int = 0
    wrong: int = 0
    not_finite: int = 0
    inner: float = 0.0
    ideal_inner: float = 0.0
    update_square: float = 0.0
    moved_square: float = 0.0
    noise_square: float = 0.0
    ideal_noise_square: float = 0.0
    apart_square: float = 0.0
    weighed_inner: float = 0.0
    weighed_ideal: float = 0.0
    weighed_update: float = 0.0
    weighed_noise: float = 0.0
    weighed_ideal_noise: float = 0.0
    clean_inner: float = 0.0
    clean_ideal: float = 0.0
    worst_ulp: float = 0.0

    def add(self, other: Comparison) -> None:
        """Take in another block."""
        worst = max(self.worst_ulp, other.worst_ulp)
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        self.worst_ulp = worst

    @property
    def effective_strength(self) -> float | None:
        """ŝ = ⟨D, Δ⟩/⟨Δ, Δ⟩; None for a zero update."""
        return self.inner / self.update_square if self.update_square else None

    @property
    def effective_error(self) -> float | None:
        """Standard error of ŝ as a regression coefficient: the rounding errors are what it does not explain."""
        if not self.update_square or self.elements < 2:
            return None
        rest = max(0.0, self.moved_square - self.inner**2 / self.update_square)
        return math.sqrt(rest / (self.elements - 1) / self.update_square)

    @property
    def strength(self) -> float | None:
        """ŝ over that of the ideal: 1 for a right merge; None where the type swallows the whole update."""
        return self.inner / self.ideal_inner if self.ideal_inner > 0 else None

    @property
    def strength_error(self) -> float | None:
        """Standard error of :attr:`strength`, from the values in which the two differ."""
        return math.sqrt(self.apart_square) / self.ideal_inner if self.ideal_inner > 0 else None

    @property
    def weighed_strength(self) -> float | None:
        """The same ratio with every value divided by its unit in the last place.

        Where Δ is far below the unit, rounding swallows it; the few values where it is not then decide, and damaged
        values hardly count.
        """
        return self.weighed_inner / self.weighed_ideal if self.weighed_ideal > 0 else None

    @property
    def weighed_error(self) -> float | None:
        """Standard error of Δ's weighed regression coefficient."""
        if not self.weighed_update or not self.elements:
            return None
        return math.sqrt(self.weighed_noise / self.elements / self.weighed_update)

    @property
    def is_ideal(self) -> bool:
        """Whether every bit is that of the ideal."""
        return self.differing == 0


def ulp_of(size: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Distance of neighbouring numbers of `dtype` at a magnitude.

    Parameters
    ----------
    size : float32 or float64, not negative

    Examples
    --------
    >>> ulp_of(torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64), torch.bfloat16).tolist()
    [0.0078125, 0.0078125, 0.015625]
    """
    kind = torch.finfo(dtype)
    bits, exponent = _EXPONENTS[size.dtype]
    # A number 2^e·m, 1 ≤ m < 2, with the bits of m cleared is 2^e.
    power = (size.clamp_min(kind.tiny).view(bits) & exponent).view(size.dtype)
    return power * kind.eps


def compare_right_rows(
    before: torch.Tensor, merged: torch.Tensor, moved: torch.Tensor, *, generator: torch.Generator | None = None
) -> Comparison | None:
    """Compare some rows that are the ideal's, bit for bit; None where they are not.

    As :func:`compare_rows`, at the cost of the merge itself; the figures are of float32 sums.

    Parameters
    ----------
    moved : (n, in) float64, W + Δ as the merge sums it; holds anything afterwards
    """
    ideal, fidelity = stored_rows(before, moved, merged.dtype, generator=generator)
    if not torch.isfinite(ideal).all() or _different_bits(merged, ideal):
        return None
    changed = int(torch.count_nonzero(merged != before.to(merged.dtype)))
    return Comparison(
        elements=merged.numel(),
        changed=changed,
        ideal_changed=changed,
        inner=fidelity.inner,
        ideal_inner=fidelity.inner,
        update_square=fidelity.intended_square,
        moved_square=fidelity.realised_square,
    )


def compare_rows(
    before: torch.Tensor,
    merged: torch.Tensor,
    delta: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
    reach: Callable[[], torch.Tensor] | None = None,
    most_ulp: float = SOME_ROUNDINGS_ULP,
) -> Comparison:
    """Compare some rows.

    Parameters
    ----------
    before, merged : (n, in), W and M as stored
    delta : (n, in) float64
    generator : of stochastic rounding, in the state that the merge began the block with
    reach : gives, of these rows, the size of what Δ is the sum of; asked where values are off
    most_ulp : how many units in the last place a value may be off that was rounded on the way
    """
    dtype = merged.dtype
    wide = torch.float64 if torch.float64 in (before.dtype, dtype) else torch.float32
    ideal = rounded(before.to(torch.float64) + delta, dtype, generator=generator)
    plain = before.to(dtype)
    usable = torch.isfinite(ideal)
    finite = torch.isfinite(merged) & usable
    # Differences of numbers of 16 bits are float32 numbers but for bits that no unit in the last place shows.
    fine = torch.float64 if wide == torch.float64 or dtype == torch.float32 else torch.float32
    W = torch.where(finite, before, 0).to(fine)
    M = torch.where(finite, merged, 0).to(fine)
    step = torch.where(finite, delta.to(wide).to(fine), 0.0)
    ideal_value = torch.where(finite, ideal, 0).to(fine)
    unit = ulp_of(torch.maximum(torch.maximum(W.abs(), M.abs()), step.abs()), dtype)
    error = (M - W - step).abs()
    clean = error <= most_ulp * unit
    if reach is not None and not clean.all():
        clean = error <= most_ulp * unit + ulp_of(reach(), dtype)
    # Where W and Δ cancel, the unit of the result is finer than theirs, and so is its one rounding.
    own = ulp_of(torch.maximum(M.abs(), ideal_value.abs()), dtype)
    # Where W + Δ is not finite, M is the same infinity, or NaN where it is.
    is_same = (merged == ideal) | (merged.isnan() & ideal.isnan())
    lost = int(torch.count_nonzero(~usable & ~is_same))
    return Comparison(
        elements=merged.numel(),
        changed=int(torch.count_nonzero(merged != plain)),
        ideal_changed=int(torch.count_nonzero(ideal != plain)),
        differing=_different_bits(_plain_nan(merged), _plain_nan(ideal)),
        twice=int(torch.count_nonzero(error > ONE_ROUNDING_ULP * own + ulp_of(step.abs(), wide))) + lost,
        wrong=int(torch.count_nonzero(~clean)) + lost,
        not_finite=int(torch.count_nonzero(usable & ~finite)),
        worst_ulp=float((error / unit).max()) if error.numel() else 0.0,
        **_sums(M - W, ideal_value - W, step, unit, clean),
    )


def _sums(
    D: torch.Tensor, ideal: torch.Tensor, step: torch.Tensor, unit: torch.Tensor, clean: torch.Tensor
) -> dict[str, Any]:
    """The sums of :class:`Comparison`: D = M − W and I of the ideal, (n, in), float32 or float64."""
    D_step, ideal_step = D * step, ideal * step
    weighed, weighed_ideal, weighed_step = D / unit, ideal / unit, step / unit
    none = torch.zeros((), dtype=D.dtype)
    return {
        "inner": _sum(D_step),
        "ideal_inner": _sum(ideal_step),
        "update_square": _dot(step, step),
        "moved_square": _dot(D, D),
        "noise_square": _sum((D - step).square()),
        "ideal_noise_square": _sum((ideal - step).square()),
        "apart_square": _sum((D_step - ideal_step).square()),
        "weighed_inner": _dot(weighed, weighed_step),
        "weighed_ideal": _dot(weighed_ideal, weighed_step),
        "weighed_update": _dot(weighed_step, weighed_step),
        "weighed_noise": _sum((weighed - weighed_step).square()),
        "weighed_ideal_noise": _sum((weighed_ideal - weighed_step).square()),
        "clean_inner": _sum(torch.where(clean, D_step, none)),
        "clean_ideal": _sum(torch.where(clean, ideal_step, none)),
    }


def _sum(values: torch.Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return _sum(one * other)


def _plain_nan(values: torch.Tensor) -> torch.Tensor:
    """The values with every NaN of one pattern: which one it is says nothing."""
    return values.masked_fill(values.isnan(), math.nan)


def _different_bits(one: torch.Tensor, other: torch.Tensor) -> int:
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return int(torch.count_nonzero(one.contiguous().view(width) != other.contiguous().view(width)))


def sound_or_not(found: Comparison) -> Diagnosis | None:
    """Say what a weight is where the ideal's own blocks suffice for it; None asks for a second look."""
    if found.not_finite:
        return Diagnosis.NOT_FINITE
    if found.is_ideal:
        # The bits of W + Δ; where they are those of W as well, nothing shows that anything was merged.
        is_swallowed = found.update_square > 0 and found.ideal_changed == 0
        return Diagnosis.INCONCLUSIVE if is_swallowed else Diagnosis.RIGHT
    ratio, error = found.strength, found.strength_error
    if found.changed == 0:
        return Diagnosis.NOT_APPLIED if found.ideal_changed >= _FEWEST_MOVED or found.wrong else Diagnosis.INCONCLUSIVE
    if not found.twice and found.ideal_changed:
        return Diagnosis.RIGHT
    if ratio is None or error is None:
        return None if found.wrong else Diagnosis.INCONCLUSIVE
    if not found.wrong:
        if abs(ratio - 1) < RATIO_TOLERANCE:
            return Diagnosis.ROUNDED_ELSEWHERE
        if abs(ratio - 1) > _SURE * error or ratio < 0.5:
            return None
        # Too few values have moved for the ratio to be told from 1 as finely as it should; weighed, they may suffice.
        weighed = found.weighed_strength
        is_near = weighed is not None and abs(weighed - 1) < RATIO_TOLERANCE
        return Diagnosis.ROUNDED_ELSEWHERE if is_near else Diagnosis.INCONCLUSIVE
    return None
