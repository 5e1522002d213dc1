"""A matrix as colours: one character cell shows two values above each other, and lightness grows with the value."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events
    from textual.binding import BindingType

    from lora_lab.domain.report import Column

# Nine anchors of the viridis map (CC0), whose lightness rises evenly, so that it stays readable in grey.
_VIRIDIS: Final = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
)  # fmt: skip
_LEVELS: Final = 64
_UNDEFINED: Final = (48, 48, 48)

Colour = tuple[int, int, int]


def colour_of(share: float | None) -> Colour:
    """Colour of a value between the smallest (0) and the largest (1); grey when it is undefined."""
    if share is None:
        return _UNDEFINED
    place = round(min(1.0, max(0.0, share)) * (_LEVELS - 1)) / (_LEVELS - 1) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    part = place - low
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(_VIRIDIS[low], _VIRIDIS[low + 1], strict=True))
    return (red, green, blue)


@lru_cache(maxsize=_LEVELS * _LEVELS)
def _style(upper: Colour, lower: Colour | None) -> Style:
    behind = None if lower is None else f"rgb({lower[0]},{lower[1]},{lower[2]})"
    return Style.parse(f"rgb({upper[0]},{upper[1]},{upper[2]})" + (f" on {behind}" if behind else ""))


class Heatmap(Widget, can_focus=True):
    """Draws a matrix; the cursor's value stands in the last line, with the digits of the report."""

    HELP_TITLE = "Matrix"
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("down,j", "move(1, 0)", "Down", "Move to the next row", id="matrix.down"),
        bindings.key("up,k", "move(-1, 0)", "Up", "Move to the row before", id="matrix.up"),
        bindings.key("right", "move(0, 1)", "Right", "Move to the next column", id="matrix.right"),
        bindings.key("left,h", "move(0, -1)", "Left", "Move to the column before", id="matrix.left"),
    ]
    DEFAULT_CSS = "Heatmap { height: 1fr; width: 1fr; min-height: 3; }"

    at: reactive[tuple[int, int]] = reactive((0, 0))  # row and column of the cursor, from 0

    def __init__(self) -> None:
        super().__init__()
        self.matrix: Sequence[Sequence[float | None]] = ()
        self._titles = ("i", "j")
        self._low, self._high = 0.0, 1.0

    def show_matrix(self, column: Column, matrix: Sequence[Sequence[float | None]]) -> None:
        """Show one cell of a HEATMAP column."""
        self.matrix = matrix
        titles = [title.strip() for title in column.index_title.split(",")]
        self._titles = (titles[0], titles[1]) if len(titles) == 2 else ("i", "j")
        known = [value for row in matrix for value in row if value is not None and math.isfinite(value)]
        self._low, self._high = min(known, default=0.0), max(known, default=1.0)
        self.at = self.validate_at(self.at)
        self.refresh()

    def share(self, value: float | None) -> float | None:
        """Where `value` lies between the smallest and the largest."""
        if value is None or not math.isfinite(value):
            return None
        span = self._high - self._low
        return (value - self._low) / span if span > 0.0 else 0.5

    @property
    def _width(self) -> int:
        return max((len(row) for row in self.matrix), default=0)

    def _scale(self) -> int:
        """How many cells of the terminal one column takes: as many as fit, at most 4."""
        return max(1, min(4, self.size.width // max(1, self._width)))

    def validate_at(self, at: tuple[int, int]) -> tuple[int, int]:
        """Keep the cursor on the matrix."""
        row, column = at
        return (max(0, min(row, len(self.matrix) - 1)), max(0, min(column, self._width - 1)))

    def _origin(self) -> tuple[int, int]:
        """First row and column drawn: the cursor stays in sight of a matrix larger than the widget."""
        rows = max(1, self.size.height - 1) * 2
        columns = max(1, self.size.width // self._scale())
        top = max(0, min(self.at[0] - rows // 2, len(self.matrix) - rows))
        return (top - top % 2, max(0, min(self.at[1] - columns // 2, self._width - columns)))

    def render_line(self, y: int) -> Strip:
        """Draw two rows of the matrix, or the line about the cursor."""
        width = self.size.width
        if y == self.size.height - 1:
            return Strip([Segment(self.status(), self.rich_style)]).adjust_cell_length(width, self.rich_style)
        top, left = self._origin()
        upper = top + 2 * y
        if upper >= len(self.matrix):
            return Strip.blank(width, self.rich_style)
        scale = self._scale()
        segments = []
        for column in range(left, min(self._width, left + width // scale)):
            high, low = self._colour(upper, column), self._colour(upper + 1, column)
            here = column == self.at[1] and self.at[0] in (upper, upper + 1) and self.has_focus
            text = "▀" * scale
            if here:
                text = ("▘" if self.at[0] == upper else "▖") + text[1:]
            segments.append(Segment(text, _style(high or _UNDEFINED, low)))
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _colour(self, row: int, column: int) -> Colour | None:
        if row >= len(self.matrix):
            return None
        values = self.matrix[row]
        return colour_of(self.share(values[column]) if column < len(values) else None)

    def status(self) -> str:
        """The value under the cursor and the ends of the scale."""
        row, column = self.at
        value = self.matrix[row][column] if self.matrix and column < len(self.matrix[row]) else None
        said = "undefined" if value is None else repr(value)
        first, second = map(safe_text, self._titles)
        return f" {first}={row + 1} {second}={column + 1}  {said}   dark {self._low:.4g} … light {self._high:.4g}"

    def watch_at(self) -> None:
        """Draw again."""
        self.refresh()

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor."""
        self.at = (self.at[0] + rows, self.at[1] + columns)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Put the cursor under the pointer."""
        top, left = self._origin()
        row, column = top + 2 * event.y, left + event.x // self._scale()
        if event.y < self.size.height - 1 and row < len(self.matrix) and column < self._width:
            self.at = (row, column)
