"""A matrix as colours: one character cell shows two values above each other, and lightness grows with the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.plots.cells import (
    UNDEFINED,
    CellSize,
    Layout,
    axis_line,
    block_means,
    cell_style,
    colour_of,
    contrasting,
    extent,
    fit_layout,
    share_of,
    tick_step,
)
from lora_lab.tui.text import fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events
    from textual.binding import BindingType

    from lora_lab.domain.report import Column
    from lora_lab.tui.plots.cells import Colour, Matrix

__all__ = ["CellSize", "Heatmap", "colour_of"]

_PAGE: Final = 8
_WHEEL: Final = 3
_SINGLE: Final = (1, 1)  # a block of one value
_SHORTEST_BAR, _LONGEST_BAR = 4, 24


class Heatmap(Widget, can_focus=True):
    """Draws a matrix with its axes and a bar of its colours; the cursor's value keeps the digits of the report.

    Parameters
    ----------
    has_status : whether the last line says the value under the cursor; without it, whoever mounts this listens to
        :class:`CursorMoved` and says it elsewhere
    """

    ALLOW_MAXIMIZE = True
    HELP_TITLE = "Matrix"
    HELP = "Dark is small, light is large; grey is undefined. The line below says the value under the cursor."
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("down,j", "move(1, 0)", "Down", "Move to the next row", id="matrix.down"),
        bindings.key("up,k", "move(-1, 0)", "Up", "Move to the row before", id="matrix.up"),
        bindings.key("right,l", "move(0, 1)", "Right", "Move to the next column", id="matrix.right"),
        bindings.key("left,h", "move(0, -1)", "Left", "Move to the column before", id="matrix.left"),
        bindings.key("pagedown", f"move({_PAGE}, 0)", "Page down", "Move down by eight rows", id="matrix.page_down"),
        bindings.key("pageup", f"move(-{_PAGE}, 0)", "Page up", "Move up by eight rows", id="matrix.page_up"),
        bindings.key("home,g", "move_to('first')", "First", "Move to the first value", id="matrix.first"),
        bindings.key("end,G", "move_to('last')", "Last", "Move to the last value", id="matrix.last"),
        bindings.key(
            "z", "cells", "Cell size", "Fit the matrix into the pane, or half, or whole cells", id="matrix.cells",
            show=True,
        ),
    ]  # fmt: skip
    COMPONENT_CLASSES: ClassVar[set[str]] = {"heatmap--axis", "heatmap--here", "heatmap--note"}
    DEFAULT_CSS = """
    Heatmap {
        height: 1fr;
        width: 1fr;
        min-height: 3;
        & > .heatmap--axis { color: $foreground 65%; }
        & > .heatmap--here { color: $text-accent; text-style: bold; }
        & > .heatmap--note { color: $foreground 80%; }
    }
    """

    at: reactive[tuple[int, int]] = reactive((0, 0))  # row and column of the cursor, from 0
    cell_size: reactive[CellSize] = reactive(CellSize.FIT)

    @dataclass
    class CursorMoved(Message):
        """The cursor is on another value, or another matrix is under it."""

        heatmap: Heatmap
        at: tuple[int, int]

        @property
        def control(self) -> Heatmap:
            """The heatmap, for ``on`` selectors."""
            return self.heatmap

    def __init__(self, *, has_status: bool = True, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.matrix: Matrix = ()
        self.note = ""  # said in the middle while there is no matrix
        self.has_status = has_status
        self._titles = ("i", "j")
        self._low, self._high = 0.0, 1.0
        self._rows: tuple[str, ...] = ()
        self._columns: tuple[str, ...] = ()
        self._origin = (0, 0)  # first unit drawn, row and column
        self._means: tuple[tuple[int, int], Matrix] = (_SINGLE, ())  # by the block they are of

    def show_matrix(
        self,
        column: Column,
        matrix: Matrix,
        *,
        low: float | None = None,
        high: float | None = None,
        rows: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> None:
        """Show one cell of a HEATMAP column.

        Parameters
        ----------
        column : names the axes, and the ends of the scale where the quantity has any
        matrix : rows of numbers; None is undefined
        low, high : ends of the scale, before what `column` says; else the smallest and the largest value
        rows, columns : names of the rows and columns; else they are numbered from 1
        """
        self.matrix = matrix
        titles = [title.strip() for title in column.index_title.split(",")]
        self._titles = (titles[0], titles[1]) if len(titles) == 2 else ("i", "j")
        smallest, largest = extent(matrix)
        self._low = next(end for end in (low, column.low, smallest) if end is not None)
        self._high = next(end for end in (high, column.high, largest) if end is not None)
        self._rows, self._columns = tuple(map(safe_text, rows)), tuple(map(safe_text, columns))
        self._means = (_SINGLE, matrix)
        before = self.at
        self.at = self.validate_at(before)
        if self.at == before:
            self.post_message(self.CursorMoved(self, self.at))
        self.refresh()

    def show_note(self, note: str) -> None:
        """Show words instead of a matrix: what is waited for, or why there is none."""
        self.matrix, self.note, self._means = (), safe_text(note), (_SINGLE, ())
        self.refresh()

    # What there is.

    @property
    def _width(self) -> int:
        return max((len(row) for row in self.matrix), default=0)

    @property
    def value(self) -> float | None:
        """The value under the cursor."""
        row, column = self.at
        return self.matrix[row][column] if row < len(self.matrix) and column < len(self.matrix[row]) else None

    def share(self, value: float | None) -> float | None:
        """Where `value` lies between the ends of the scale."""
        return share_of(value, self._low, self._high)

    def validate_at(self, at: tuple[int, int]) -> tuple[int, int]:
        """Keep the cursor on the matrix; while there is none, where it is."""
        if not self.matrix:
            return self.at
        row, column = at
        return (max(0, min(row, len(self.matrix) - 1)), max(0, min(column, self._width - 1)))

    def _layout(self) -> Layout:
        names = max((len(name) for name in self._columns), default=0)
        gutter = max((len(name) for name in self._rows), default=len(str(len(self.matrix))))
        return fit_layout(
            self.size.width,
            self.size.height - self.has_status,
            (len(self.matrix), self._width),
            self.cell_size,
            gutter=min(gutter, max(4, self.size.width // 3)),
            names=names,
        )

    def _window(self, layout: Layout) -> tuple[int, int]:
        """First unit drawn: moved no further than the cursor asks for."""
        row, column = self.at[0] // layout.down, self.at[1] // layout.across
        rows, columns = layout.rows(len(self.matrix)), layout.columns(self._width)
        top = min(max(min(self._origin[0], row), row - layout.rows_shown + 1), max(0, rows - layout.rows_shown))
        left = min(
            max(min(self._origin[1], column), column - layout.columns_shown + 1),
            max(0, columns - layout.columns_shown),
        )
        self._origin = (max(0, top), max(0, left))
        return self._origin

    def _units(self, block: tuple[int, int]) -> Matrix:
        """The values, or the means of blocks of them."""
        if self._means[0] != block:
            self._means = (block, self.matrix if block == _SINGLE else block_means(self.matrix, *block))
        return self._means[1]

    # Drawing.

    def render_line(self, y: int) -> Strip:
        """Draw the axis above, two rows of pixels, the bar of colours, or the line about the cursor."""
        width, layout = self.size.width, self._layout()
        if not self.matrix or not self._width:
            return self._note_line(y)
        top, left = self._window(layout)
        line = y - layout.header
        drawn = layout.lines(len(self.matrix), top)
        if line < 0:
            segments = self._column_axis(layout, left)
        elif line < drawn:
            segments = self._pixels(layout, line, top, left)
        elif line == drawn and layout.has_bar:
            segments = self._bar(layout, top, left)
        elif self.has_status and line == drawn + layout.has_bar:
            segments = [Segment(self.status(), self.rich_style)]
        else:
            return Strip.blank(width, self.rich_style)
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _note_line(self, y: int) -> Strip:
        width = self.size.width
        lines = Content(self.note).wrap(max(1, width - 2))
        place = y - max(0, (self.size.height - len(lines)) // 2)
        if not self.note or not 0 <= place < len(lines):
            return Strip.blank(width, self.rich_style)
        text = " " * max(0, (width - lines[place].cell_length) // 2) + lines[place].plain
        style = self.get_component_rich_style("heatmap--note")
        return Strip([Segment(text, style)]).adjust_cell_length(width, self.rich_style)

    def _pixels(self, layout: Layout, line: int, top: int, left: int) -> list[Segment]:
        units = self._units((layout.down, layout.across))
        above, below = top + 2 * line // layout.tall, top + (2 * line + 1) // layout.tall
        segments = self._row_label(layout, line, top)
        for column in range(left, min(layout.columns(self._width), left + layout.columns_shown)):
            colours = [self._colour(units, row, column) for row in (above, below)]
            segments.extend(self._cell(layout, line, (top, column), colours))
        return segments

    def _cell(self, layout: Layout, line: int, place: tuple[int, int], colours: list[Colour | None]) -> list[Segment]:
        """One unit's part of a line, with the cursor when it is there."""
        (top, column), (upper, lower) = place, colours
        wide = layout.wide
        here = self.at[0] // layout.down - top
        if self.has_focus and column == self.at[1] // layout.across:
            if layout.tall == 1 and here // 2 == line:  # the cursor takes one half of the cell
                colours = list(colours)
                colours[here % 2] = contrasting(colours[here % 2] or UNDEFINED)
                return [Segment("▀" * wide, cell_style(colours[0] or UNDEFINED, colours[1]))]
            if layout.tall > 1 and line == layout.cursor_line(here):
                shown = upper or UNDEFINED
                text = "◆" if wide == 1 else "[" + " " * (wide - 2) + "]"
                return [Segment(text, cell_style(contrasting(shown), shown) + Style(bold=True))]
        if upper == lower == UNDEFINED or (upper == UNDEFINED and lower is None):
            return [Segment("·" * wide, self.get_component_rich_style("heatmap--axis"))]
        return [Segment("▀" * wide, cell_style(upper or UNDEFINED, lower))]

    def _colour(self, units: Matrix, row: int, column: int) -> Colour | None:
        """Colour of one unit; None below the last row."""
        if row >= len(units):
            return None
        values = units[row]
        return colour_of(self.share(values[column]) if column < len(values) else None)

    def _row_label(self, layout: Layout, line: int, top: int) -> list[Segment]:
        """The number or name of a row, at the left of the line where the row begins."""
        if not layout.gutter:
            return []
        room = layout.gutter - 1
        begins = [top + pixel // layout.tall for pixel in (2 * line, 2 * line + 1) if pixel % layout.tall == 0]
        starts = [unit * layout.down for unit in begins if unit < layout.rows(len(self.matrix))]
        step = 1 if self._rows else tick_step(layout.down / layout.tall * 4)
        covered = [place for start in starts for place in range(start, min(start + layout.down, len(self.matrix)))]
        here = next((place for place in covered if place == self.at[0]), None)
        tick = next((place for place in covered if self._rows or place == 0 or (place + 1) % step == 0), None)
        style = "heatmap--axis"
        if here is not None and self.has_focus:
            tick, style = here, "heatmap--here"
        shown = "" if tick is None else self._rows[tick] if tick < len(self._rows) else str(tick + 1)
        return [Segment(fit(shown, room, not self._rows) + " ", self.get_component_rich_style(style))]

    def _column_axis(self, layout: Layout, left: int) -> list[Segment]:
        """Numbers or names of the columns, as many as there is room for, with the cursor's among them."""

        def named(place: int) -> str:
            if place < len(self._columns):
                return fit(self._columns[place], max(1, layout.wide - 1)).strip()
            return str(place + 1)

        here = self.at[1] if self.has_focus else None
        line, begin, end = axis_line(layout, left, self._width, named, here, has_names=bool(self._columns))
        axis, marked = (self.get_component_rich_style(f"heatmap--{part}") for part in ("axis", "here"))
        return [
            Segment(" " * layout.gutter + line[:begin], axis),
            Segment(line[begin:end], marked),
            Segment(line[end:], axis),
        ]

    def _bar(self, layout: Layout, top: int, left: int) -> list[Segment]:
        """The colours from the smallest to the largest, and what is not shown one to one."""
        axis = self.get_component_rich_style("heatmap--axis")
        low, high = f"{self._low:.4g} ", f" {self._high:.4g}"
        note = self._window_note(layout, top, left)
        left_over = self.size.width - layout.gutter - len(low) - len(high) - len(note) - 2
        room = max(_SHORTEST_BAR, min(_LONGEST_BAR, left_over))
        colours = [colour_of(place / (room - 1)) for place in range(room)]
        bar = [Segment("▀", cell_style(colour, colour)) for colour in colours]
        return [
            Segment(" " * layout.gutter + low, axis),
            *bar,
            Segment(high, axis),
            Segment(f"  {note}" if note else "", self.get_component_rich_style("heatmap--note")),
        ]

    def _window_note(self, layout: Layout, top: int, left: int) -> str:
        """What is averaged, or which part of the matrix is in sight."""
        if (layout.down, layout.across) != _SINGLE:
            return f"means of {layout.down} × {layout.across}"
        parts = []
        for title, first, shown, total in (
            (self._titles[0], top, layout.rows_shown, len(self.matrix)),
            (self._titles[1], left, layout.columns_shown, self._width),
        ):
            if shown < total:
                parts.append(f"{safe_text(title)[:1]} {first + 1}–{min(total, first + shown)} of {total}")
        first_title, second_title = map(safe_text, self._titles)
        return "  ".join(parts) or f"{first_title} ↓  {second_title} →"

    def status(self) -> str:
        """The value under the cursor and, where there is no bar of colours, the ends of the scale."""
        row, column = self.at
        said = "undefined" if self.value is None else repr(self.value)
        first, second = map(safe_text, self._titles)
        names = [
            labels[place] if place < len(labels) else str(place + 1)
            for labels, place in ((self._rows, row), (self._columns, column))
        ]
        ends = "" if self._layout().has_bar else f"   dark {self._low:.4g} … light {self._high:.4g}"
        return f" {first}={names[0]} {second}={names[1]}  {said}{ends}"

    # Moving.

    def watch_at(self) -> None:
        """Draw again, and tell."""
        self.refresh()
        self.post_message(self.CursorMoved(self, self.at))

    def watch_cell_size(self) -> None:
        """Draw again."""
        self.refresh()

    def action_cells(self) -> None:
        """Take the next size of a cell."""
        self.cell_size = self.cell_size.next

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor."""
        self.at = (self.at[0] + rows, self.at[1] + columns)

    def action_move_to(self, end: str) -> None:
        """Move the cursor to the first or the last value."""
        self.at = (0, 0) if end == "first" else (len(self.matrix) - 1, self._width - 1)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Put the cursor under the pointer."""
        layout = self._layout()
        top, left = self._window(layout)
        line, column = event.y - layout.header, (event.x - layout.gutter) // layout.wide
        if not 0 <= line < layout.lines(len(self.matrix), top) or not 0 <= column < layout.columns_shown:
            return
        row, across = (top + 2 * line // layout.tall) * layout.down, (left + column) * layout.across
        if row < len(self.matrix) and across < self._width:
            self.at = (row, across)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Move down."""
        event.stop()
        self.action_move(_WHEEL, 0)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Move up."""
        event.stop()
        self.action_move(-_WHEEL, 0)
