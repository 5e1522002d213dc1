"""Colours, sizes and places of a heatmap's cells; no widget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from rich.style import Style

Matrix = Sequence[Sequence[float | None]]
Colour = tuple[int, int, int]

# Nine anchors of the viridis map (CC0), whose lightness rises evenly, so that it stays readable in grey.
_VIRIDIS: Final = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
)  # fmt: skip
_LEVELS: Final = 64
UNDEFINED: Final = (48, 48, 48)
_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)
_MIDDLE: Final = 0.45  # of the luminance: below it white is easier to see, above it black

_LEAST_HEIGHT_WITH_AXES: Final = 6
_LEAST_WIDTH_WITH_AXES: Final = 20
_LARGEST_CELL: Final = 8
_FLATTEST: Final = 4  # ratio of a unit's sides; half a line is about as tall as a cell is wide


class CellSize(StrEnum):
    """How large a value is drawn."""

    FIT = "fit"  # as large as the pane allows; where even half a cell is too much, means of blocks
    HALF = "half"  # one column wide, half a line tall
    FULL = "full"  # two columns wide, one line tall

    @property
    def next(self) -> CellSize:
        """The one after it, round and round."""
        sizes = list(CellSize)
        return sizes[(sizes.index(self) + 1) % len(sizes)]


def colour_of(share: float | None) -> Colour:
    """Colour of a value between the smallest (0) and the largest (1); grey when it is undefined."""
    if share is None:
        return UNDEFINED
    return _PALETTE[round(min(1.0, max(0.0, share)) * (_LEVELS - 1))]


def _between(level: int) -> Colour:
    place = level / (_LEVELS - 1) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    part = place - low
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True))
    return (red, green, blue)


_PALETTE: Final = tuple(map(_between, range(_LEVELS)))


def contrasting(colour: Colour) -> Colour:
    """White on what is dark, black on what is light."""
    red, green, blue = colour
    return _LIGHT if (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255 < _MIDDLE else _DARK


@lru_cache(maxsize=2 * _LEVELS * _LEVELS)
def cell_style(upper: Colour, lower: Colour | None) -> Style:
    """Style of a half block: its own colour above, the background below."""
    behind = "" if lower is None else f" on rgb({lower[0]},{lower[1]},{lower[2]})"
    return Style.parse(f"rgb({upper[0]},{upper[1]},{upper[2]}){behind}")


def extent(matrix: Matrix) -> tuple[float, float]:
    """The smallest and the largest value that is known; 0 and 1 when none is."""
    known = [value for row in matrix for value in row if value is not None and math.isfinite(value)]
    return min(known, default=0.0), max(known, default=1.0)


def share_of(value: float | None, low: float, high: float) -> float | None:
    """Where `value` lies between `low` (0) and `high` (1); None when it is undefined.

    Examples
    --------
    >>> share_of(3.0, 2.0, 4.0), share_of(None, 0.0, 1.0), share_of(7.0, 7.0, 7.0)
    (0.5, None, 0.5)
    """
    if value is None or not math.isfinite(value):
        return None
    return (value - low) / (high - low) if high > low else 0.5


def block_means(matrix: Matrix, down: int, across: int) -> list[list[float | None]]:
    """Means of the known values of each block of `down` × `across` values; None where none is known.

    Examples
    --------
    >>> block_means([[1.0, 3.0, None], [5.0, None, None]], 2, 2)
    [[3.0, None]]
    """
    width = max((len(row) for row in matrix), default=0)
    means: list[list[float | None]] = []
    for top in range(0, len(matrix), down):
        rows = matrix[top : top + down]
        means.append(
            [_mean([v for row in rows for v in row[left : left + across]]) for left in range(0, width, across)]
        )
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known else None


def tick_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 … that is not below `least`.

    Examples
    --------
    >>> tick_step(0.4), tick_step(2), tick_step(2.1), tick_step(30)
    (1, 2, 5, 50)
    """
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= least:
                return digit * power
        power *= 10


