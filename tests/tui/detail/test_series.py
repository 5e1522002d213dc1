"""Points, limits and ticks of a plot, without a terminal."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.domain.report import Column, ColumnKind
from lora_lab.linalg.measures import energy_rank
from lora_lab.tui.plots.drawings import Spectrum, readout, row_drawing, row_readout, spectrum_drawing
from lora_lab.tui.plots.series import (
    View,
    cumulative_shares,
    index_ticks,
    linear_ticks,
    logarithmic_ticks,
    plain_points,
    points_of,
    vertical_limits,
)

VALUES = [4.0, 2.0, 1.0, 0.5]
spectra = st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=40).map(lambda values: sorted(values, reverse=True))


def test_logarithmic_heights_are_log10() -> None:
    """The axis is logarithmic because the heights are."""
    assert points_of(VALUES, View()).heights == tuple(math.log10(value) for value in VALUES)


def test_linear_heights_are_the_values() -> None:
    """Without the logarithm nothing is changed."""
    assert points_of(VALUES, View(is_logarithmic=False)).heights == tuple(VALUES)


def test_normalised_heights_are_shares_of_the_first() -> None:
    """σ/σ₁ starts at one."""
    assert points_of(VALUES, View(is_logarithmic=False, is_normalised=True)).heights == (1.0, 0.5, 0.25, 0.125)


def test_energy_is_a_percentage_whatever_the_other_two_say() -> None:
    """Energy has an axis of its own."""
    wanted = tuple(100 * sum(v * v for v in VALUES[: k + 1]) / sum(v * v for v in VALUES) for k in range(4))
    for view in (View(is_energy=True), View(is_energy=True, is_logarithmic=False, is_normalised=True)):
        assert points_of(VALUES, view).heights == pytest.approx(wanted, rel=1e-15)
        assert not view.has_log_axis


@given(spectra, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_curve_reaches_a_share_where_the_report_says(values: list[float], share: float) -> None:
    """The energy rank's line stands where the drawn curve passes that share."""
    shares = cumulative_shares(values)
    rank = energy_rank(values, share)
    assert rank is not None
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[rank - 1] >= share - 1e-9
    assert rank == 1 or shares[rank - 2] < share + 1e-9


def test_zeros_and_undefined_values_are_left_out_and_counted() -> None:
    """0 has no logarithm; the plot says how many are missing."""
    drawing = spectrum_drawing([Spectrum("a", (1.0, 0.5, 0.0, None))], View())
    assert drawing.series[0].points.indices == (1, 2)
    assert drawing.note == "2 of 4 values are 0: not on a log axis"


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (View(), "ΔW is zero: every σ is 0, and 0 has no place on a logarithmic axis."),
        (View(is_energy=True), "ΔW is zero: a share of it is undefined."),
        (View(is_logarithmic=False, is_normalised=True), "ΔW is zero: a share of it is undefined."),
    ],
)
def test_a_zero_spectrum_says_why_there_is_nothing(view: View, reason: str) -> None:
    """An empty frame alone would be a riddle."""
    drawing = spectrum_drawing([Spectrum("a", (0.0, 0.0))], view)
    assert drawing.is_empty
    assert drawing.note == reason
    assert drawing.verticals == ()


def test_a_zero_spectrum_is_drawn_on_a_linear_axis() -> None:
    """There zero has a place."""
    drawing = spectrum_drawing([Spectrum("a", (0.0, 0.0))], View(is_logarithmic=False))
    assert drawing.series[0].points.heights == (0.0, 0.0)
    low, high = vertical_limits(drawing)
    assert low <= 0.0 < high


def test_rank_one() -> None:
    """One point has room round it."""
    drawing = spectrum_drawing([Spectrum("a", (2.0,), 1)], View())
    low, high = vertical_limits(drawing)
    assert low < math.log10(2.0) < high
    assert drawing.verticals[0].place == 1.0


def test_readout_has_the_digits_of_the_number() -> None:
    """The digits are those that JSON has."""
    value = 0.1 + 0.2
    assert f"σ={value!r}" in readout(Spectrum("a", (1.0, value)), 2)
    assert readout(Spectrum("a", (1.0,)), 5) == "k=5  beyond r = 1"
    assert readout(Spectrum("a", None, reason="has no module of this name"), 1) == "has no module of this name"
    assert "cumulative undefined" in readout(Spectrum("a", (0.0,)), 1)


@given(st.floats(-300, 300), st.floats(1e-3, 40))
def test_logarithmic_ticks_stand_inside(low: float, span: float) -> None:
    """Ticks are inside the window, rise, and are never too many."""
    ticks = logarithmic_ticks(low, low + span)
    places = [tick.place for tick in ticks]
    assert places == sorted(places)
    assert all(low - 1e-6 <= place <= low + span + 1e-6 for place in places)
    assert len(ticks) <= 10
    assert all(tick.label for tick in ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e9))
def test_linear_ticks_stand_inside(low: float, span: float) -> None:
    """The same for a linear axis."""
    ticks = linear_ticks(low, low + span)
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert all(low - slack <= tick.place <= low + span + slack for tick in ticks)
    assert len(ticks) <= 8


def test_few_powers_of_ten_bring_twos_and_fives() -> None:
    """A window under a decade still has numbers to read."""
    assert [tick.label for tick in logarithmic_ticks(-0.75, -0.1)] == ["0.2", "0.5"]
    assert [tick.label for tick in logarithmic_ticks(math.log10(0.61), math.log10(0.69))]


@given(st.integers(1, 5000))
def test_index_ticks_begin_at_one(last: int) -> None:
    """k counts from 1, and every tick is a whole number."""
    ticks = index_ticks(0.6, last + 0.4)
    assert ticks[0].place == 1
    assert all(float(tick.place).is_integer() and 1 <= tick.place <= last for tick in ticks)
    assert len(ticks) <= 13


COLUMNS = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("observed", "observed", ColumnKind.CURVE, index_title="k", is_logarithmic=True),
    Column("expected", "expected", ColumnKind.CURVE, index_title="k", is_logarithmic=True),
    Column("edge", "edge", is_marker=True),
)


def test_a_row_of_any_report_is_drawn_from_its_declarations() -> None:
    """Curves become series and markers become levels, on the axis that the columns ask for."""
    drawing = row_drawing(COLUMNS, {"module": "a", "observed": [10.0, 1.0], "expected": [1.0], "edge": 0.1})
    assert [series.name for series in drawing.series] == ["observed", "expected"]
    assert drawing.series[0].points == plain_points([10.0, 1.0], is_logarithmic=True)
    assert [(level.name, level.height) for level in drawing.levels] == [("edge", pytest.approx(-1.0))]
    assert (
        row_readout(COLUMNS, {"observed": [10.0, 1.0], "expected": [1.0]}, 2) == "k=2  observed 1.0  expected undefined"
    )


def test_a_row_without_a_curve_says_so() -> None:
    """So does one whose values cannot be drawn."""
    assert row_drawing(COLUMNS, {"module": "a", "observed": None}).note == "This row has no curve."
    assert "all are zero or undefined" in row_drawing(COLUMNS, {"observed": [0.0, None]}).note
    assert row_drawing(COLUMNS, {"observed": [1.0], "edge": None}).levels == ()
