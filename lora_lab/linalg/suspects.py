"""What a weight is that is not W + Δ: W + sΔ, a part of Δ, Δᵀ, or something else.

Every value counts in its own unit in the last place: where Δ is far below that unit, rounding swallows it, and the
values where it is not decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.linalg.verification import RATIO_TOLERANCE, Comparison, Diagnosis, ulp_of

if TYPE_CHECKING:
    from lora_lab.linalg.updates import Update

_SURE: Final = 4.0  # standard errors
_FEW: Final = 0.01  # share of the values that may be damaged in a weight that is right otherwise
_NEAR: Final = 0.35  # how far from 0 or 1 a strength may be to count as none or all
_BY_CHANCE: Final = 5.0  # standard deviations
_TELLING: Final = 0.02  # standard error of a strength that says something
_EXPLAINED: Final = 4.0  # times the square of the rounding errors of the ideal


@dataclass(slots=True)
class Sums:
    """⟨D, Δ⟩, ‖Δ‖² and ‖D‖² of each row or column, of values divided by their units in the last place."""

    inner: torch.Tensor
    update: torch.Tensor
    moved: torch.Tensor

    @classmethod
    def zeros(cls, count: int) -> Sums:
        """Nothing seen yet."""
        return cls(*(torch.zeros(count, dtype=torch.float64) for _ in range(3)))

    def add(self, D: torch.Tensor, delta: torch.Tensor, here: slice, *, dim: int) -> None:
        """Take in some rows, summed along `dim`, at the places `here`."""
        self.inner[here] += (D * delta).sum(dim=dim)
        self.update[here] += delta.square().sum(dim=dim)
        self.moved[here] += D.square().sum(dim=dim)

    def take(self, other: Sums) -> None:
        """Take in sums over other rows."""
        self.inner += other.inner
        self.update += other.update
        self.moved += other.moved

    def parts(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Strength ŝ of each, its ‖Δ‖², and Σ‖D − ŝΔ‖² of all."""
        has = self.update > 0
        strengths = self.inner[has] / self.update[has]
        rest = float((self.moved[has] - strengths * self.inner[has]).sum() + self.moved[~has].sum())
        return strengths, self.update[has], max(0.0, rest)

    @property
    def spread(self) -> float:
        """‖D − ŝΔ‖² with one strength for all."""
        inner, update, moved = (float(sums.sum()) for sums in (self.inner, self.update, self.moved))
        return max(0.0, moved - inner**2 / update) if update else moved


def off_by_too_much(count: int) -> str:
    """How many values are wrong, in words."""
    return f"{count} {'value is' if count == 1 else 'values are'} off by more than rounding explains"


