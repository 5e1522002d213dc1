"""The home screen: the keys over :class:`~lora_lab.tui.library.view.LibraryView`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.widgets import Input

from lora_lab.domain.library import EntryKind
from lora_lab.tui.export import Copied, as_tsv
from lora_lab.tui.hub.opening import open_push, why_no_push
from lora_lab.tui.library.model import document_of
from lora_lab.tui.library.rows import COLUMNS, TITLES
from lora_lab.tui.library.view import LibraryView
from lora_lab.tui.library.widgets import FilterInput
from lora_lab.tui.widgets.table import LabTable

if TYPE_CHECKING:
    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.export import ExportDocument


class LibraryScreen(LibraryView):
    """Marks, order, filter; opening, copying, exporting."""

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what needs a row, a mark or a filter."""
        if action in ("mark", "copy", "copy_all", "export", "sort") and not self.library.shown:
            return "there is no row"
        if action == "compare" and self._model() is None and self.library.pair(self.table.cursor_key) is None:
            return "mark two adapters with space first"
        if action in ("find_next", "find_previous") and not self.library.filter:
            return "there is no filter; / sets one"
        if action == "push":
            return why_no_push(self._entry())
        return super().unavailable(action, parameters)

    def action_mark(self) -> None:
        """Mark the row as A, then B."""
        key = self.table.cursor_key
        if key is None:
            return
        reason = self.library.mark(key)
        if reason:
            self.lab.say(f"Not marked: {reason}.", severity="warning")
        elif len(self.library.marks) == 2 and self.library.mark_of(key):
            self.lab.say("A and B are marked: c compares them.")
        self._memory.remember(marks=dict(self.library.marks))
        self.table.refresh()
        self.refresh_bindings()

    def action_compare(self) -> None:
        """Compare the two that are marked, or the marked one and the row of the cursor; a model with its base."""
        model = self._model()
        if model is not None:
            from lora_lab.tui.finetune.screen import open_fine_tune

            open_fine_tune(self.lab, model)
            return
        pair = self.library.pair(self.table.cursor_key)
        if pair is not None:
            self.compare_rows(*pair)

    def action_change(self) -> None:
        """Open the form: for the model under the cursor, or for the marked adapters, or the one under the cursor."""
        from lora_lab.tui.changing.opening import open_form

        marked = [self.library.rows[self.library.marks[mark]].entry for mark in sorted(self.library.marks)]
        entry = self._entry()
        open_form(self.lab, entry if entry is not None and not entry.error else None, marked)

    def action_push(self) -> None:
        """Open the form of a push, for the row under the cursor."""
        entry = self._entry()
        if entry is not None:
            open_push(self.lab, entry)

    def _entry(self) -> LibraryEntry | None:
        """What the row under the cursor is about."""
        key = self.table.cursor_key if self.is_mounted else None
        row = self.library.rows.get(key) if key else None
        return None if row is None else row.entry

    def _model(self) -> LibraryEntry | None:
        """The full model under the cursor; None when there is none that can be read."""
        entry = self._entry()
        return entry if entry is not None and entry.kind == EntryKind.BASE and entry.error is None else None

    def action_sort(self) -> None:
        """Sort by the column of the cursor, or turn the order round."""
        column = COLUMNS[self.table.column].id
        self.sort_by(column if column in TITLES else "name")

    @on(LabTable.HeaderClicked, "#library")
    def _header_clicked(self, message: LabTable.HeaderClicked) -> None:
        if message.column in TITLES:
            self.sort_by(message.column)

    def sort_by(self, column: str) -> None:
        """Sort: numbers from the largest first, names from A; the same column again the other way round."""
        by, is_descending = self.library.sort
        starts_descending = column not in ("name", "base", "type")
        self.library.sort = (column, not is_descending if by == column else starts_descending)
        self.table.sorted_by = self.library.sort
        self.lab.state.set("library.sort_column", self.library.sort[0])
        self.lab.state.set("library.sort_descending", self.library.sort[1])
        self.show_rows()

    def action_side(self) -> None:
        """Show or hide the facts."""
        if self.has_class("-narrow"):
            self.toggle_class("-side")
        else:
            self.toggle_class("-no-side")

    def action_filter(self) -> None:
        """Type a filter."""
        self._before_filter = (self.library.filter, self.table.cursor_key)
        self.add_class("-filtering")
        field = self.query_one(FilterInput)
        field.value = self.library.filter
        field.focus()

    @on(Input.Changed, "#filter")
    def _filter_changed(self, message: Input.Changed) -> None:
        if self.has_class("-filtering"):
            self._set_filter(message.value)

    @on(Input.Submitted, "#filter")
    def _filter_done(self) -> None:
        self.remove_class("-filtering")
        self.table.focus()
        self._memory.remember(filter=self.library.filter)

    def _set_filter(self, typed: str, cursor: str | None = None) -> None:
        self.library.filter = " ".join(typed.split())
        self.show_rows(cursor)
        self.refresh_bindings()

    def leave(self) -> bool:
        """Leave the filter line, the overlay, or the filter itself."""
        if self.has_class("-filtering"):
            self.remove_class("-filtering")
            before, cursor = self._before_filter
            self._set_filter(before, cursor)
            self.table.focus()
        elif self.has_class("-narrow") and self.has_class("-side"):
            self.remove_class("-side")
            self.table.focus()
        elif self.library.filter:
            self._set_filter("", self.table.cursor_key)
            self._memory.remember(filter="")
        else:
            return False
        return True

    def action_find_next(self) -> None:
        """Move to the next row that the filter keeps, round the end."""
        self._step(1)

    def action_find_previous(self) -> None:
        """Move to the row before, round the beginning."""
        self._step(-1)

    def _step(self, direction: int) -> None:
        if self.library.shown:
            self.table.cursor = (self.table.cursor + direction) % len(self.library.shown)

    @on(LabTable.Opened, "#library")
    def _row_opened(self, message: LabTable.Opened) -> None:
        row = self.library.rows[message.key]
        if not row.is_measurable:
            reason = row.entry.error or "a base model has no spectrum of its own; open an adapter trained from it"
            self.lab.say(f"{row.name} is not opened: {reason}", severity="warning")
            return
        marked = tuple(self.library.marks[mark] for mark in sorted(self.library.marks))
        self.open_row(message.key, tuple(path for path in marked if path != message.key))

    def copy_value(self) -> Copied | None:
        """The row under the cursor, with its column names."""
        key = self.table.cursor_key
        if key is None:
            return None
        document = document_of(self.library, [key])
        return Copied(f"the row of {self.library.rows[key].name}", as_tsv(document.columns, document.rows))

    def action_copy_all(self) -> None:
        """Copy every row shown."""
        document = document_of(self.library, self.library.shown)
        self.app.copy_to_clipboard(as_tsv(document.columns, document.rows))
        self.lab.say(f"Copied {len(document.rows)} rows.")

    def export_document(self) -> ExportDocument | None:
        """The rows shown, in their order."""
        return document_of(self.library, self.library.shown)
