"""The bench: choose what is measured, watch the distributions, compare with before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Final, cast

from textual import on
from textual.widgets import Input, Static

from lora_lab.errors import LoraLabError
from lora_lab.tui import bindings
from lora_lab.tui.bench.form import CALLS, DTYPES, KINDS, READS, BenchForm, Kind
from lora_lab.tui.bench.words import compared_with, said_of
from lora_lab.tui.combining.fields import ChoiceField, Entry, Field, FieldLine, NumberEntry, Option, values_of
from lora_lab.tui.combining.pick import Choice, Pick
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.operation import OperationScreen
from lora_lab.tui.widgets.pane import Overflow, Pane
from lora_lab.tui.widgets.shell_line import ShellLine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.report import Report, Table
    from lora_lab.tui.export import Copied, ExportDocument
    from lora_lab.tui.messages import JobUpdated

_TICK_SECONDS: Final = 0.5
_LATEST: Final = "latest"
#: Of a table, the columns that tell most.
_FIRST: Final = {
    "rows": ("batch", "length", "p50_seconds", "overhead"),
    "strategies": ("p50_seconds", "p95_seconds", "times_copy", "bit_exact"),
}


class _Choice(ChoiceField, inherit_bindings=False):
    """One of several values, by the arrows alone: h is a key of the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("right,space", "step(1)", "Next", "Choose the next", id="choice.next", show=True),
        bindings.key("left", "step(-1)", "Before", "Choose the one before", id="choice.previous"),
        *ChoiceField.BINDINGS[2:],
    ]


