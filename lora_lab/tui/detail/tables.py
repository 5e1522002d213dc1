"""Any table of a Report as a table on screen: columns from their declarations, cells from the rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from textual import on

from lora_lab.domain.modules import natural_key
from lora_lab.domain.report import ColumnKind
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.detail.outline import short_labels
from lora_lab.tui.export import Copied, ExportDocument, as_tsv
from lora_lab.tui.widgets.table import Cell, LabTable, TableColumn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from textual.binding import BindingType

    from lora_lab.domain.report import Column, Table

_DRAWN: Final = (ColumnKind.CURVE, ColumnKind.HEATMAP)
_NUMERIC: Final = (
    ColumnKind.INTEGER,
    ColumnKind.NUMBER,
    ColumnKind.BYTES,
    ColumnKind.MAPPING,
    ColumnKind.RECORDS,
)
_WIDEST: Final = 44
_WIDEST_KEY: Final = 28
_LEAST: Final = 7
_SEEN: Final = 200
_UNBOUNDED: Final = 10_000  # a whole number below it is written as one
_NO_COLUMN: Final = TableColumn("", "", 4, is_flexible=True, is_fixed=True)  # until a report says which


class Field(NamedTuple):
    """One column on screen: a column of the table, or one entry of a mapping."""

    id: str
    title: str
    column: Column
    entry: str | None = None

    def value(self, row: Mapping[str, Any]) -> Any:
        """Its value in `row`, at full precision."""
        value = row.get(self.column.id)
        return (value or {}).get(self.entry) if self.entry is not None else value

    @property
    def is_numeric(self) -> bool:
        """Whether its values are numbers, or counted."""
        return self.column.kind in _NUMERIC


def fields_of(table: Table, first: Sequence[str] = ()) -> list[Field]:
    """Columns to show: all but curves and matrices, a mapping once for each of its keys.

    The key comes first, then those of `first` in that order, then the rest as declared, wide ones last.
    """
    fields: list[Field] = []
    for column in table.columns:
        if column.kind in _DRAWN:
            continue
        if column.kind is not ColumnKind.MAPPING:
            fields.append(Field(column.id, column.title, column))
            continue
        keys = dict.fromkeys(key for row in table.rows for key in (row.get(column.id) or {}))
        fields.extend(Field(f"{column.id}.{key}", f"{column.title} {key}", column, key) for key in keys)
    places = {name: place for place, name in enumerate(first)}

    def place(field: Field) -> tuple[bool, int, bool]:
        return (field.column.id != table.key, places.get(field.id, len(places)), field.column.is_wide)

    return sorted(fields, key=place)


def cell_text(value: Any, kind: ColumnKind) -> str:
    """Write one value of a report on one line.

    Examples
    --------
    >>> cell_text([128, 896], ColumnKind.SHAPE), cell_text(None, ColumnKind.NUMBER), cell_text(3, ColumnKind.INTEGER)
    ('128×896', '—', '3')
    """
    if value is None:
        return text.NOT_THERE
    if kind is ColumnKind.RECORDS and isinstance(value, list | tuple):
        return str(len(value))
    if kind is ColumnKind.VALUE and isinstance(value, list | tuple | dict):
        return safe_text(json.dumps(value, ensure_ascii=False, default=str))
    if isinstance(value, list | tuple):
        return safe_text(("×" if kind is ColumnKind.SHAPE else ", ").join(map(str, value)))
    if kind is ColumnKind.BYTES and isinstance(value, int):
        return text.size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < _UNBOUNDED else text.number(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return safe_text(value)


class ReportTable(LabTable, inherit_bindings=False):
    """Rows of a Report; ``s`` sorts by the column under the cursor."""

    ALLOW_MAXIMIZE = True
    HELP_TITLE = "Table"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            # l is the logarithmic axis of this screen; the arrow moves to the right.
            binding
            if getattr(binding, "id", "") != "table.right"
            else bindings.key("right", "column(1)", "Right", "Move to the next column", id="table.right")
            for binding in LabTable.BINDINGS
        ),
        bindings.key(
            "s", "sort", "Sort", "Sort by the column of the cursor; again to turn it round", id="table.sort", show=True
        ),
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__((_NO_COLUMN,), self._shown_cell, id=id)
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.fields: dict[str, Field] = {}
        self._natural: tuple[str, ...] = ()
        self._labels: dict[str, str] = {}  # what stands in the first column
        self._pending: frozenset[str] = frozenset()

    def show_table(
        self,
        table: Table,
        *,
        pending: Sequence[str] = (),
        first: Sequence[str] = (),
        order: tuple[str, bool] | None = None,
    ) -> None:
        """Show the rows of `table`.

        Parameters
        ----------
        pending : keys of rows that are not computed yet
        first : ids of columns that stand beside the key
        order : column to sort by and whether descending; None keeps the order there was
        """
        fields = fields_of(table, first)
        self.fields = {field.id: field for field in fields}
        keys = [str(row.get(table.key, place)) for place, row in enumerate(table.rows)]
        if len(set(keys)) < len(keys):
            keys = [f"{place} {key}" for place, key in enumerate(keys)]
        self.rows = dict(zip(keys, table.rows, strict=True))
        self._pending = frozenset(pending)
        self._natural = tuple(pending) if pending else tuple(keys)
        named = short_labels(self._natural) if table.key == "module" else self._natural
        self._labels = {key: safe_text(label) for key, label in zip(self._natural, named, strict=True)}
        self.columns = tuple(
            _key_column(field, self._labels.values()) if place == 0 else _table_column(field, table)
            for place, field in enumerate(fields)
        )
        if order is not None:
            self.sorted_by = order
        if self.sorted_by[0] not in self.fields:
            self.sorted_by = ("", False)
        self.lay_out()

    def lay_out(self) -> None:
        """Put the rows in order."""
        by, is_descending = self.sorted_by
        if by in self.fields:
            field = self.fields[by]
            pairs = [(field.value(self.rows[key]) if key in self.rows else None, key) for key in self._natural]
            known = [pair for pair in pairs if pair[0] is not None]
            kind = self.fields[by].column.kind
            known.sort(key=lambda pair: _sort_key(pair[0], kind), reverse=is_descending)
            self.set_rows([key for _, key in known] + [key for value, key in pairs if value is None])
        else:
            self.set_rows(self._natural)

    def _shown_cell(self, key: str, column: str) -> Cell:
        if column == self.columns[0].id:
            return Cell(self._labels.get(key, ""))
        field, row = self.fields[column], self.rows.get(key)
        if row is None:
            return Cell(text.PENDING, "dim")
        shown = cell_text(field.value(row), field.column.kind)
        return Cell(shown, "dim" if shown == text.NOT_THERE else "")

    def action_sort(self) -> None:
        """Sort by the column of the cursor, or turn the order round."""
        if self.fields:
            self.sort_by(self.columns[self.column].id)

    def sort_by(self, column: str) -> None:
        """Sort, numbers from the largest; again: the other way round; once more: as the report has it."""
        by, is_descending = self.sorted_by
        starts = self.fields[column].is_numeric
        if by != column:
            self.sorted_by = (column, starts)
        elif is_descending == starts:
            self.sorted_by = (column, not starts)
        else:
            self.sorted_by = ("", False)
        self.lay_out()

    @on(LabTable.HeaderClicked)
    def _header_clicked(self, message: LabTable.HeaderClicked) -> None:
        message.stop()
        if message.column in self.fields:
            self.sort_by(message.column)

    @property
    def row(self) -> Mapping[str, Any] | None:
        """The row under the cursor."""
        return self.rows.get(self.cursor_key or "")

    def copied(self) -> Copied | None:
        """The row under the cursor with its header, at full precision, curves and all."""
        row = self.row
        if row is None:
            return None
        return Copied(f"the row {safe_text(self.cursor_key, limit=40)}", as_tsv(list(row), [list(row.values())]))

    def document(self, name: str) -> ExportDocument:
        """All rows in the order of the screen."""
        rows = [self.rows[key] for key in self.keys if key in self.rows]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return ExportDocument(name, columns, [[row.get(column) for column in columns] for row in rows])


def _sort_key(value: Any, kind: ColumnKind) -> Any:
    if kind is ColumnKind.RECORDS and isinstance(value, list | tuple):
        return len(value)
    if kind is ColumnKind.VALUE:  # of any type: as it is written
        return natural_key(cell_text(value, kind))
    if isinstance(value, str):
        return natural_key(value)
    if isinstance(value, list | tuple):
        return tuple(map(str, value)) if any(isinstance(item, str) for item in value) else tuple(value)
    return value


def _key_column(field: Field, labels: Iterable[str]) -> TableColumn:
    longest = max(map(len, labels), default=_LEAST)
    width = max(_LEAST, min(_WIDEST_KEY, longest))
    return TableColumn(field.id, safe_text(field.title), width, is_flexible=True, is_fixed=True)


def _table_column(field: Field, table: Table) -> TableColumn:
    kind, title = field.column.kind, safe_text(field.title if field.entry else field.column.heading)
    # The first rows tell how wide the others are; what is wider is cut.
    seen = [cell_text(field.value(row), kind) for row in table.rows[:_SEEN]]
    longest = max(map(len, seen), default=_LEAST)
    room = 1  # for the arrow of the sorted column
    return TableColumn(field.id, title, max(len(title) + room, min(_WIDEST, longest)), is_right=field.is_numeric)
