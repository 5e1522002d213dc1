"""What unmerging by subtraction cannot know: how many elements come back changed, and how far off they can be.

W′ = round(W + Δ) says that W + Δ lies within half a unit in the last place u′ of W′. The numbers of the stored type in
that interval, u apart where W lies, are what W may have been: u′/u of them where W′ lies in a higher binade than W, one
otherwise. Rounding W′ − Δ gives the nearest, which is W with probability u/u′ when none is likelier than another.

A weight of the type that it is summed in knows ties besides: W + Δ is a multiple of Δ's own unit u_Δ, lies exactly half
way with probability u_Δ/u′, and going back does not lead to W where W is odd. Here that is float64; others sum weights
of float32 in float32, for which the bound provides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Doubt:
    """Sums over blocks.

    expected : elements that are expected to come back changed
    bound_square : the squared Frobenius norm that the error cannot exceed
    square : ‖W‖_F² of the unmerged weight
    """

    elements: int = 0
    expected: float = 0.0
    bound_square: float = 0.0
    square: float = 0.0

    def add(self, other: Doubt) -> None:
        """Take in another block."""
        self.elements += other.elements
        self.expected += other.expected
        self.bound_square += other.bound_square
        self.square += other.square

    @property
    def expected_fraction(self) -> float | None:
        """Share of elements expected to differ from the base's."""
        return self.expected / self.elements if self.elements else None

    @property
    def relative_bound(self) -> float | None:
        """‖error‖_F/‖W‖_F at most; None for a zero weight."""
        return math.sqrt(self.bound_square / self.square) if self.square else None


def doubt_about(merged: torch.Tensor, unmerged: torch.Tensor) -> Doubt:
    """How uncertain `unmerged` is as what `merged` was made from.

    An error of an element is below u′, the unit in the last place of the merged value, and zero where u′ < u; where
    u′ = u it takes a tie, which is rare enough not to count for types of 16 bits.

    Parameters
    ----------
    merged, unmerged : one shape and floating-point type
    """
    info = torch.finfo(merged.dtype)
    there, here = _unit(merged, info), _unit(unmerged, info)
    share = 1.0 - (here / there).clamp(max=1.0)
    error = torch.where(there > here, there, 0.0)
    if merged.dtype in (torch.float32, torch.float64):
        is_level = there == here
        error = torch.where(is_level, here, error)
    if merged.dtype == torch.float64:
        step = _unit(merged.to(torch.float64) - unmerged.to(torch.float64), info)
        share += torch.where(is_level & (step < here), step / here / 2.0, 0.0)
    return Doubt(
        elements=merged.numel(),
        expected=float(share.sum()),
        bound_square=float(error.square().sum()),
        square=float(unmerged.to(torch.float64).square().sum()),
    )


def _unit(values: torch.Tensor, info: torch.finfo) -> torch.Tensor:
    """Unit in the last place, float64: the distance to the next number away from zero."""
    size = values.to(torch.float64).abs().clamp(min=info.smallest_normal)
    return size / torch.frexp(size).mantissa * (info.eps / 2)
