"""What a plot draws, as plain values: points, ticks and limits. Nothing here needs numpy or a terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

#: One for each series, distinct without colour.
GLYPHS: Final = ("●", "◆", "▲", "■", "○", "◇")
_SUPERSCRIPT: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MARGIN: Final = 0.06  # of the vertical span, above and below the curves


class Points(NamedTuple):
    """What of a curve can be drawn: its indices k from 1, and the heights in the plot's own coordinate."""

    indices: tuple[int, ...]
    heights: tuple[float, ...]


class Vertical(NamedTuple):
    """A vertical line with a name for the legend."""

    place: float
    name: str


class Level(NamedTuple):
    """A horizontal line, in the plot's own coordinate, with a name for the legend."""

    height: float
    name: str


class Series(NamedTuple):
    """A named curve; the n-th series takes the n-th glyph and the n-th colour of the theme."""

    name: str
    points: Points


@dataclass(frozen=True, slots=True)
class Drawing:
    """A whole plot. On a logarithmic axis every height is a log10."""

    series: tuple[Series, ...]
    y_title: str
    x_title: str = "k"
    is_logarithmic: bool = False
    verticals: tuple[Vertical, ...] = ()
    levels: tuple[Level, ...] = ()
    bottom: float | None = None  # fixed lower limit
    top: float | None = None
    note: str = ""  # what is left out, or why there is nothing to draw

    @property
    def is_empty(self) -> bool:
        """Whether there is no point to draw."""
        return not any(series.points.indices for series in self.series)

    @property
    def last_index(self) -> int:
        """Largest k of any series; 1 when there is none."""
        return max((index for series in self.series for index in series.points.indices), default=1)


@dataclass(frozen=True, slots=True)
class View:
    """How singular values become heights."""

    is_logarithmic: bool = True
    is_energy: bool = False
    is_normalised: bool = False

    def toggled(self, name: str) -> View:
        """The same with one of the three turned round."""
        return replace(self, **{name: not getattr(self, name)})

    @property
    def has_log_axis(self) -> bool:
        """Whether heights are log10; a cumulative share is always drawn on a linear axis."""
        return self.is_logarithmic and not self.is_energy

    @property
    def y_title(self) -> str:
        """What the vertical axis shows."""
        if self.is_energy:
            return "Σσ² up to k, % of all"
        quantity = "σₖ/σ₁" if self.is_normalised else "σₖ"
        return f"{quantity}, log axis" if self.is_logarithmic else quantity


def cumulative_shares(values: Sequence[float | None]) -> list[float]:
    """Σ_{i≤k} σᵢ² / Σσ² for every k; empty for a zero spectrum.

    Examples
    --------
    >>> cumulative_shares([2.0, 1.0, 1.0])
    [0.6666666666666666, 0.8333333333333334, 1.0]
    """
    known = [value for value in values if value is not None]
    largest = max(known, default=0.0)
    if not largest > 0.0 or len(known) != len(values):
        return []
    energies = [(value / largest) ** 2 for value in known]
    total = math.fsum(energies)
    return [*(min(1.0, part / total) for part in list(accumulate(energies))[:-1]), 1.0]


def points_of(values: Sequence[float | None], view: View) -> Points:
    """Turn singular values into what `view` draws of them; what it cannot draw is left out."""
    if view.is_energy:
        return plain_points([100 * share for share in cumulative_shares(values)], is_logarithmic=False)
    heights: Sequence[float | None] = values
    if view.is_normalised:
        largest = max((value for value in values if value is not None), default=0.0)
        heights = [value / largest if value is not None and largest > 0.0 else None for value in values]
    return plain_points(heights, is_logarithmic=view.is_logarithmic)


def plain_points(values: Sequence[float | None], *, is_logarithmic: bool) -> Points:
    """Number `values` from 1, as log10 when asked; what is undefined, or not positive then, is left out."""
    kept = [
        (index, math.log10(value) if is_logarithmic else float(value))
        for index, value in enumerate(values, start=1)
        if value is not None and math.isfinite(value) and (value > 0.0 or not is_logarithmic)
    ]
    return Points(tuple(index for index, _ in kept), tuple(height for _, height in kept))