@dataclass(slots=True)
class Chance:
    """Is M what rounding W + Δ by chance gives? In units of the step between its neighbours a ≤ W + Δ ≤ b.

    With f the share of the step that W + Δ lies above a, M = b with probability f, so that the error e = M − (W + Δ)
    has the mean 0, the variance v = f(1 − f), and e² − v the variance v(1 − 4v). Rare events are not normal: by
    Bernstein's inequality for terms of at most 1, a sum of variance V exceeds z√V + z²/3 as seldom as a normal one z√V.
    Sums over values, with Δ cut to one step:

    outside : M that are neither neighbour
    inner, inner_variance : Σ e·Δ and Σ v·Δ²
    update : ΣΔ²
    excess, excess_variance : Σ (e² − v) and Σ v(1 − 4v)
    """

    outside: int = 0
    inner: float = 0.0
    inner_variance: float = 0.0
    update: float = 0.0
    excess: float = 0.0
    excess_variance: float = 0.0

    @classmethod
    def of(cls, W: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> Chance:
        """Sums over some rows: W and Δ in float64, M as stored."""
        wide = torch.float64 if merged.dtype == torch.float64 else torch.float32
        x = (W.to(wide) + delta.to(wide)).to(torch.float64)
        near = x.to(merged.dtype)
        far = torch.nextafter(near, torch.copysign(torch.full_like(x, math.inf), x - near).to(merged.dtype))
        is_exact = near == x
        gap = torch.where(is_exact, 1.0, (far.to(torch.float64) - near.to(torch.float64)).abs())
        error = (merged.to(torch.float64) - x) / gap
        step = (delta / gap).clamp(-1, 1)  # beside a tiny weight Δ is thousands of steps, and one value would decide
        share = (x - near.to(torch.float64)).abs() / gap
        variance = share * (1 - share)
        return cls(
            outside=int(torch.count_nonzero((merged != near) & ((merged != far) | is_exact))),
            inner=float((error * step).sum()),
            inner_variance=float((variance * step.square()).sum()),
            update=float(step.square().sum()),
            excess=float((error.square() - variance).sum()),
            excess_variance=float((variance * (1 - 4 * variance)).sum()),
        )

    def take(self, other: Chance) -> None:
        """Take in sums over other rows."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    @property
    def strength_error(self) -> float:
        """Standard error of the strength that arrived."""
        return _by_chance(self.inner_variance) / _BY_CHANCE / self.update if self.update else math.inf

    @property
    def explains(self) -> bool:
        """Whether every value is a neighbour, and both sums are as chance makes them."""
        is_unbiased = abs(self.inner) <= _by_chance(self.inner_variance)
        return not self.outside and is_unbiased and abs(self.excess) <= _by_chance(self.excess_variance)


def _by_chance(variance: float) -> float:
    """What a sum of many independent terms of at most 1 does not exceed."""
    return _BY_CHANCE * math.sqrt(variance) + _BY_CHANCE**2 / 3


class Seen(NamedTuple):
    """Sums over some rows of a suspect."""

    columns: Sums
    turned: Sums | None
    along: torch.Tensor | None
    chance: Chance | None


@dataclass(slots=True)
class Suspect:
    """Second look at a weight that is not W + Δ: is it W + sΔ, or a part of Δ, or Δᵀ?

    Every row of the weight must pass through :meth:`look` once, in any thread, and what that returns through
    :meth:`take`, in order; :meth:`diagnosis` then says.

    Parameters
    ----------
    first : of the first look
    shape : (out, in)
    is_plain : whether Δ is the product of stacked factors and nothing else
    owners : what the adapter is called that each of the R ranks belongs to
    """

    first: Comparison
    shape: tuple[int, int]
    is_plain: bool
    owners: tuple[str, ...] = ()
    rows: Sums = field(init=False)
    columns: Sums = field(init=False)
    turned: Sums = field(init=False)
    chance: Chance = field(default_factory=Chance)
    _gram: torch.Tensor | None = None  # (R, R), ⟨bᵢaᵢᵀ, bⱼaⱼᵀ⟩
    _along: torch.Tensor | None = None  # (R,), ⟨D, bᵢaᵢᵀ⟩

    def __post_init__(self) -> None:
        self.rows = Sums.zeros(self.shape[0])
        self.columns = Sums.zeros(self.shape[1])
        self.turned = Sums.zeros(1)

    def look(
        self, before: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor, first: int, update: Update, band: int = 0
    ) -> Seen:
        """Sums over the rows from `first` on of the whole, of a band of rows that begins at `band`.

        before, merged : (n, in), W and M as stored
        delta : (n, in) float64
        """
        W, M = before.to(torch.float64), merged.to(torch.float64)
        D = M - W
        unit = ulp_of(torch.maximum(torch.maximum(W.abs(), M.abs()), delta.abs()), merged.dtype)
        weighed, step = D / unit, delta / unit
        end = first + D.shape[0]
        self.rows.add(weighed, step, slice(first, end), dim=1)
        columns = Sums.zeros(D.shape[1])
        columns.add(weighed, step, slice(None), dim=0)
        # One value that is no neighbour refutes chance; no more needs to be known then.
        chance = None if self.chance.outside else Chance.of(W, merged, delta)
        turned, along = None, None
        lora_A, lora_B = update.plain_factors
        own = slice(first - band, end - band)
        has_factors = self.is_plain and bool(lora_A.shape[0])
        if has_factors and update.shape[0] == update.shape[1]:
            other = (lora_A.T[own] @ lora_B.T) / unit
            turned = Sums.zeros(1)
            turned.add(weighed.reshape(1, -1), other.reshape(1, -1), slice(None), dim=1)
        if has_factors and update.shape == self.shape:  # one band: the ranks are the same in every row
            along = ((lora_B[own].T @ D) * lora_A).sum(dim=1)  # bᵢᵀ D aᵢ
            if first == 0:
                self._gram = (lora_B.T @ lora_B) * (lora_A @ lora_A.T)
        return Seen(columns, turned, along, chance)

    def take(self, seen: Seen) -> None:
        """Take in what was seen of some rows."""
        self.columns.take(seen.columns)
        if seen.turned is not None:
            self.turned.take(seen.turned)
        if seen.along is not None:
            self._along = seen.along if self._along is None else self._along + seen.along
        if seen.chance is not None:
            self.chance.take(seen.chance)

    def diagnosis(self, strength: float, error: float, found: Comparison) -> tuple[Diagnosis, str]:
        """Say what the weight is, and of what.

        Parameters
        ----------
        strength, error : the one that explains it best, with its standard error
        found : the comparison of M with W + strength·Δ
        """
        if self.chance.explains and self.chance.update:
            told = f"rounded by chance, strength {1 + self.chance.inner / self.chance.update:.4f}"
            told = f"{told} ± {self.chance.strength_error:.1g}"
            is_told = self.chance.strength_error < _TELLING
            return (Diagnosis.ROUNDED_ELSEWHERE if is_told else Diagnosis.INCONCLUSIVE), told
        noise = _EXPLAINED * max(self.first.weighed_ideal_noise, found.weighed_ideal_noise)
        partly = self._partly(noise)
        if partly is not None:
            return Diagnosis.PARTLY_MERGED, partly
        is_explained = found.weighed_noise <= noise
        few = max(1.0, _FEW * self.first.elements)
        least = RATIO_TOLERANCE if self.first.wrong <= few else 0.0
        is_other = abs(strength - 1) > max(least, _SURE * error)
        if is_explained and is_other and abs(strength) > max(0.1, _SURE * error):
            told = f"strength {strength:.4f} ± {error:.1g}"
            is_flipped = abs(strength + 1) < max(10 * RATIO_TOLERANCE, _SURE * error)
            return Diagnosis.SIGN_FLIPPED if is_flipped else Diagnosis.WRONG_STRENGTH, told
        turned, _, rest = self.turned.parts()
        if turned.numel() and rest <= noise and abs(float(turned)) > 0.5 * self._arriving:
            return Diagnosis.TRANSPOSED, f"Δᵀ is in it at strength {float(turned) / self._arriving:.4g}"
        clean = self.first.clean_inner / self.first.clean_ideal if self.first.clean_ideal > 0 else math.inf
        if 0 < self.first.wrong <= few and abs(clean - 1) < 10 * RATIO_TOLERANCE:
            return Diagnosis.WRONG_VALUES, off_by_too_much(self.first.wrong)
        if is_explained and not self.first.wrong:
            return Diagnosis.INCONCLUSIVE, f"strength {strength:.4f} ± {error:.1g}"
        share = found.inner**2 / (found.update_square * found.moved_square or 1.0)
        return Diagnosis.OTHER_ADAPTER, f"the update explains {min(1.0, share):.1%} of what was changed"

    @property
    def _arriving(self) -> float:
        """Weighed strength that arrives in the ideal."""
        found = self.first
        return found.weighed_ideal / found.weighed_update if found.weighed_ideal > 0 else 1.0

    def _by_rank(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Strength of each rank, the inverse of its squared error for unit noise, and what they leave unexplained."""
        if self._gram is None or self._along is None:
            return torch.empty(0), torch.empty(0), math.inf
        inverse = torch.linalg.pinv(self._gram, hermitian=True, rtol=1e-10)
        strengths = inverse @ self._along
        rest = self.first.moved_square - float(strengths @ self._along)
        return strengths, 1 / inverse.diagonal().clamp_min(1e-300), max(0.0, rest)

    def _partly(self, noise: float) -> str | None:
        """Which part of Δ is in the weight, where some rows, columns or ranks have all of it and others none."""
        found = self.first
        weighed = (self._arriving, self.rows.spread, noise)
        plain_rest = found.moved_square - found.inner**2 / (found.update_square or 1.0)
        plain = (found.ideal_inner / (found.update_square or 1.0), plain_rest, _EXPLAINED * found.ideal_noise_square)
        looks = (
            ("rows", self.rows.parts(), weighed),
            ("columns", self.columns.parts(), weighed),
            ("ranks", self._by_rank(), plain),
        )
        for what, (strengths, weights, rest), (arriving, variance, most) in looks:
            if strengths.numel() < 2 or rest > most or arriving <= 0:
                continue
            mean = float((strengths * weights).sum() / weights.sum())
            chi = float(((strengths - mean).square() * weights).mean()) / max(variance / found.elements, 1e-300)
            near_all, near_none = (strengths / arriving - 1).abs() < _NEAR, strengths.abs() / arriving < _NEAR
            is_two = bool((near_all | near_none).double().mean() > 0.9) and bool(near_all.any() and near_none.any())
            if is_two and chi > _SURE:
                return self._part_of(what, near_all)
        return None

    def _part_of(self, what: str, has: torch.Tensor) -> str:
        if what == "ranks" and len(self.owners) == has.numel():
            by_owner: dict[str, set[bool]] = {}
            for owner, is_in in zip(self.owners, has.tolist(), strict=True):
                by_owner.setdefault(owner, set()).add(is_in)
            if all(len(kinds) == 1 for kinds in by_owner.values()):
                told = (f"{owner} is {'' if True in kinds else 'not '}in it" for owner, kinds in by_owner.items())
                return ", ".join(told)
        return f"{int(has.sum())} of {has.numel()} {what} have the update"
