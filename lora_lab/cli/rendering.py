"""Any Report as plain text: scalars, then tables that fit the terminal; nothing is coloured and nothing is obeyed."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len, set_cell_size

from lora_lab.cli.grids import grid
from lora_lab.domain import figures
from lora_lab.domain.report import ColumnKind
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.domain.report import Column, Report, Scalars, Table

_NARROWEST_TEXT: Final = 12
_WIDEST_CURVE: Final = 16
_GAP: Final = "  "
_UNBOUNDED: Final = 10_000
_MOST_LISTED: Final = 8
_NONE: Final = "none"
_DRAWN: Final = (ColumnKind.HEATMAP, ColumnKind.RECORDS)  # too much for one cell
_RIGHT: Final = frozenset({ColumnKind.INTEGER, ColumnKind.NUMBER, ColumnKind.BYTES, ColumnKind.SHAPE})


def render(report: Report, *, width: int | None = None) -> Iterator[str]:
    """Lines of a report for a person.

    Parameters
    ----------
    width : cells; that of the terminal when None, and unbounded where stdout is none and COLUMNS is not set
    """
    room = width or _width()
    is_first = True
    for group in report.scalars:
        if not is_first:
            yield ""
        is_first = False
        yield from _scalars(group, room)
    for table in report.tables:
        if not table.rows:
            continue
        if not is_first:
            yield ""
        is_first = False
        yield from _table(table, room)


def _width() -> int:
    return shutil.get_terminal_size((_UNBOUNDED if not sys.stdout.isatty() else 80, 24)).columns


def _scalars(group: Scalars, room: int) -> Iterator[str]:
    lines = [column for column in group.columns if column.kind is not ColumnKind.HEATMAP and not column.is_wide]
    longest = max((cell_len(column.heading) for column in lines), default=0)
    for column in lines:
        value = group.values.get(column.id)
        if column.kind is ColumnKind.LIST and value is not None and len(value) > _MOST_LISTED:
            value = [*value[:_MOST_LISTED], f"and {len(value) - _MOST_LISTED} more"]
        yield f"{set_cell_size(column.heading, longest)}{_GAP}{_cell(column, value) or _NONE}"
    for column in group.columns:
        if column.kind is ColumnKind.HEATMAP and group.values.get(column.id):
            yield from grid(column, group.values[column.id], room)


def _table(table: Table, room: int) -> Iterator[str]:
    columns = [column for column in _flat(table.columns, table.rows) if _is_said(column, table.rows, table.key)]
    cells = [[_cell(column, _value(row, column)) for column in columns] for row in table.rows]
    widths = [
        max(cell_len(column.heading), max((cell_len(row[place]) for row in cells), default=0))
        for place, column in enumerate(columns)
    ]
    kept = _fit(columns, widths, room)
    yield table.title
    yield _line([columns[place].heading for place in kept], kept, columns, widths)
    for row in cells:
        yield _line([row[place] for place in kept], kept, columns, widths)
    left_out = [columns[place].title for place in range(len(columns)) if place not in kept]
    if len(table.rows) == 1:
        for column in table.columns:
            if column.kind is ColumnKind.HEATMAP and not column.is_wide and table.rows[0].get(column.id):
                yield ""
                yield from grid(column, table.rows[0][column.id], room)
    if left_out:
        yield _shortened(f"+ {', '.join(left_out)} (in a wider terminal, or with --json)", room)


def _flat(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Iterator[Column]:
    """Columns, each mapping opened into one for every key."""
    from dataclasses import replace

    for column in columns:
        if column.kind is ColumnKind.MAPPING:
            keys: Mapping[str, Any] = next((row[column.id] for row in rows if row.get(column.id)), {})
            for key in keys:
                shown = f"{column.title} {key}"
                yield replace(column, id=f"{column.id}\0{key}", title=shown, kind=ColumnKind.NUMBER)
        elif column.kind not in _DRAWN:
            yield column


def _value(row: Mapping[str, Any], column: Column) -> Any:
    name, _, key = column.id.partition("\0")
    value = row.get(name)
    return value.get(key) if key and value is not None else value


def _is_said(column: Column, rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether a column says anything in these rows."""
    return column.id == key or any(_value(row, column) not in (None, "", [], ()) for row in rows)


def _fit(columns: Sequence[Column], widths: list[int], room: int) -> list[int]:
    """Places of the columns that fit; wide ones go first, then the last ones, and long texts are shortened."""
    kept = list(range(len(columns)))

    def taken() -> int:
        return sum(widths[place] for place in kept) + len(_GAP) * (len(kept) - 1)

    for place in [place for place in kept if columns[place].is_wide]:
        if taken() > room:
            kept.remove(place)
    for place in sorted(kept, key=lambda place: -widths[place]):
        if columns[place].kind in (ColumnKind.TEXT, ColumnKind.LIST) and taken() > room and place:
            widths[place] = max(min(widths[place], _NARROWEST_TEXT), widths[place] - (taken() - room))
    while taken() > room and len(kept) > 2:
        kept.pop(-1 if not _is_problem(columns[kept[-1]]) else -2)
    if taken() > room and kept:
        widths[kept[0]] = max(_NARROWEST_TEXT, widths[kept[0]] - (taken() - room))
    return kept


def _is_problem(column: Column) -> bool:
    return column.id in ("error", "errors", "refused")


def _line(cells: Sequence[str], kept: Sequence[int], columns: Sequence[Column], widths: Sequence[int]) -> str:
    shown = []
    for cell, place in zip(cells, kept, strict=True):
        width = widths[place]
        text = _shortened(cell, width)
        blank = " " * (width - cell_len(text))
        shown.append(blank + text if columns[place].kind in _RIGHT else text + blank)
    return _GAP.join(shown).rstrip()


def _shortened(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    head = width // 2
    return f"{set_cell_size(text, head)}…{text[-(width - head - 1) :]}"


def _cell(column: Column, value: Any) -> str:
    """One value; what a file said is escaped."""
    if value is None:
        return figures.NOT_THERE
    kind = column.kind
    if isinstance(value, bool):
        return "yes" if value else "no"
    if kind is ColumnKind.VALUE and isinstance(value, dict):  # settings, as --param takes them
        return ", ".join(f"{safe_text(name)}={_cell(column, one)}" for name, one in value.items()) or _NONE
    if kind is ColumnKind.VALUE and not isinstance(value, str | int | float):
        return safe_text(json.dumps(value, ensure_ascii=False))
    if kind is ColumnKind.BYTES:
        return figures.size(value)
    if kind is ColumnKind.INTEGER or isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if kind is ColumnKind.NUMBER and isinstance(value, float):
        return figures.number(value) if not value.is_integer() or abs(value) >= _UNBOUNDED else f"{value:.0f}"
    if kind is ColumnKind.SHAPE:
        return "×".join(str(side) for side in value)
    if kind is ColumnKind.LIST:
        return safe_text(", ".join(str(item) for item in value))
    if kind is ColumnKind.CURVE:
        return figures.bars(_sampled(value))
    return safe_text(value)


def _sampled(values: Sequence[float | None]) -> list[float | None]:
    """At most sixteen of the values, evenly spaced, the first and the last among them."""
    if len(values) <= _WIDEST_CURVE:
        return list(values)
    step = (len(values) - 1) / (_WIDEST_CURVE - 1)
    return [values[round(place * step)] for place in range(_WIDEST_CURVE)]
