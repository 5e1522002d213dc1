"""A matrix as plain text: its numbers where they fit, else a shade for each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from lora_lab.domain import figures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.report import Column

    Matrix = Sequence[Sequence[float | None]]

_SHADES: Final = " .:-=+*#%@"
_NUMBER_CELLS: Final = 6


def grid(column: Column, matrix: Matrix, room: int) -> Iterator[str]:
    """Lines that show `matrix` in `room` cells.

    Examples
    --------
    >>> from lora_lab.domain.report import Column, ColumnKind
    >>> print(*grid(Column("phi", "φ", ColumnKind.HEATMAP, index_title="i, j"), [[1.0, 0.25]], 40), sep="\\n")
    φ  (rows i, columns j)
       1    2
    1  1.00 0.25
    """
    width = max((len(row) for row in matrix), default=0)
    rows, _, columns = column.index_title.partition(",")
    about = f"  (rows {rows.strip()}, columns {columns.strip()})" if columns else ""
    yield f"{column.title}{about}"
    margin = len(str(len(matrix)))
    shown = [[_number(value) for value in row] for row in matrix]
    widest = max((len(cell) for row in shown for cell in row), default=1)
    if margin + 2 + (widest + 1) * width <= room:
        yield " " * margin + "  " + " ".join(f"{place + 1:<{widest}}" for place in range(width)).rstrip()
        for place, row in enumerate(shown):
            yield f"{place + 1:>{margin}}  " + " ".join(f"{cell:<{widest}}" for cell in row).rstrip()
        return
    known = [value for row in matrix for value in row if value is not None and math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    step = max(1, math.ceil(width / max(1, room - margin - 2)))
    for place in range(0, len(matrix), step):
        yield f"{place + 1:>{margin}}  " + "".join(_shade(value, low, high) for value in matrix[place][::step])
    thinned = f", every {step}th row and column" if step > 1 else ""
    lightest, darkest = (f"'{shade}' {figures.number(at, 3)}" for shade, at in ((_SHADES[0], low), (_SHADES[-1], high)))
    yield f"{' ' * margin}  {lightest} … {darkest}{thinned}"


def _number(value: float | None) -> str:
    if value is None:
        return figures.NOT_THERE
    return f"{value:.2f}" if abs(value) < _NUMBER_CELLS else figures.number(value, 3)


def _shade(value: float | None, low: float, high: float) -> str:
    if value is None or not math.isfinite(value):
        return "?"
    share = (value - low) / (high - low) if high > low else 0.0
    return _SHADES[round(share * (len(_SHADES) - 1))]
