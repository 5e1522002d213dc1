"""A matrix as a table of numbers, with a cursor on one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from textual.message import Message

from lora_lab.tui import text
from lora_lab.tui.widgets.table import Cell, LabTable, TableColumn

if TYPE_CHECKING:
    from textual.binding import BindingType

    from lora_lab.tui.plots.cells import Matrix

_VALUE: Final = 6
_ROWS: Final = "i ↓ j →"


class NumberTable(LabTable, inherit_bindings=False):
    """Rows and columns numbered from 1; the row and the title of the cursor's column are marked."""

    ALLOW_MAXIMIZE = True
    HELP_TITLE = "Numbers"
    BINDINGS: ClassVar[list[BindingType]] = [
        binding for binding in LabTable.BINDINGS if getattr(binding, "id", "") != "table.open"
    ]
    HELP = "The line below says the value under the cursor with all its digits."

    @dataclass
    class PlaceChanged(Message):
        """The cursor is on another number."""

        table: NumberTable

        @property
        def control(self) -> NumberTable:
            """The table, for ``on`` selectors."""
            return self.table

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(_columns(0), self._shown_cell, id=id)
        self.matrix: Matrix = ()

    @property
    def at(self) -> tuple[int, int]:
        """Row and column of the cursor, from 0."""
        return (self.cursor, max(0, self.column - 1))

    def show_matrix(self, matrix: Matrix, at: tuple[int, int]) -> None:
        """Show these numbers with the cursor at a place."""
        self.matrix = matrix
        self.columns = _columns(max((len(row) for row in matrix), default=0))
        rows = [str(place) for place in range(len(matrix))]
        self.set_rows(rows, cursor=str(at[0]))
        self.column = at[1] + 1

    def _shown_cell(self, key: str, column: str) -> Cell:
        row = int(key)
        if column == "i":
            return Cell(str(row + 1), "dim")
        place = int(column)
        values = self.matrix[row]
        value = values[place] if place < len(values) else None
        return Cell(text.fitted(value, _VALUE), "dim" if value is None else "")

    def validate_column(self, column: int) -> int:
        """Stay right of the rows' numbers."""
        return max(1, super().validate_column(column))

    def watch_column(self) -> None:
        """Bring the column into view, and tell."""
        super().watch_column()
        self.post_message(self.PlaceChanged(self))

    def watch_cursor(self, old: int, new: int) -> None:
        """Follow the cursor, and tell."""
        super().watch_cursor(old, new)
        self.post_message(self.PlaceChanged(self))


def _columns(width: int) -> tuple[TableColumn, ...]:
    numbers = (TableColumn(str(place), str(place + 1), _VALUE, is_right=True) for place in range(width))
    return (TableColumn("i", _ROWS, len(_ROWS), is_right=True, is_fixed=True), *numbers)
