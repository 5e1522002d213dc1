"""The tab of an analysis of both adapters: run when it is first looked at, its tables one after the other."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.compare import words
from lora_lab.tui.detail.outline import Outline
from lora_lab.tui.detail.spectrum_view import flowed
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.leaving import Leaving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.report import Report, Table
    from lora_lab.jobs import Job, JobEvent
    from lora_lab.tui.detail.feed import JobDesk

_PRIORITY: Final = 250
#: Columns that stand beside the names, by analysis and table; the rest follow as the report has them.
_FIRST: Final = {
    ("diff", "modules"): ("in", "relative_difference", "cosine", "phi", "phi_random", "difference_norm"),
    ("interference", "modules"): (
        "energy_ratio",
        "mean_cosine",
        "shared_subspace",
        "shared_subspace_random",
        "sign_conflict",
        "sign_conflict_random",
    ),
    ("interference", "pairs"): ("b", "cosine", "shared_subspace", "shared_subspace_random", "sign_conflict"),
}


class Which(StrEnum):
    """The modules of two adapters that are listed."""

    ALL = "all"
    DIFFERING = "differing"  # those that one of the two lacks as well
    MISSING = "in one only"

    @property
    def next(self) -> Which:
        """The one after this."""
        every = list(Which)
        return every[(every.index(self) + 1) % len(every)]

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether `row` is among them; a module that could not be compared counts as differing."""
        if self is Which.ALL or row.get("in") != "both":
            return True
        if self is Which.MISSING:
            return False
        is_same = row.get("rank_a") == row.get("rank_b") and row.get("scaling_a") == row.get("scaling_b")
        return not (is_same and row.get("difference_norm") == 0.0)


