"""The Overlap tab: φ(i,j) of one module as colours or as numbers, and what is known of that module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from textual import on
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import Static

from lora_lab.safetext import safe_text
from lora_lab.tui.compare import words
from lora_lab.tui.compare.number_table import NumberTable
from lora_lab.tui.detail.spectrum_view import flowed, put
from lora_lab.tui.export import Copied, as_tsv
from lora_lab.tui.leaving import Leaving
from lora_lab.tui.plots.cells import extent
from lora_lab.tui.plots.heatmap import Heatmap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.app import ComposeResult
    from textual.widget import Widget

    from lora_lab.domain.report import Finding
    from lora_lab.tui.compare.feed import Grid

#: Column ids of the grid written as one row for each pair (i, j).
GRID_COLUMNS: Final = ("module", "side", "i", "j", "phi", "phi_random")
_WIDE: Final = 64
_WAITING: Final = "computing φ(i,j) …"


class OverlapView(Leaving, Vertical):
    """Draws what the screen hands it."""

    DEFAULT_CSS = """
    OverlapView { height: 1fr; width: 1fr; }
    OverlapView > .overlap--note {
        height: auto; max-height: 5; padding: 0 1; display: none; text-wrap: nowrap; text-overflow: ellipsis;
    }
    OverlapView.-refused > .overlap--note { max-height: 12; text-wrap: wrap; }
    OverlapView.-noted > .overlap--note { display: block; }
    OverlapView > .overlap--holder { height: 1fr; padding: 0 1; }
    OverlapView > .overlap--cursor { height: auto; max-height: 3; padding: 0 1; }
    OverlapView > .overlap--facts { height: auto; max-height: 5; padding: 0 1; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.grid: Grid | None = None
        self.row: Mapping[str, Any] | None = None
        self.is_table = False
        self.has_own_scale = False  # colours from the grid's smallest value to its largest instead of 0 to 1
        self._reason = ""
        self._notes: tuple[Content, ...] = ()

    def compose(self) -> ComposeResult:
        """Findings, the grid, the value under the cursor, the module's numbers."""
        yield Static("", classes="overlap--note")
        with Container(classes="overlap--holder"):
            yield Heatmap(has_status=False)
            yield NumberTable()
        yield Static("", classes="overlap--cursor")
        yield Static("", classes="overlap--facts")

    @property
    def heatmap(self) -> Heatmap:
        """The grid as colours."""
        return self.query_one(Heatmap)

    @property
    def numbers(self) -> NumberTable:
        """The grid as numbers."""
        return self.query_one(NumberTable)

    @property
    def shown(self) -> Widget | None:
        """Whichever of the two is on screen."""
        if self.grid is None or self.grid.is_empty or self._reason:
            return None
        return self.numbers if self.is_table else self.heatmap

    @property
    def at(self) -> tuple[int, int]:
        """Row and column of the cursor, from 0."""
        return self.heatmap.at

    def on_mount(self) -> None:
        """Begin with colours."""
        self.numbers.display = False

    # Showing.

    def note(self, findings: Sequence[Finding], about: str = "") -> None:
        """Say the first findings of the report."""
        self._put_notes(words.finding_lines(findings, about=about, more=": tab Facts"))
        self.remove_class("-refused")

    def refuse(self, reason: str, hint: str) -> None:
        """Say why there is nothing to see, and what to do."""
        self._put_notes([words.refusal(reason, hint)])
        self.add_class("-refused")
        self.show(None, None, reason=" ")

    def _put_notes(self, lines: Sequence[Content]) -> None:
        if tuple(lines) != self._notes:
            self._notes = tuple(lines)
            self.set_class(bool(lines), "-noted")
            self.query_one(".overlap--note", Static).update(Content("\n").join(lines))

    def show(self, row: Mapping[str, Any] | None, grid: Grid | None, *, reason: str = "") -> None:
        """Show one module.

        Parameters
        ----------
        row : its numbers; None while there is no module
        grid : its φ(i,j); None while that is being computed
        reason : why there is no grid to wait for
        """
        self.row, self.grid = row, grid
        self._reason = reason or (grid.reason if grid is not None else "")
        if grid is not None and not self._reason and grid.is_empty:
            self._reason = "φ(i,j) has no rows here: one of the two spans no direction."
        if grid is not None and not self._reason:
            heatmap = self.heatmap
            low, high = extent(grid.phi) if self.has_own_scale else (0.0, 1.0)
            heatmap.show_matrix(grid.column, grid.phi, low=low, high=high)
            if self.is_table:
                self.numbers.show_matrix(grid.phi, heatmap.at)
        self._turn()
        self._update_words()

    def _turn(self) -> None:
        """Show the colours or the numbers; where there are none, the heatmap says why. The focus goes along."""
        if self.shown is None:
            self.heatmap.show_note(self._reason or (_WAITING if self.row is not None else ""))
        shown: Widget = self.shown or self.heatmap
        hidden: Widget = self.heatmap if shown is self.numbers else self.numbers
        shown.display = True
        if hidden.has_focus:
            self.screen.set_focus(shown, scroll_visible=False)
        hidden.display = False

    def turn_table(self, *, is_table: bool) -> None:
        """Show numbers instead of colours, or colours again."""
        self.is_table = is_table
        if self.grid is not None and is_table:
            self.numbers.show_matrix(self.grid.phi, self.heatmap.at)
        self._turn()

    def on_resize(self) -> None:
        """Let the words flow in the new width."""
        self._update_words()

    @on(Heatmap.CursorMoved)
    def _heatmap_moved(self, message: Heatmap.CursorMoved) -> None:
        message.stop()
        self._update_cursor()

    @on(NumberTable.PlaceChanged)
    def _number_moved(self, message: NumberTable.PlaceChanged) -> None:
        message.stop()
        if self.shown is self.numbers:
            self.heatmap.at = self.numbers.at

    def _room(self) -> int:
        return max(20, self.size.width - 2)

    def _update_words(self) -> None:
        digits = 3 if self._room() < _WIDE else 4
        facts = flowed(words.fact_parts(self.row, digits), self._room()) if self.row is not None else Content("")
        put(self.query_one(".overlap--facts", Static), facts)
        self._update_cursor()

    def _update_cursor(self) -> None:
        place = self.query_one(".overlap--cursor", Static)
        if self.shown is None or self.grid is None:
            put(place, Content(""))
        else:
            parts = words.cursor_parts(self.grid, self.at)
            # On two lines where both might not fit on one: what is above must not move with the number of digits.
            put(place, flowed(parts, self._room()) if self._room() >= _WIDE else Content("\n").join(parts))

    # Taking away.

    def grid_rows(self, module: str, side: str) -> list[list[Any]]:
        """One row for each pair (i, j), at full precision."""
        grid = self.grid
        if grid is None or self.shown is None:
            return []
        return [
            [module, side, row + 1, column + 1, *grid.at(row, column)]
            for row, values in enumerate(grid.phi)
            for column in range(len(values))
        ]

    def copied_value(self, module: str, side: str) -> Copied | None:
        """The value under the cursor with its baseline."""
        if self.grid is None or self.shown is None:
            return None
        row, column = self.at
        values = [module, side, row + 1, column + 1, *self.grid.at(row, column)]
        return Copied(f"φ({row + 1},{column + 1}) of {safe_text(module, limit=40)}", as_tsv(GRID_COLUMNS, [values]))