class BenchScreen(OperationScreen, inherit_bindings=False):
    """Measures in a job, and shows what it tells.

    Parameters
    ----------
    kind : what is measured at first
    typed : what is known already, by field
    """

    HELP_TITLE = "Bench"
    HELP = (
        "Choose above, ctrl+g begins; the distributions below grow run by run. In fields for numbers letters are keys."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.of_screen("leave"),
        bindings.key("ctrl+g", "run", "Go", "Measure it, as a job", id="bench.run", show=True),
        bindings.key("c,ctrl+x", "cancel", "Cancel", "Stop the measurement; nothing is kept", id="bench.cancel",
                     show=True),
        bindings.key("m,ctrl+t", "next_table", "Table", "Show the next table", id="bench.table", show=True),
        bindings.key("h,ctrl+l", "history", "History", "Compare with an earlier result, or show it", id="bench.history",
                     show=True),
        bindings.key("ctrl+y", "copy_command", "Command", "Copy the command that does the same", id="bench.command"),
        bindings.key("escape", "leave", "Back", "Leave the comparison, or go back", id="bench.back"),
    ]  # fmt: skip
    DEFAULT_CSS = """
    BenchScreen #bench-form { height: auto; max-height: 60%; }
    BenchScreen #bench-form Overflow { height: auto; }
    BenchScreen #bench-results { height: 1fr; min-height: 6; }
    BenchScreen #bench-said { height: auto; max-height: 5; padding: 0 1; }
    BenchScreen ReportTable { height: 1fr; min-height: 2; }
    BenchScreen ShellLine { max-height: 2; }
    """

    def __init__(self, kind: Kind, typed: Mapping[str, str]) -> None:
        super().__init__("bench")
        self._first_kind: Kind = kind
        self._typed = dict(typed)
        self._number = 0
        self.comparison: tuple[str, Report] | None = None  # with the result of this id

    # Building

    def compose_body(self) -> ComposeResult:
        """The form, what came of it, and the command."""
        kinds = [Option(kind, {"swap": "switching tasks", "latency": "latency"}[kind]) for kind in KINDS]
        dtypes = [Option(dtype, dtype or "as stored") for dtype in DTYPES]
        given = self._typed
        with Pane(title="1 Measure", id="bench-form"), Overflow():
            yield FieldLine(Field("kind", "what", _Choice(kinds, self._first_kind, id="bench-kind")))
            yield FieldLine(Field("a", "adapter A", Entry(given.get("a", ""), placeholder="a folder or org/name")))
            yield FieldLine(Field("b", "adapter B", Entry(given.get("b", ""), placeholder="a folder or org/name")))
            yield FieldLine(Field("base", "base", Entry(given.get("base", ""), id="bench-base")))
            yield FieldLine(Field("strategies", "which", Entry(placeholder="all strategies; or fused, from_copy, …")))
            yield FieldLine(
                Field("grid", "grid", Entry(placeholder="32x512,16x256,1x128, or what two minutes allow")),
                Field("layers", "layers", NumberEntry(placeholder="all, or less")),
            )
            yield FieldLine(
                Field("rank", "rank", NumberEntry(placeholder="8")),
                Field("dtype", "dtype", _Choice(dtypes, id="bench-dtype")),
            )
            yield FieldLine(
                Field("repeats", "repeats", NumberEntry(id="bench-repeats")),
                Field("device", "device", Entry(placeholder=str(self.lab.session_options.get("device") or "auto"))),
            )
        with Pane(title="2 Results", id="bench-results"):
            yield Static("", id="bench-said")
            yield ReportTable(id="bench-table")
        yield ShellLine(id="bench-command")

    def on_mount(self) -> None:
        """Show what is known, and keep the time left going."""
        super().on_mount()
        self.table.sorted_by = ("none", False)
        self._changed()
        self.draw_results()
        self.set_interval(_TICK_SECONDS, self._tick)
        self.query_one("#bench-kind").focus()

    @property
    def lines(self) -> list[FieldLine]:
        """Lines of the form."""
        return list(self.query(FieldLine))

    @property
    def form(self) -> BenchForm:
        """What is typed and chosen."""
        values = values_of(self.lines)
        return BenchForm(cast("Kind", values["kind"]), values, self.lab.session_options)

    @property
    def command(self) -> str:
        """The command that does the same; empty while something is missing or wrong."""
        form = self.form
        return form.command() if form.missing() is None and not form.faults() else ""

    @property
    def table(self) -> ReportTable:
        """Rows of whichever table is shown."""
        return self.query_one(ReportTable)

    @on(Input.Changed)
    @on(ChoiceField.Changed)
    def _changed(self) -> None:
        form = self.form
        for line in self.lines:
            line.display = any(one.id == "kind" or one.id in READS[form.kind] for one in line.fields)
            line.refuse(form.faults())
        self.query_one("#bench-repeats", NumberEntry).placeholder = "10" if form.kind == "swap" else "as time allows"
        whose = "a folder: the model of both" if form.kind == "swap" else "a folder; none: GPT-2 medium's shapes"
        self.query_one("#bench-base", Entry).placeholder = whose
        self.tell_command(form.missing() or "")
        self.refresh_bindings()

    # Results

    def on_job_updated(self, message: JobUpdated) -> None:
        """Show what the measurement tells."""
        super().on_job_updated(message)
        if message.event.job is self.lab.watched.job:
            self.draw_results()

    def on_resize(self, event: events.Resize) -> None:
        """Let the words flow in the new width."""
        super().on_resize(event)
        if self.is_mounted:
            self.draw_results()

    def _tick(self) -> None:
        if self.lab.watched.is_running:
            self._draw_words()

    def tables(self) -> list[Table]:
        """What can be shown: a comparison, the result, the distributions."""
        watched = self.lab.watched
        found = [] if self.comparison is None else list(self.comparison[1].tables)
        found += [] if watched.report is None else list(watched.report.tables)
        return [table for table in [*found, watched.live.table()] if table.rows]

    def draw_results(self) -> None:
        """Write words and rows anew."""
        tables = self.tables()
        pane = self.query_one("#bench-results", Pane)
        self.table.display = bool(tables)
        if tables:
            self._number %= len(tables)
            shown = tables[self._number]
            self.table.show_table(shown, first=_FIRST.get(shown.id, ()))
            following = tables[(self._number + 1) % len(tables)].title
            pane.entitle(f"2 {shown.title}", f"m {following}" if len(tables) > 1 else "")
        else:
            pane.entitle("2 Results", "")
        self._draw_words()
        self.refresh_bindings()

    def _draw_words(self) -> None:
        watched = self.lab.watched
        eta = None if watched.job is None else self.lab.job_list.eta_seconds(watched.job)
        width = max(20, self.size.width - 6)
        if self.comparison is not None:
            said = compared_with(self.comparison[1], self.comparison[0])
        else:
            said = said_of(watched, eta, width)
        self.query_one("#bench-said", Static).update(said)

    def action_next_table(self) -> None:
        """Show the next of several tables."""
        self._number += 1
        self.draw_results()

    def leave(self) -> bool:
        """Leave the comparison."""
        if self.comparison is None:
            return False
        self.comparison, self._number = None, 0
        self.draw_results()
        return True

    # Keys

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what is missing before it can be done."""
        if not self.is_mounted:
            return super().unavailable(action, parameters)
        if action in ("run", "copy_command"):
            form = self.form
            said = next((one for one in (form.missing(), *form.faults().values()) if one), None)
            if said:
                return said[0].lower() + said[1:].rstrip(".")
        if action == "run" and self.lab.watched.is_running:
            return "one is measured now; c cancels it"
        if action == "cancel" and not self.lab.watched.is_running:
            return "nothing is measured now"
        if action == "next_table" and len(self.tables()) < 2:
            return "there is no other table"
        if action in ("copy", "export") and not self.tables():
            return "there is no result yet"
        return super().unavailable(action, parameters)

    def action_run(self) -> None:
        """Measure it as a job."""
        form = self.form
        self.lab.watched.begin(self.lab.begin(CALLS[form.kind], form.arguments(), form.title))
        self.comparison, self._number = None, 0
        self.lab.refresh_job_status()
        self.draw_results()

    def action_cancel(self) -> None:
        """Stop it."""
        job = self.lab.watched.job
        if job is not None:
            self.lab.jobs.cancel(job)

    def action_history(self) -> None:
        """Choose an earlier result."""
        self.run_worker(self._ask_for_result(), exclusive=True, group="history", exit_on_error=False)

    async def _ask_for_result(self) -> None:
        listed = await asyncio.to_thread(self.lab.session.bench_history)
        report = self.lab.watched.report
        current = _saved_as(report)
        rows = [
            row
            for row in listed.table("results").rows
            if row["error"] is None and row["id"] != current and (report is None or row["benchmark"] == report.command)
        ]
        if not rows:
            self.lab.say("There is no earlier result of this kind." if report else "Nothing was measured yet.")
            return
        choices = [Choice(row["id"], row["id"], f"{row['title']}  {row['device']}") for row in rows]

        def take(chosen: str | None) -> None:
            if chosen is not None:
                self.run_worker(self._take(chosen), exclusive=True, group="history", exit_on_error=False)

        self.app.push_screen(Pick("Compare with" if report else "Show an earlier result", choices), take)

    async def _take(self, chosen: str) -> None:
        session, report = self.lab.session, self.lab.watched.report
        try:
            if report is None and not self.lab.watched.is_running:
                self.lab.watched.show(await asyncio.to_thread(session.bench_result, chosen))
            elif report is not None:
                current = _saved_as(report) or _LATEST
                self.comparison = (chosen, await asyncio.to_thread(session.bench_compare, chosen, current))
            else:
                self.lab.say("One is measured now; what it gives can be compared when it is over.")
                return
        except LoraLabError as error:
            self.lab.say(str(error), severity="error")
            return
        self._number = 0
        self.draw_results()

    def copy_value(self) -> Copied | None:
        """The row under the cursor."""
        return self.table.copied() if self.tables() else None

    def export_document(self) -> ExportDocument | None:
        """The table shown, and the result as a whole."""
        if not self.tables():
            return None
        whole = self.comparison[1] if self.comparison is not None else self.lab.watched.report
        document = self.table.document("bench-comparison" if self.comparison else f"bench-{self.form.kind}")
        return document._replace(report=whole)


def _saved_as(report: Report | None) -> str | None:
    """The id under which a result is in the history."""
    groups = () if report is None else report.scalars
    return next((str(group.values["saved"]) for group in groups if not group.id and "saved" in group.values), None)
