"""Colours, sizes and places of a heatmap's cells."""

from __future__ import annotations

import math
from statistics import fmean

from hypothesis import given
from hypothesis import strategies as st

from lora_lab.tui.plots.cells import (
    UNDEFINED,
    CellSize,
    axis_line,
    block_means,
    colour_of,
    contrasting,
    extent,
    fit_layout,
    share_of,
    tick_step,
)

VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
KNOWN = st.floats(-1e6, 1e6)


def luminance(colour: tuple[int, int, int]) -> float:
    """What a screen without colours shows."""
    red, green, blue = colour
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@given(st.floats(0, 1), st.floats(0, 1))
def test_lightness_never_falls(one: float, other: float) -> None:
    """A larger value is at least as light."""
    low, high = sorted((one, other))
    assert luminance(colour_of(low)) <= luminance(colour_of(high))


def test_ends_and_the_undefined() -> None:
    """Beyond the ends there is no other colour; grey is none of the scale's."""
    assert colour_of(-3.0) == colour_of(0.0) == (68, 1, 84)
    assert colour_of(7.0) == colour_of(1.0) == (253, 231, 37)
    assert colour_of(None) == UNDEFINED
    assert UNDEFINED not in {colour_of(place / 63) for place in range(64)}


@given(st.floats(0, 1))
def test_the_cursor_is_seen_on_any_colour(share: float) -> None:
    """Its luminance is at least a third of the range away."""
    colour = colour_of(share)
    assert abs(luminance(contrasting(colour)) - luminance(colour)) > 85


@given(VALUES, KNOWN, KNOWN)
def test_shares(value: float | None, low: float, high: float) -> None:
    """What is undefined has none; the ends are 0 and 1; a scale without width has its middle."""
    share = share_of(value, low, high)
    if value is None or not math.isfinite(value):
        assert share is None
    elif high > low:
        assert share == (value - low) / (high - low)
    else:
        assert share == 0.5
    if high > low:
        assert (share_of(low, low, high), share_of(high, low, high)) == (0.0, 1.0)


@given(st.lists(st.lists(VALUES, max_size=6), max_size=6))
def test_the_extent_is_of_what_is_known(matrix: list[list[float | None]]) -> None:
    """NaN, infinity and None count for nothing."""
    known = [value for row in matrix for value in row if value is not None and math.isfinite(value)]
    assert extent(matrix) == ((min(known), max(known)) if known else (0.0, 1.0))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.data())
def test_means_of_blocks(rows: int, columns: int, down: int, across: int, data: st.DataObject) -> None:
    """Each is the mean of what is known in its block."""
    cells = st.one_of(st.none(), st.floats(-1, 1))
    matrix = [[data.draw(cells) for _ in range(columns)] for _ in range(rows)]
    means = block_means(matrix, down, across)
    assert (len(means), len(means[0])) == (-(-rows // down), -(-columns // across))
    for top, line in enumerate(means):
        for left, mean in enumerate(line):
            square = [row[left * across : (left + 1) * across] for row in matrix[top * down : (top + 1) * down]]
            known = [value for row in square for value in row if value is not None]
            assert mean is None if not known else mean is not None and math.isclose(mean, fmean(known), abs_tol=1e-12)


@given(st.floats(0.01, 1e5))
def test_steps_are_round(least: float) -> None:
    """1, 2 or 5 times a power of ten, and the smallest that is enough."""
    step = tick_step(least)
    assert step >= least
    assert str(step).rstrip("0") in ("1", "2", "5")
    smaller = {"1": step // 2, "2": step // 2, "5": step * 2 // 5}[str(step)[0]]
    assert step == 1 or smaller < least


@given(st.integers(1, 250), st.integers(1, 90), st.integers(1, 300), st.integers(1, 300), st.sampled_from(CellSize))
def test_what_is_drawn_fits(width: int, height: int, rows: int, columns: int, size: CellSize) -> None:
    """No unit sticks out; fit shows the whole matrix; half and full have their size."""
    layout = fit_layout(width, height, (rows, columns), size, gutter=len(str(rows)))
    assert layout.columns_shown * layout.wide <= max(1, width - layout.gutter) or layout.columns_shown == 1
    lines = layout.header + layout.lines(rows, 0) + layout.has_bar
    assert lines <= max(height, layout.header + 1 + layout.has_bar)
    if size is CellSize.FIT:
        assert layout.columns_shown >= layout.columns(columns)
        assert layout.rows_shown >= layout.rows(rows)
        assert layout.wide <= 4 * layout.tall
        assert layout.tall <= 4 * layout.wide
        room, half_lines = width - layout.gutter, 2 * (height - layout.header - layout.has_bar)
        assert layout.across == 1 or -(-columns // (layout.across - 1)) > room
        assert layout.down == 1 or -(-rows // (layout.down - 1)) > half_lines
    else:
        assert (layout.wide, layout.tall) == ((1, 1) if size is CellSize.HALF else (2, 2))
        assert (layout.down, layout.across) == (1, 1)


@given(st.integers(2, 8), st.integers(0, 50))
def test_the_cursors_line_lies_in_its_row(tall: int, unit: int) -> None:
    """Both of its halves belong to the unit."""
    layout = fit_layout(40, 10, (3, 3), CellSize.FULL, gutter=1)._replace(tall=tall)
    line = layout.cursor_line(unit)
    assert {2 * line // tall, (2 * line + 1) // tall} == {unit}


@given(st.integers(10, 120), st.integers(1, 200), st.sampled_from(CellSize), st.data())
def test_numbers_stand_above_their_columns(width: int, total: int, size: CellSize, data: st.DataObject) -> None:
    """Each is whole, at its place, apart from the next; the cursor's is there wherever it fits."""
    layout = fit_layout(width, 20, (10, total), size, gutter=2)
    left = data.draw(st.integers(0, max(0, layout.columns(total) - layout.columns_shown)))
    here = data.draw(st.integers(left * layout.across, min(total, (left + layout.columns_shown) * layout.across) - 1))
    line, begin, end = axis_line(layout, left, total, lambda place: str(place + 1), here, has_names=False)
    assert len(line) == layout.columns_shown * layout.wide
    for word in line.split():
        places = [place for place in range(total) if str(place + 1) == word]
        assert len(places) == 1
        place = (places[0] // layout.across - left) * layout.wide
        assert line[place : place + len(word)] == word
    if (here // layout.across - left) * layout.wide + len(str(here + 1)) <= len(line):
        assert line[begin:end] == str(here + 1)