def vertical_limits(drawing: Drawing) -> tuple[float, float]:
    """Lower and upper end of the vertical axis, with some air round the curves and levels."""
    heights = [height for series in drawing.series for height in series.points.heights]
    heights += [level.height for level in drawing.levels]
    if not heights:
        return (0.0, 1.0)
    low, high = min(heights), max(heights)
    if not drawing.is_logarithmic and low >= 0.0:
        low = 0.0  # a length is judged against zero
    span = high - low
    air = _MARGIN * span if span > 0.0 else (0.3 if drawing.is_logarithmic else max(abs(high) * 0.5, 0.5))
    bottom = 0.0 if not drawing.is_logarithmic and low == 0.0 else low - air
    return (bottom if drawing.bottom is None else drawing.bottom, high + air if drawing.top is None else drawing.top)


def horizontal_limits(drawing: Drawing) -> tuple[float, float]:
    """Left and right end of the horizontal axis: 1 … k with room for the first and the last marker."""
    last = drawing.last_index
    air = max(0.4, 0.02 * last)
    return (1 - air, last + air)


class Tick(NamedTuple):
    """A place on an axis and what is written there."""

    place: float
    label: str


def logarithmic_ticks(low: float, high: float, *, most: int = 8) -> list[Tick]:
    """Ticks between two log10 values: powers of ten, and where there are few of them, 2 and 5 of each as well.

    Examples
    --------
    >>> [tick.label for tick in logarithmic_ticks(-6.2, 0.1)]
    ['10⁻⁶', '10⁻⁵', '10⁻⁴', '10⁻³', '10⁻²', '10⁻¹', '10⁰']
    >>> [tick.label for tick in logarithmic_ticks(-0.8, 0.05)]
    ['0.2', '0.5', '1']
    """
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    decades = last - first + 1
    finer = [
        Tick(power + math.log10(digit), _plain_label(digit, power))
        for power in (range(math.floor(low), math.ceil(high) + 1) if decades <= 2 else ())
        for digit in (1, 2, 5)
        if low - 1e-9 <= power + math.log10(digit) <= high + 1e-9
    ]
    if decades > 2 or (decades == 2 and len(finer) > most):
        step = max(1, math.ceil(decades / most))
        # Steps are counted from 10⁰, so that the same powers stay while one pans.
        return [
            Tick(power, f"10{str(power).translate(_SUPERSCRIPT)}")
            for power in range(-(-first // step) * step, last + 1, step)
        ]
    if len(finer) >= 2 or high > 300 or low < -300:
        return finer
    return [
        Tick(math.log10(tick.place), tick.label)
        for tick in linear_ticks(10.0**low, 10.0**high, most=4)
        if tick.place > 0.0
    ]


def _plain_label(digit: int, power: int) -> str:
    if -3 <= power <= 3:
        return f"{digit * 10.0**power:.{max(0, -power)}f}"
    exponent = f"{power}".translate(_SUPERSCRIPT)
    return f"10{exponent}" if digit == 1 else f"{digit}·10{exponent}"


def linear_ticks(low: float, high: float, *, most: int = 6) -> list[Tick]:
    """Ticks at 1, 2 or 5 times a power of ten.

    Examples
    --------
    >>> [tick.label for tick in linear_ticks(0.0, 1.0)]
    ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']
    """
    step = _nice_step(high - low, most)
    if step <= 0.0:
        return []
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    power = math.floor(math.log10(step) + 1e-9)
    return [Tick(index * step, _linear_label(index * step, power)) for index in range(first, last + 1)][: most + 2]


def _linear_label(value: float, power: int) -> str:
    if -4 <= power <= 3:
        return f"{value:.{max(0, -power)}f}"
    if value == 0.0:
        return "0"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _nice_step(span: float, most: int) -> float:
    if not span > 0.0 or not math.isfinite(span):
        return 0.0
    power = 10.0 ** math.floor(math.log10(span / most))
    return next((digit * power for digit in (1, 2, 5, 10) if span / (digit * power) <= most), 10 * power)


def index_ticks(low: float, high: float, *, most: int = 10) -> list[Tick]:
    """Ticks at whole numbers from 1: all of them where they fit, else 1 and multiples of 2, 5, 10, …

    Examples
    --------
    >>> [tick.label for tick in index_ticks(0.6, 8.4)]
    ['1', '2', '3', '4', '5', '6', '7', '8']
    >>> [tick.label for tick in index_ticks(-0.3, 65.3, most=8)]
    ['1', '10', '20', '30', '40', '50', '60']
    """
    first, last = max(1, math.ceil(low)), math.floor(high)
    if last < first:
        return []
    step = max(1, round(_nice_step(last - first, most))) if last > first else 1
    places = {1} if first == 1 else set()
    places |= set(range(-(-first // step) * step, last + 1, step))
    if step > 2 and 1 in places:
        places.discard(2)
    return [Tick(place, str(place)) for place in sorted(places)]
