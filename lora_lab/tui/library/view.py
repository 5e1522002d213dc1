"""The home screen: which adapters are there, and what is in them at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal

from lora_lab.tui import bindings
from lora_lab.tui.background import work_beside
from lora_lab.tui.library.measuring import Measuring, nearest
from lora_lab.tui.library.memory import Memory
from lora_lab.tui.library.model import Library
from lora_lab.tui.library.rows import COLUMNS, TITLES
from lora_lab.tui.library.scan import inspect, scan
from lora_lab.tui.library.side import SidePanel
from lora_lab.tui.library.widgets import Emptiness, FilterInput, LibraryTable
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.widgets.pane import Pane
from lora_lab.tui.widgets.table import Cell, LabTable

if TYPE_CHECKING:
    import threading

    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.timer import Timer

    from lora_lab.domain.report import Report
    from lora_lab.tui.messages import EntriesFound, Inspected, JobUpdated, ScanFailed

_INSPECT_DELAY_SECONDS = 0.08  # while the cursor runs down the list, nothing is read
_ARRANGE_DELAY_SECONDS = 0.15
_MOST_INSPECTIONS = 64


class LibraryView(LabScreen):
    """Table and side panel over a :class:`~lora_lab.tui.library.model.Library`.

    Parameters
    ----------
    sources : locators to scan
    """

    HELP_TITLE = "Library screen"
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("i", "side", "Info", "Show or hide the facts about the row", id="library.side", show=True),
        bindings.key(
            "c",
            "compare",
            "Compare",
            "Compare A and B; with one mark: the marked one and the row of the cursor",
            id="library.compare",
            show=True,
        ),
        bindings.key(
            "a",
            "app.combine",
            "Combine",
            "Combine the marked adapters; with one: resize it; on a model: extract a LoRA from it",
            id="library.combine",
            show=True,
        ),
        bindings.key(
            "m",
            "change",
            "Merge",
            "Merge the marked adapters; on a model: unmerge, swap or verify it",
            id="library.change",
            show=True,
        ),
        bindings.key("u", "push", "Push", "Push the adapter or model to the Hub", id="library.push", show=True),
        bindings.key("q", "back", "Quit", "Quit", id="back", show=True),
    ]
    DEFAULT_CSS = """
    LibraryView.-empty Emptiness { display: block; }
    LibraryView.-empty LibraryTable { height: 1; }
    LibraryView.-filtering FilterInput { display: block; }
    #side-pane { width: 38; }
    LibraryView.-wide #side-pane { width: 46; }
    LibraryView.-narrow #side-pane { display: none; }
    LibraryView.-narrow.-side #side-pane { display: block; overlay: screen; dock: right; width: 46; }
    LibraryView.-no-side #side-pane { display: none; }
    """

    def __init__(self, sources: list[str]) -> None:
        super().__init__(" ".join(sources))
        self.sources = sources
        self.library = Library()
        self.last_opened: tuple[str, tuple[str, ...], str] | None = None
        self._generation = 0
        self._is_complete = False
        self._stop_scan: threading.Event | None = None
        self._stop_inspection: threading.Event | None = None
        self._inspections: dict[str, Report] = {}
        self._failures: list[tuple[str, str]] = []
        self._measuring: Measuring | None = None
        self._before_filter: tuple[str, str | None] = ("", None)
        self._is_arranging = False
        self._is_settled = False  # until the first scan is complete
        self._inspect_timer: Timer | None = None
        self._memory: Memory

    # Building

    def compose_body(self) -> ComposeResult:
        """Table on the left, facts on the right."""
        with Horizontal():
            with Pane(title="Library", id="library-pane"):
                yield LibraryTable(COLUMNS, self._cell, id="library")
                yield Emptiness()
                yield FilterInput(placeholder="words  base:qwen  type:lora  tag:dora  r>=16", id="filter")
            with Pane(title="Facts", id="side-pane"):
                yield SidePanel()

    def on_mount(self) -> None:
        """Take up what was left, and begin to scan once there is something on screen."""
        state = self.lab.state
        column, is_descending = state.get("library.sort_column", "name"), state.get("library.sort_descending", False)
        self.library.sort = (column if column in TITLES else "name", is_descending)
        self.table.sorted_by = self.library.sort
        self._memory = Memory(state, self.sources)
        self.library.filter = self._memory.text("filter")
        self.add_class("-empty")
        self._explain_emptiness()
        self.table.focus()
        self.call_after_refresh(self.action_rescan)

    @property
    def table(self) -> LibraryTable:
        """The table."""
        return self.query_one(LibraryTable)

    def _cell(self, path: str, column: str) -> Cell:
        row = self.library.rows[path]
        if column != "mark":
            return row.cell(column)
        mark = self.library.mark_of(path)
        if mark:
            return Cell(f"●{mark.upper()}", mark)
        return Cell("✗", "bad") if row.entry.error else Cell("")

    # Scanning

    def action_rescan(self) -> None:
        """Read the headers again."""
        if self._stop_scan is not None:
            self._stop_scan.set()
        self._generation += 1
        self._is_complete = False
        self._failures = []
        self._inspections = {}
        self.library.begin_scan()
        self.table.refresh()
        lab, sources, generation = self.lab, list(self.sources), self._generation
        self._stop_scan = work_beside(lambda stop, tell: scan(lab, sources, generation, stop, tell), self, "scan")

    def add_source(self, locator: str) -> None:
        """List one more folder, adapter or model."""
        if locator not in self.sources:
            self.sources.append(locator)
        self.action_rescan()

    def on_entries_found(self, message: EntriesFound) -> None:
        """Show what was found."""
        if message.generation != self._generation:
            return
        for path in self.library.add(message.entries):
            if self._measuring is not None:
                self._measuring.drop(path)
        if message.is_complete:
            self._is_complete = True
            self.library.end_scan()
            if not self.library.marks:
                self.library.restore_marks(self._memory.marks())
        self.show_rows()
        self._is_settled = self._is_settled or message.is_complete
        if message.is_complete and self._generation == 1 and len(self.sources) <= 2:
            self._open_given(message.opened)

    def on_scan_failed(self, message: ScanFailed) -> None:
        """Say what cannot be looked into; the others go on."""
        if message.generation == self._generation:
            self._failures.append((message.reason, message.hint))
            self.lab.say(message.reason, severity="error")
            self._explain_emptiness()

    def _open_given(self, opened: tuple[str, ...]) -> None:
        """Go straight to the adapter, or the two, that were named on the command line."""
        paths = [row.entry.path for row in self.library.rows.values() if row.is_measurable]
        if paths and len(opened) == len(self.sources) == len(paths):
            first, *others = paths
            if others:
                self.library.marks = {"a": first, "b": others[0]}
                self.table.refresh()
                self.compare_rows(first, others[0])
            else:
                self.open_row(first, ())

    def _explain_emptiness(self) -> None:
        """Say why there is nothing to see, and what to do."""
        library = self.library
        is_empty = not library.shown
        if is_empty != self.has_class("-empty"):
            self.set_class(is_empty, "-empty")
            self.refresh_bindings()
        if is_empty:
            self.query_one(Emptiness).explain(
                self.sources, self._failures, library.filter, len(library.rows), is_complete=self._is_complete
            )

    # What is shown

    def show_rows(self, cursor: str | None = None) -> None:
        """Filter, sort and show; the cursor stays on its row unless another one is named."""
        self._is_arranging = False
        # Until the person has moved the cursor, it belongs where it was left; that row may come late in a scan.
        wanted = cursor or (None if self._is_settled else self._memory.text("cursor"))
        for column, width in zip(("name", "base"), self.library.widths(), strict=True):
            self.table.widen(column, width)
        self.table.set_rows(self.library.arrange(), cursor=wanted or None)
        self._explain_emptiness()
        self._entitle()
        self._show_facts()

    def _arrange_soon(self) -> None:
        """Arrange once for many measures that arrive together."""
        if not self._is_arranging:
            self._is_arranging = True
            self.set_timer(_ARRANGE_DELAY_SECONDS, self.show_rows)

    def _entitle(self) -> None:
        library = self.library
        self.set_header(" ".join(self.sources), library.summary() + ("" if self._is_complete else " …"))
        pane = self.query_one("#library-pane", Pane)
        total, shown = len(library.rows), len(library.shown)
        note = f"{library.filter} · {shown} of {total}" if library.filter else ""
        if library.sort != ("name", False):
            order = f"by {TITLES[library.sort[0]]} {'▼' if library.sort[1] else '▲'}"
            note = f"{note} · {order}" if note else order
        pane.entitle("Library", note)

    @on(LabTable.CursorMoved, "#library")
    def _cursor_moved(self, message: LabTable.CursorMoved) -> None:
        if self._is_settled and message.key:
            self._memory.remember(cursor=message.key)
        self._show_facts()
        self._want_measures()
        if len(self.library.marks) == 1:  # the row of the cursor would be the other one to compare
            self.refresh_bindings()

    @on(LabTable.ViewportChanged, "#library")
    def _viewport_changed(self) -> None:
        self._want_measures()

    def _show_facts(self) -> None:
        key = self.table.cursor_key
        row = self.library.rows.get(key) if key else None
        self.query_one("#side-pane", Pane).entitle(row.name if row else "Facts")
        self.query_one(SidePanel).show(row, self._inspections.get(key or ""))
        if self._inspect_timer is not None:
            self._inspect_timer.stop()
            self._inspect_timer = None
        if row is not None and row.is_measurable and key not in self._inspections:
            self._inspect_timer = self.set_timer(_INSPECT_DELAY_SECONDS, self._inspect)

    def _inspect(self) -> None:
        """Read the header-level report of the row under the cursor."""
        key = self.table.cursor_key
        if key is None:
            return
        if self._stop_inspection is not None:
            self._stop_inspection.set()
        lab, path = self.lab, key
        self._stop_inspection = work_beside(lambda stop, tell: inspect(lab, path, stop, tell), self, "inspect")

    def on_inspected(self, message: Inspected) -> None:
        """Show the report if the cursor is still there."""
        if message.report is not None:
            self._inspections[message.path] = message.report
            while len(self._inspections) > _MOST_INSPECTIONS:
                del self._inspections[next(iter(self._inspections))]
        key = self.table.cursor_key
        if key == message.path:
            self.query_one(SidePanel).show(self.library.rows.get(key), message.report)

    # Measures

    def _want_measures(self) -> None:
        """Ask for what is visible, from the cursor outwards, then for what comes next."""
        if self._measuring is None:
            if self.lab.is_measuring:
                self._measuring = Measuring(self.lab.jobs, self.lab.job_list)
            else:
                return
        table, library = self.table, self.library
        chosen = nearest(table.keys, table.visible_keys(), table.cursor_key, library.is_waiting)
        self._measuring.want([(path, library.rows[path].name) for path in chosen])
        self.lab.refresh_job_status()

    def jobs_ready(self) -> None:
        """The job manager has started."""
        self._want_measures()

    def on_job_updated(self, message: JobUpdated) -> None:
        """Fill in a spectrum that has come."""
        event = message.event
        path = self._measuring.path_of(event) if self._measuring else None
        if path is None or self._measuring is None or event.kind not in ("result", "failed", "cancelled"):
            return
        self._measuring.came(path)
        if event.kind == "result":
            changes_order = self.library.measured(path, event.report)
        elif event.kind == "failed":
            reason = " ".join(filter(None, (event.job.error, event.job.hint)))
            changes_order = self.library.measured(path, None, reason or "The spectrum could not be computed.")
        else:  # by the person, in the list of jobs
            changes_order = self.library.measured(path, None, "It was cancelled; r asks for it again.")
        if changes_order:
            self._arrange_soon()
        self.table.refresh_row(path)
        if self.table.cursor_key == path:
            self.query_one(SidePanel).show(self.library.rows.get(path), self._inspections.get(path))
        if not self._measuring.paths:
            self._want_measures()

    # Opening

    def open_row(self, path: str, overlays: tuple[str, ...]) -> None:
        """Show an adapter, with these laid over it."""
        self.last_opened = (path, overlays, self.library.rows[path].name)
        self.open_last()

    def compare_rows(self, first: str, second: str) -> None:
        """Show two adapters beside each other."""
        names = (self.library.rows[first].name, self.library.rows[second].name)
        if self.last_opened is None:  # so that 2 goes to A, with B to be laid over it
            self.last_opened = (first, (second,), names[0])
        self.lab.open_compare((first, second), names=names if names[0] != names[1] else None)

    def open_last(self) -> None:
        """Show the adapter opened last once more."""
        if self.last_opened is not None:
            path, overlays, name = self.last_opened
            self.lab.open_detail(path, overlays=overlays, name=name)
