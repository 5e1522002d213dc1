"""A change while it is made, and what came of it: figures, warnings, and a table to browse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.content import Content
from textual.widgets import Input, Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.compare.report_view import matching_rows
from lora_lab.tui.compare.words import finding_lines, refusal, scalar_parts
from lora_lab.tui.detail.spectrum_view import flowed
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.job_list import COMMITTING, IN_BYTES, MAKES
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.widgets.pane import Pane

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.report import Report, Table
    from lora_lab.jobs import Job
    from lora_lab.tui.export import Copied, ExportDocument
    from lora_lab.tui.messages import JobUpdated

_ACTIVE: Final = ("queued", "running")
_BAR_WIDTH: Final = 30
_PATH_WIDTH: Final = 60
_RESUMED: Final = ("merge", "unmerge", "swap")
_TICK_SECONDS: Final = 0.5
_FIRST: Final = {
    "modules": (
        *("diagnosis", "strength", "strength_error", "realised_cosine", "effective_strength", "changed_fraction"),
        *("rank", "relative_error", "ranks"),
    )
}
_VERDICTS: Final = {
    "verify": {True: ("✓ proven", "$text-success"), False: ("✗ refuted", "$text-error")},
    "push": {
        True: ("✓ everything is there as it was sent", "$text-success"),
        False: ("✗ other bytes arrived than were sent", "$text-error"),
    },
}
_NOT_ESTABLISHED: Final = ("? not established", "$text-warning")


class OutcomeScreen(LabScreen, inherit_bindings=False):
    """Progress of one job, then its report.

    Parameters
    ----------
    job : a change that was asked for
    """

    HELP_TITLE = "Outcome"
    HELP = "How far the change is, and when it is done what it did to each tensor."
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.of_screen(),
        bindings.key("c", "cancel", "Cancel", "Stop it; nothing half-made stays", id="outcome.cancel", show=True),
        bindings.key("m", "next_table", "Table", "Show the report's next table", id="outcome.table", show=True),
        bindings.key("o", "look_into", "Look into", "Look into the new adapter", id="outcome.open", show=True),
        bindings.key("v", "versus", "Versus", "Compare the new adapter with an input", id="outcome.versus",
                     show=True),
    ]  # fmt: skip
    DEFAULT_CSS = """
    OutcomeScreen #outcome-said { height: auto; max-height: 12; padding: 0 1; }
    OutcomeScreen ReportTable { height: 1fr; min-height: 4; }
    OutcomeScreen Input { border: none; height: 1; padding: 0 1; background: $panel; display: none; }
    OutcomeScreen.-filtering Input { display: block; }
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job.title)
        self.job = job
        self._tables: tuple[Table, ...] = ()
        self._number = 0
        self._filter = ""
        self._is_gone = False  # the process of a cancelled job

    def compose_body(self) -> ComposeResult:
        """Words above the rows."""
        with Pane(title=self.job.title, id="outcome-pane"):
            yield Static("", id="outcome-said")
            yield ReportTable()
            yield Input(placeholder="words of a module's name", id="outcome-filter")

    @property
    def table(self) -> ReportTable:
        """The rows."""
        return self.query_one(ReportTable)

    @property
    def report(self) -> Report | None:
        """What came of it, once it has come."""
        return self.lab.outcomes.get(self.job.id)

    def on_mount(self) -> None:
        """Keep rate and time left going."""
        super().on_mount()
        self.table.sorted_by = ("none", False)
        self.table.focus()
        self.set_interval(_TICK_SECONDS, self._tell_progress)
        self._draw()

    def on_job_updated(self, message: JobUpdated) -> None:
        """Show the change."""
        super().on_job_updated(message)
        if message.event.job is self.job:
            self._is_gone |= message.event.kind == "gone"
            if message.event.kind in ("started", "progress"):
                self._tell_progress()
            else:
                self._draw()

    def _tell_progress(self) -> None:
        if self.job.state in _ACTIVE:
            self._say(self._progress())

    def _progress(self) -> Content:
        job, jobs = self.job, self.lab.job_list
        if job.state == "queued" or not job.total:
            return Content.styled(
                "waiting for the job before it …" if job.state == "queued" else "begins …", "$foreground 70%"
            )
        rate, left = jobs.rate(job), jobs.eta_seconds(job)
        share = job.done / job.total
        if job.request.call in IN_BYTES:
            figures = [f"{text.size(job.done)} of {text.size(job.total)}"]
            figures += [f"{text.size(round(rate))}/s"] if rate else []
        else:
            figures = [f"{job.done} of {text.plural(job.total, 'module')}"]
            figures += [f"{text.number(rate, 3)}/s"] if rate else []
        figures += [f"{text.duration(left)} left"] if left is not None else []
        head = f"{text.bar(share, _BAR_WIDTH):<{_BAR_WIDTH}} {100 * job.done // job.total} %  {'  ·  '.join(figures)}"
        return Content("\n").join([Content(head), Content.styled(safe_text(job.what), "$foreground 65%")])

    def _cancelled(self) -> Content:
        """What a cancelled change has left; what is still being tidied up is told when its process has ended."""
        if self.job.request.call == "push":
            if self.job.what == COMMITTING:
                return Content(
                    "Cancelled while the commit was under way; the repository's page says whether it arrived."
                )
            return Content("Cancelled. Nothing was committed.")
        output = self.job.request.arguments.get("output")
        said = "Cancelled. Nothing was written under the output's name."
        if isinstance(output, str) and os.path.lexists(output):
            shown = safe_text(output, limit=_PATH_WIDTH)
            said = f"Cancelled. What stands under {shown} is whole: what was there before, or the new one."
        left = self._left_behind() if self._is_gone else []
        if not left:
            return Content(said)
        named = ", ".join(safe_text(path, limit=_PATH_WIDTH) for path in left)
        told = f"The process was ended before it had tidied up. It left {named}"
        if self.job.request.call in _RESUMED:
            told = f"{told}: the same command with --resume goes on from there; or remove it."
        else:
            told = f"{told}, which can be removed."
        return Content("\n").join([Content(said), Content.styled(told, "$text-warning")])

    def _left_behind(self) -> list[str]:
        from lora_lab.storage.staging import left_behind

        targets = [self.job.request.arguments.get(name) for name in ("output", "undo", "write_undo")]
        return [str(path) for target in targets if isinstance(target, str) for path in left_behind(Path(target))]

    def _draw(self) -> None:
        report = self.report
        if self.job.state == "failed":
            self._say(refusal(self.job.error or "", self.job.hint or ""))
        elif self.job.state == "cancelled":
            self._say(self._cancelled())
        elif report is None:
            self._say(self._progress())
        else:
            order = {"modules": 0, "files": 1}
            tables = (table for table in report.tables if table.rows)
            self._tables = tuple(sorted(tables, key=lambda table: order.get(table.id, 2)))
            self._show_table()
        self.refresh_bindings()

    def _show_table(self) -> None:
        if self._tables:
            table = self._tables[self._number]
            self.table.show_table(matching_rows(table, self._filter), first=_FIRST.get(table.id, ()))
        self._say(self._heading())

    def _heading(self) -> Content:
        report = self.report
        assert report is not None
        lines = []
        verdicts = _VERDICTS.get(self.job.request.call)
        if verdicts is not None:
            said, tone = _NOT_ESTABLISHED if report.verdict is None else verdicts[report.verdict]
            lines.append(Content.styled(said, f"bold {tone}"))
        parts = scalar_parts(report)
        if self._tables:
            table = self._tables[self._number]
            parts.append(Content.styled(f"{safe_text(table.title)} ({len(table.rows)})", "bold $text-primary"))
        if len(self._tables) > 1:
            other = self._tables[(self._number + 1) % len(self._tables)]
            parts.append(Content.styled(f"m: {safe_text(other.title)} ({len(other.rows)})", "$text-accent"))
        return Content("\n").join(
            [*lines, *finding_lines(report.findings), flowed(parts, max(20, self.size.width - 4))]
        )

    def on_resize(self, event: events.Resize) -> None:
        """Let the words flow in the new width."""
        super().on_resize(event)
        if self.report is not None and self.is_mounted:
            self._say(self._heading())

    def _say(self, said: Content) -> None:
        self.query_one("#outcome-said", Static).update(said)

    # Keys

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what needs a running job, or a report."""
        if action == "cancel" and self.job.state not in _ACTIVE:
            return "it is over"
        if action == "next_table" and len(self._tables) < 2:
            return "there is no other table"
        if action in ("filter", "copy", "export") and not self._tables:
            return "there is nothing to list yet"
        if action in ("look_into", "versus") and self.job.request.call not in MAKES:
            return "it made no adapter"
        if action in ("look_into", "versus") and self.report is None:
            return "the adapter is not there yet" if self.job.state in _ACTIVE else "there is no adapter"
        if action == "versus" and not self._inputs:
            return "it was made of models, and adapters are compared with adapters"
        return super().unavailable(action, parameters)

    def action_cancel(self) -> None:
        """Stop it."""
        self.lab.jobs.cancel(self.job)

    def action_next_table(self) -> None:
        """Show the next of several tables."""
        self._number = (self._number + 1) % len(self._tables)
        self._show_table()

    @property
    def _inputs(self) -> list[str]:
        """Adapters that an adapter was made of."""
        arguments = self.job.request.arguments
        return list(arguments.get("adapters") or filter(None, [arguments.get("adapter")]))

    def action_look_into(self) -> None:
        """Show the adapter that was made."""
        self.lab.open_detail(self.job.request.arguments["output"])

    def action_versus(self) -> None:
        """Show the adapter that was made beside one that it was made of."""
        from lora_lab.tui.combining.pick import Pick, choices_of

        def show(other: str | None) -> None:
            if other is not None:
                self.lab.open_compare((self.job.request.arguments["output"], other))

        if len(self._inputs) == 1:
            show(self._inputs[0])
        else:
            self.app.push_screen(Pick("Compare with", choices_of(self.lab, self._inputs)), show)

    def action_filter(self) -> None:
        """Type a filter."""
        self.add_class("-filtering")
        self.query_one("#outcome-filter", Input).focus()

    @on(Input.Changed, "#outcome-filter")
    def _filter_changed(self, message: Input.Changed) -> None:
        self._filter = " ".join(message.value.split())
        self._show_table()

    @on(Input.Submitted, "#outcome-filter")
    def _filter_done(self) -> None:
        self.remove_class("-filtering")
        self.table.focus()

    def leave(self) -> bool:
        """Leave the filter."""
        if not self.has_class("-filtering") and not self._filter:
            return False
        self.query_one("#outcome-filter", Input).value = ""
        self._filter_done()
        return True

    def copy_value(self) -> Copied | None:
        """The row under the cursor."""
        return self.table.copied() if self._tables else None

    def export_document(self) -> ExportDocument | None:
        """The table shown."""
        return self.table.document(self.job.request.call) if self._tables else None