class ReportView(Leaving, Vertical):
    """Shows the Report of one analysis of two adapters.

    Parameters
    ----------
    analysis : its id
    title : of the tab
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("d", "which", "Differing", "All modules, those that differ, or those that one of the two has",
                     id="report.which", show=True),
        bindings.key("m", "next_table", "Next table", "Show the report's next table", id="report.table", show=True),
    ]  # fmt: skip
    DEFAULT_CSS = """
    ReportView { height: 1fr; width: 1fr; }
    ReportView > .report--note { height: auto; max-height: 8; padding: 0 1; }
    ReportView > ReportTable { height: 1fr; min-height: 4; }
    """

    def __init__(self, analysis: str, title: str) -> None:
        super().__init__()
        self.analysis = analysis
        self.HELP_TITLE = title
        self.report: Report | None = None
        self.reason = ""
        self.filter = ""
        self.which = Which.ALL
        self._job: Job | None = None
        self._tables: tuple[Table, ...] = ()
        self._number = 0

    def compose(self) -> ComposeResult:
        """Words above the rows."""
        yield Static("", classes="report--note")
        yield ReportTable()

    def on_mount(self) -> None:
        """A table that has no column yet is sorted by none."""
        self.table.sorted_by = ("none", False)

    @property
    def table(self) -> ReportTable:
        """The rows."""
        return self.query_one(ReportTable)

    # Running.

    def reset(self, desk: JobDesk | None) -> None:
        """Forget what came, so that it is run again when it is next looked at."""
        if self._job is not None and desk is not None:
            desk.drop(self._job)
        self._job, self.report, self.reason, self._tables = None, None, "", ()
        self.table.set_rows(())
        self._say(Content(""))

    def begin(self, desk: JobDesk, locators: Sequence[str], title: str) -> None:
        """Run it unless it has been run."""
        if self._job is not None or self.report is not None or self.reason:
            return
        self._job = desk.submit(
            "analyze",
            {"id": self.analysis, "locators": list(locators)},
            title=f"{self.analysis} {title}",
            group=f"pair:{self.analysis}:{'|'.join(locators)}",
            priority=_PRIORITY,
        )
        self._say(Content("computing …"))

    def take(self, event: JobEvent, desk: JobDesk) -> bool:
        """Take in an event of our own job; False when it is another's."""
        if self._job is None or event.job.id != self._job.id:
            return False
        if event.kind == "progress" and event.job.total:
            said = f"computing … {event.job.done} of {event.job.total}  {safe_text(event.job.what, limit=60)}"
            self._say(Content(said))
        elif event.kind == "result" and event.report is not None:
            self.report = event.report
            self._tables, self._number = tuple(table for table in event.report.tables if table.rows), 0
            self._show_table()
        elif event.kind == "failed":
            self._refuse(event.job.error or "It failed.", event.job.hint or "")
        elif event.kind == "cancelled":
            self._refuse("Cancelled.", "r runs it again.")
        if event.kind in ("result", "failed", "cancelled"):
            self._job = None
            desk.over(event.job)
        return True

    def _refuse(self, reason: str, hint: str) -> None:
        self.reason = f"{reason} {hint}".strip()
        self._say(words.refusal(reason, hint))

    # Showing.

    def _say(self, said: Content) -> None:
        self.query_one(".report--note", Static).update(said)

    def set_filter(self, typed: str) -> None:
        """Show the modules that `typed` lets through."""
        if typed != self.filter:
            self.filter = typed
            self._show_table()

    def on_resize(self) -> None:
        """Let the words flow in the new width."""
        if self.report is not None:
            self._say(self._heading())

    def _heading(self) -> Content:
        assert self.report is not None
        width = max(20, self.size.width - 2)
        parts, tables = words.scalar_parts(self.report), []
        if self._tables:
            table = self._tables[self._number]
            tables.append(Content.styled(f"{safe_text(table.title)} ({self._amount(table)})", "bold $text-primary"))
        else:
            tables.append(Content("There is nothing to list."))
        if len(self._tables) > 1:
            other = self._tables[(self._number + 1) % len(self._tables)]
            tables.append(Content.styled(f"m: {safe_text(other.title)} ({len(other.rows)})", "$text-accent"))
        lines = [flowed(group, width) for group in (parts, tables) if group]
        return Content("\n").join([*words.finding_lines(self.report.findings), *lines])

    def _amount(self, table: Table) -> str:
        shown, total = len(self.table.keys), len(table.rows)
        amount = f"{total}" if shown == total else f"{shown} of {total}"
        return f"{amount}, {self.which}" if self.which is not Which.ALL and self._has_sides(table) else amount

    def _show_table(self) -> None:
        if self.report is None:
            return
        if self._tables:
            table = self._tables[self._number]
            shown = matching_rows(table, self.filter)
            if self._has_sides(table):
                shown = replace(shown, rows=tuple(row for row in shown.rows if self.which.has(row)))
            self.table.show_table(shown, first=_FIRST.get((self.analysis, table.id), ()))
        self._say(self._heading())

    def unavailable(self, action: str, _parameters: tuple[object, ...]) -> str | None:
        """Say when there is no other table, or nothing that could differ."""
        if action == "which" and not (self._tables and self._has_sides(self._tables[self._number])):
            return "this table does not say which adapter has a module"
        return "this report has no other table" if action == "next_table" and len(self._tables) < 2 else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey what is not available."""
        return None if self.unavailable(action, parameters) else True

    @staticmethod
    def _has_sides(table: Table) -> bool:
        """Whether the rows say which of the two has a module."""
        return any(column.id == "in" for column in table.columns) and table.key == "module"

    def action_which(self) -> None:
        """Go on to the modules that differ, those that are in one only, and all again."""
        self.which = self.which.next
        self._show_table()
        self.refresh_bindings()

    def action_next_table(self) -> None:
        """Show the next of several tables."""
        self._number = (self._number + 1) % len(self._tables)
        self._show_table()


def matching_rows(table: Table, typed: str) -> Table:
    """The rows of the modules that `typed` lets through; a table of something else is left whole."""
    if not typed or table.key != "module":
        return table
    outline = Outline([str(row.get("module")) for row in table.rows])
    outline.filter = typed
    kept = set(outline.shown_modules())
    return replace(table, rows=tuple(row for row in table.rows if str(row.get("module")) in kept))
