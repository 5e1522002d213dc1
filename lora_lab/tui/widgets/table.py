"""A table that draws only the lines one sees, so that ten thousand rows cost as much as twenty.

Rows are known by their keys; what a cell shows is asked for when the cell is drawn. The cursor belongs to a key, not
to a line: it stays on the same row through sorting, filtering and rescans. Columns are shown whole or not at all;
those that do not fit are reached by moving the column cursor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.text import fit
from lora_lab.tui.widgets.columns import Cell, TableColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual import events
    from textual.binding import BindingType

__all__ = ["Cell", "LabTable", "TableColumn", "fit"]

_GAP: Final = 2


class LabTable(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows under a header that stays; see the module's text.

    Parameters
    ----------
    columns : from left to right; the fixed ones first
    cell : what to show, of a row's key and a column's id
    """

    HELP_TITLE = "Table"
    DEFAULT_CSS = """
    LabTable {
        background: $background;
        scrollbar-gutter: auto;
        overflow-x: hidden;
        overflow-y: auto;
        & > .labtable--header { color: $foreground 75%; background: $panel; text-style: bold; }
        & > .labtable--sorted { color: $text-accent; }
        & > .labtable--dim { color: $foreground 60%; }
        & > .labtable--good { color: $text-success; }
        & > .labtable--warn { color: $text-warning; }
        & > .labtable--bad { color: $text-error; }
        & > .labtable--a { color: $mark-a; text-style: bold; }
        & > .labtable--b { color: $mark-b; text-style: bold; }
        & > .labtable--cursor {
            background: $block-cursor-blurred-background;
            color: $block-cursor-blurred-foreground;
        }
        &:focus > .labtable--cursor {
            background: $block-cursor-background;
            color: $block-cursor-foreground;
            text-style: $block-cursor-text-style;
        }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "labtable--header",
        "labtable--sorted",
        "labtable--cursor",
        *(f"labtable--{tone}" for tone in ("dim", "good", "warn", "bad", "a", "b")),
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("enter", "open", "Open", "Open the row under the cursor", id="table.open", show=True),
        bindings.key("down,j", "cursor_down", "Down", "Move down", id="cursor.down"),
        bindings.key("up,k", "cursor_up", "Up", "Move up", id="cursor.up"),
        bindings.key("right,l", "column(1)", "Right", "Move to the next column", id="table.right"),
        bindings.key("left,h", "column(-1)", "Left", "Move to the column before", id="table.left"),
        bindings.key("g,home,ctrl+home", "cursor_first", "Top", "Move to the first row", id="cursor.first"),
        bindings.key("G,end,ctrl+end", "cursor_last", "Bottom", "Move to the last row", id="cursor.last"),
        bindings.key("pagedown", "page(1)", "Page down", "Move down by a page", id="table.page_down"),
        bindings.key("pageup", "page(-1)", "Page up", "Move up by a page", id="table.page_up"),
    ]

    cursor: reactive[int] = reactive(0)  # line of the cursor, from 0
    column: reactive[int] = reactive(0)  # column of the cursor
    sorted_by: reactive[tuple[str, bool]] = reactive(("", False))  # column id, descending

    @dataclass
    class TableMessage(Message):
        """Something that happened in a table."""

        table: LabTable

        @property
        def control(self) -> LabTable:
            """The table."""
            return self.table

    @dataclass
    class CursorMoved(TableMessage):
        """The cursor is on another row; None when there is none."""

        key: str | None

    @dataclass
    class Opened(TableMessage):
        """Enter or a double click."""

        key: str

    @dataclass
    class HeaderClicked(TableMessage):
        """A click on a column's title."""

        column: str

    class ViewportChanged(TableMessage):
        """Other rows can be seen than before."""

    def __init__(self, columns: Sequence[TableColumn], cell: Callable[[str, str], Cell], **options: Any) -> None:
        super().__init__(**options)
        self.columns = tuple(columns)
        self._cell = cell
        self._keys: tuple[str, ...] = ()
        self._lines: dict[str, int] = {}
        self._first_column = 0  # of those that are not fixed
        self._announced: str | None = None

    # Rows

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the rows, from above."""
        return self._keys

    @property
    def cursor_key(self) -> str | None:
        """Key of the row under the cursor."""
        return self._keys[self.cursor] if self._keys else None

    def set_rows(self, keys: Sequence[str], *, cursor: str | None = None) -> None:
        """Show these rows.

        Parameters
        ----------
        keys : each once
        cursor : where the cursor goes if that row is there; by default it stays on its row, or its line
        """
        wanted = cursor if cursor is not None else self.cursor_key
        offset = self.cursor - round(self.scroll_offset.y)
        self._keys = tuple(keys)
        self._lines = {key: line for line, key in enumerate(self._keys)}
        line = self._lines.get(wanted or "", min(self.cursor, max(0, len(self._keys) - 1)))
        self._measure()
        with self.prevent(LabTable.CursorMoved):
            self.cursor = line
        # The row keeps its place on the screen where that is possible.
        self.scroll_to(y=max(0, line - offset), animate=False, immediate=True, force=True)
        self._show_cursor()
        self._announce()
        self.refresh()
        self.post_message(self.ViewportChanged(self))

    def widen(self, column_id: str, width: int) -> None:
        """Give a column another width."""
        changed = tuple(replace(column, width=width) if column.id == column_id else column for column in self.columns)
        if changed != self.columns:
            self.columns = changed
            self.watch_column()

    def move_to(self, key: str) -> bool:
        """Put the cursor on the row of `key`; False when there is no such row."""
        if key not in self._lines:
            return False
        self.cursor = self._lines[key]
        return True

    def refresh_row(self, key: str) -> None:
        """Draw one row again, if it can be seen."""
        line = self._lines.get(key)
        if line is not None:
            self._refresh_line(line)

    def _refresh_line(self, line: int) -> None:
        y = line + 1 - round(self.scroll_offset.y)
        if 1 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def visible_keys(self) -> tuple[str, ...]:
        """Keys of the rows that can be seen, from above."""
        top = round(self.scroll_offset.y)
        return self._keys[top : top + self.page_rows]

    @property
    def page_rows(self) -> int:
        """How many rows there is room for."""
        return max(1, self.size.height - 1)

    def _measure(self) -> None:
        self.virtual_size = Size(self.size.width, len(self._keys) + 1)

    def _announce(self) -> None:
        if self.cursor_key != self._announced:
            self._announced = self.cursor_key
            self.post_message(self.CursorMoved(self, self.cursor_key))

    def _show_cursor(self) -> None:
        top = round(self.scroll_offset.y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True, force=True)
        elif self.cursor >= top + self.page_rows:
            self.scroll_to(y=self.cursor - self.page_rows + 1, animate=False, immediate=True, force=True)

    def validate_cursor(self, cursor: int) -> int:
        """Keep the cursor on a row."""
        return max(0, min(cursor, len(self._keys) - 1))

    def validate_column(self, column: int) -> int:
        """Keep the column cursor on a column."""
        return max(0, min(column, len(self.columns) - 1))

    def watch_cursor(self, old: int, new: int) -> None:
        """Follow the cursor; draw only the two lines that changed, unless the table scrolled."""
        before = self.scroll_offset
        self._show_cursor()
        if self.scroll_offset == before:
            for line in (old, new):
                self._refresh_line(line)
        self._announce()

    def watch_column(self) -> None:
        """Bring the column into view."""
        place = self.column - sum(column.is_fixed for column in self.columns)  # among those that scroll
        if place >= 0:
            self._first_column = min(self._first_column, place)
            while self._first_column < place and self.columns[self.column] not in self._shown_columns():
                self._first_column += 1
        self.refresh()

    def _shown_columns(self) -> list[TableColumn]:
        return [column for column, _ in self.layout_columns()]

    def watch_sorted_by(self) -> None:
        """Draw the arrow elsewhere."""
        self.refresh()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Say that other rows can be seen."""
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value):
            self.post_message(self.ViewportChanged(self))

    def on_resize(self) -> None:
        """Lay out again."""
        self._measure()
        if self.columns:
            self.watch_column()
        self._show_cursor()
        self.post_message(self.ViewportChanged(self))

    # Drawing

    def layout_columns(self) -> list[tuple[TableColumn, int]]:
        """The columns that fit, whole, each with its width; what is left over goes to the flexible one."""
        fixed = [column for column in self.columns if column.is_fixed]
        others = [column for column in self.columns if not column.is_fixed][self._first_column :]
        shown: list[TableColumn] = []
        used = 0
        for column in (*fixed, *others):
            wanted = column.width + (_GAP if shown else 0)
            if shown and not column.is_fixed and used + wanted > self.size.width - 1:
                break
            shown.append(column)
            used += wanted
        spare = max(0, self.size.width - 1 - used)
        flexible = next((column for column in shown if column.is_flexible), None)
        return [(column, column.width + (spare if column is flexible else 0)) for column in shown]

    def render_line(self, y: int) -> Strip:
        """Draw the header, or one row."""
        width = self.size.width
        layout = self.layout_columns()
        if y == 0:
            return self._header(layout, width)
        line = round(self.scroll_offset.y) + y - 1
        if not 0 <= line < len(self._keys):
            return Strip.blank(width, self.rich_style)
        key = self._keys[line]
        is_cursor = line == self.cursor
        row_style = self.rich_style
        if is_cursor:
            row_style = self.get_component_rich_style("labtable--cursor")
        segments = []
        for index, (column, room) in enumerate(layout):
            text, tone = self._cell(key, column.id)
            style = row_style
            if tone and not is_cursor:  # on the cursor's row every text has the colour chosen for that background
                style = self.get_component_rich_style(f"labtable--{tone}")
            gap = " " * (_GAP if index else 0)
            segments.append(Segment(gap, row_style))
            text = safe_text(text, limit=room) if column.keeps_end else text
            segments.append(Segment(fit(text, room, column.is_right), style))
        return Strip(segments).adjust_cell_length(width, row_style).apply_meta({"line": line})

    def _header(self, layout: list[tuple[TableColumn, int]], width: int) -> Strip:
        plain = self.get_component_rich_style("labtable--header")
        marked = plain + self.get_component_rich_style("labtable--sorted", partial=True)
        by, is_descending = self.sorted_by
        segments = []
        for index, (column, room) in enumerate(layout):
            title, style, gap = column.title, plain, _GAP if index else 0
            if column.id == by:
                title, style = f"{title}{'▼' if is_descending else '▲'}", marked
                if cell_len(title) > room and column.is_right and gap:  # the arrow may stand in the gap
                    gap, room = gap - 1, room + 1
            # The title itself is underlined, not the padding beside it.
            text = fit(title, room, column.is_right)
            bare = text.strip()
            before, _, after = text.partition(bare) if bare else (text, "", "")
            is_here = self.columns[self.column] is column and self.has_focus
            segments += [
                Segment(" " * gap + before, plain),
                Segment(bare, style + Style(underline=True) if is_here else style),
                Segment(after, plain),
            ]
        is_more = self.columns[-1] not in self._shown_columns()
        strip = Strip(segments).adjust_cell_length(width - 1, plain)
        return Strip([*strip, Segment("›" if is_more else " ", plain)])

    # Keys and mouse

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if self.cursor_key is not None:
            self.post_message(self.Opened(self, self.cursor_key))

    def action_cursor_down(self) -> None:
        """Move down."""
        self.cursor += 1

    def action_cursor_up(self) -> None:
        """Move up."""
        self.cursor -= 1

    def action_cursor_first(self) -> None:
        """Move to the first row."""
        self.cursor = 0

    def action_cursor_last(self) -> None:
        """Move to the last row."""
        self.cursor = len(self._keys) - 1

    def action_page(self, direction: int) -> None:
        """Move by a page."""
        self.cursor += direction * self.page_rows

    def action_column(self, direction: int) -> None:
        """Move to another column."""
        self.column += direction

    def column_at(self, x: int) -> TableColumn | None:
        """The column drawn at cell `x` of the widget."""
        begin = 0
        for column, room in self.layout_columns():
            begin += room + (_GAP if begin else 0)
            if x < begin:
                return column
        return None

    def on_click(self, event: events.Click) -> None:
        """Sort by a title, move to a row, open it by a double click."""
        column = self.column_at(event.x)
        if event.y == 0:
            if column is not None:
                self.post_message(self.HeaderClicked(self, column.id))
            return
        line = round(self.scroll_offset.y) + event.y - 1
        if 0 <= line < len(self._keys):
            self.cursor = line
            if event.chain == 2:
                self.action_open()
