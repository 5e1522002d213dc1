"""From rows of a Report to something to draw: spectra of one module, and any other row's curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import Column, ColumnKind
from lora_lab.tui.plots.series import (
    Drawing,
    Level,
    Series,
    Vertical,
    View,
    cumulative_shares,
    plain_points,
    points_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENERGY_SHARE: Final = "0.9"
_WAITING: Final = "…"
_NOT_FINITE: Final = "No spectrum: the factors hold NaN or infinity, or their product exceeds float64."


@dataclass(frozen=True, slots=True)
class Spectrum:
    """One adapter's singular values of one module, as far as they are known.

    ``values`` is None until they are; ``reason`` then says why they will not come, and is empty while they may.
    """

    name: str
    values: tuple[float | None, ...] | None = None
    energy_rank: int | None = None
    reason: str = ""

    @classmethod
    def of_row(cls, name: str, row: Mapping[str, Any]) -> Spectrum:
        """Take it from a row of the spectrum's table."""
        if row["singular_values"] is None:
            return cls(name, reason=_NOT_FINITE)
        shares = row.get("energy_rank") or {}
        return cls(name, tuple(row["singular_values"]), shares.get(ENERGY_SHARE))


def spectrum_drawing(spectra: Sequence[Spectrum], view: View) -> Drawing:
    """Draw `spectra` over each other; the first one's energy rank is the vertical line."""
    series = tuple(Series(spectrum.name, points_of(spectrum.values or (), view)) for spectrum in spectra)
    first = spectra[0] if spectra else Spectrum("")
    has_line = first.energy_rank is not None and bool(series[0].points.indices)
    return Drawing(
        series,
        y_title=view.y_title,
        is_logarithmic=view.has_log_axis,
        verticals=(Vertical(float(first.energy_rank or 0), "r@90"),) if has_line else (),
        bottom=0.0 if view.is_energy else None,
        top=104.0 if view.is_energy else None,
        note=_note(first, view),
    )


def _note(spectrum: Spectrum, view: View) -> str:
    """What of the first spectrum is not drawn, and why."""
    values = spectrum.values
    if values is None:
        return spectrum.reason or _WAITING
    if not any(value for value in values):
        if view.has_log_axis:
            return "ΔW is zero: every σ is 0, and 0 has no place on a logarithmic axis."
        if view.is_energy or view.is_normalised:
            return "ΔW is zero: a share of it is undefined."
        return "ΔW is zero: every σ is 0."
    zeros = sum(not value for value in values)
    if zeros and view.has_log_axis:
        return f"{zeros} of {len(values)} values are 0: not on a log axis"
    return ""


def readout(spectrum: Spectrum, index: int | None, *, is_short: bool = False) -> str:
    """Say what stands at k = `index`: σ with the digits of the report, and the share of the energy up to there.

    Examples
    --------
    >>> readout(Spectrum("a", (0.3, 0.1)), 2)
    'k=2  σ=0.1  cumulative 100.00 %'
    """
    values = spectrum.values
    if values is None:
        return spectrum.reason or _WAITING
    if index is None:
        return f"k = 1 … {len(values)}: ⏎, then ← and → read the values"
    if not 1 <= index <= len(values):
        return f"k={index}  beyond r = {len(values)}"
    value = values[index - 1]
    shares = cumulative_shares(values)
    energy = f"{100 * shares[index - 1]:.2f} %" if shares else "undefined"
    word = "cum." if is_short else "cumulative"
    return f"k={index}  σ={'undefined' if value is None else repr(value)}  {word} {energy}"


def curve_columns(columns: Sequence[Column]) -> list[Column]:
    """Those that can be drawn over their index."""
    return [column for column in columns if column.kind is ColumnKind.CURVE]


def row_drawing(columns: Sequence[Column], row: Mapping[str, Any]) -> Drawing:
    """Draw every curve of `row`, and its marker columns as levels.

    Curves share one axis: logarithmic when every column asks for it.
    """
    curves = [column for column in curve_columns(columns) if row.get(column.id)]
    if not curves:
        return Drawing((), "", note="This row has no curve.")
    is_logarithmic = all(column.is_logarithmic for column in curves)
    series = tuple(
        Series(column.title, plain_points(row[column.id], is_logarithmic=is_logarithmic)) for column in curves
    )
    units = {column.unit for column in curves if column.unit}
    axis = f"{', '.join(sorted(units))} (log axis)" if units and is_logarithmic else ", ".join(sorted(units))
    drawing = Drawing(
        series,
        y_title=axis or ("log axis" if is_logarithmic else ""),
        x_title=curves[0].index_title or "index",
        is_logarithmic=is_logarithmic,
        levels=tuple(_levels(columns, row, is_logarithmic)),
    )
    if drawing.is_empty:
        return Drawing(series, drawing.y_title, note="No value of this row can be drawn: all are zero or undefined.")
    return drawing


def _levels(columns: Sequence[Column], row: Mapping[str, Any], is_logarithmic: bool) -> list[Level]:
    found = []
    for column in columns:
        value = row.get(column.id) if column.is_marker else None
        if value is None or not math.isfinite(value) or (is_logarithmic and value <= 0.0):
            continue
        found.append(Level(math.log10(value) if is_logarithmic else float(value), column.title))
    return found


def row_readout(columns: Sequence[Column], row: Mapping[str, Any], index: int | None) -> str:
    """Say what every curve of `row` is at `index`, with the digits of the report."""
    curves = [column for column in curve_columns(columns) if row.get(column.id)]
    if index is None or not curves:
        return ""
    parts = [f"{curves[0].index_title or 'index'}={index}"]
    for column in curves:
        values = row[column.id]
        value = values[index - 1] if 1 <= index <= len(values) else None
        parts.append(f"{column.title} {'undefined' if value is None else repr(value)}")
    return "  ".join(parts)