class Layout(NamedTuple):
    """Where a matrix is drawn in a pane. A unit is a value, or the mean of `down` × `across` of them."""

    gutter: int  # cells at the left for the rows' numbers
    header: int  # lines above for the columns' numbers
    has_bar: bool  # a line below for the scale of colours
    wide: int  # cells of a unit
    tall: int  # half lines of a unit
    down: int
    across: int
    columns_shown: int  # units that there is room for
    rows_shown: int

    def rows(self, values: int) -> int:
        """How many units `values` rows are."""
        return -(-values // self.down)

    def columns(self, values: int) -> int:
        """How many units `values` columns are."""
        return -(-values // self.across)

    def lines(self, values: int, top: int) -> int:
        """Lines that the rows from unit `top` on take, of `values` rows in all."""
        shown = min(self.rows_shown, self.rows(values) - top)
        return -(-shown * self.tall // 2)

    def cursor_line(self, unit: int) -> int:
        """A line that lies wholly in `unit`, counted from the first one shown; units at least two half lines tall."""
        first, last = -(-unit * self.tall // 2), ((unit + 1) * self.tall - 2) // 2
        return (first + last) // 2


def fit_layout(
    width: int, height: int, shape: tuple[int, int], size: CellSize, *, gutter: int, names: int = 0
) -> Layout:
    """Lay a matrix of `shape` out in `width` × `height` cells.

    Units of fit are at most four times as wide as tall, or as tall as wide, unless columns have names of `names` cells.
    """
    rows, columns = max(1, shape[0]), max(1, shape[1])
    has_axes = height >= _LEAST_HEIGHT_WITH_AXES and width >= _LEAST_WIDTH_WITH_AXES
    left, above, below = (gutter + 1, 1, 1) if has_axes else (0, 0, 0)
    room, half_lines = max(1, width - left), max(2, 2 * (height - above - below))
    wide = tall = down = across = 1
    if size is CellSize.FULL:
        wide, tall = 2, 2
    elif size is CellSize.FIT:
        across, down = -(-columns // room), -(-rows // half_lines)
        wide = room // -(-columns // across)
        tall = half_lines // -(-rows // down)
        wide = min(wide, max(_FLATTEST * tall, names + 1), max(2 * _LARGEST_CELL, names + 1))
        tall = min(tall, _FLATTEST * wide, _LARGEST_CELL)
    return Layout(left, above, bool(below), wide, tall, down, across, max(1, room // wide), max(1, half_lines // tall))


def axis_line(
    layout: Layout, left: int, total: int, named: Callable[[int], str], here: int | None, *, has_names: bool
) -> tuple[str, int, int]:
    """Write the columns' numbers or names above where the columns begin, whole or not at all.

    Parameters
    ----------
    left : first unit shown
    total : columns that there are
    named : what to call a column, counted from 0
    here : the column of the cursor, whose number goes before the others
    has_names : whether every column has a name; numbers stand at 1 and at the multiples of a round step

    Returns
    -------
    the line, and where the number of `here` begins and ends in it
    """
    room = layout.columns_shown * layout.wide
    cells = [" "] * room
    last = min(total, (left + layout.columns_shown) * layout.across)
    step = 1 if has_names else tick_step((len(str(last)) + 1) * layout.across / layout.wide)

    def put(place: int) -> tuple[int, int]:
        shown = named(place)
        begin = (place // layout.across - left) * layout.wide
        end = begin + len(shown)
        if end > room or any(cell != " " for cell in cells[max(0, begin - 1) : end + 1]):
            return (0, 0)
        cells[begin:end] = shown
        return (begin, end)

    begin, end = put(here) if here is not None else (0, 0)
    for place in range(left * layout.across, last):
        if has_names or place == 0 or (place + 1) % step == 0:
            put(place)
    return "".join(cells), begin, end
