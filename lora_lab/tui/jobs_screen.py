"""The list of jobs: what runs, how far it is, and what went wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.content import Content
from textual.widgets import Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.export import Copied, ExportDocument
from lora_lab.tui.job_list import IN_BYTES
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.widgets.pane import Pane
from lora_lab.tui.widgets.table import Cell, LabTable, TableColumn

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.jobs import Job
    from lora_lab.tui.messages import JobUpdated

_COLUMNS: Final = (
    TableColumn("what", "what", 24, is_flexible=True, is_fixed=True),
    TableColumn("state", "state", 11),
    TableColumn("progress", "progress", 16),
    TableColumn("count", "count", 10, is_right=True),
    TableColumn("eta", "eta", 6, is_right=True),
)
_BAR_WIDTH: Final = 10
_TONES: Final = {"running": "a", "done": "good", "failed": "bad", "cancelled": "dim", "queued": "dim"}
_SIGNS: Final = {"running": "▶", "done": "✓", "failed": "✗", "cancelled": "–", "queued": "·"}
_ACTIVE: Final = ("queued", "running")
_TICK_SECONDS: Final = 1.0  # of the ETA


class JobTable(LabTable, inherit_bindings=False):
    """Jobs, newest first."""

    HELP_TITLE = "Jobs"
    BINDINGS: ClassVar[list[BindingType]] = [
        *LabTable.BINDINGS,
        bindings.key("c", "screen.cancel", "Cancel", "Cancel the job under the cursor", id="jobs.cancel", show=True),
        bindings.key("R", "screen.retry", "Retry", "Run the job again", id="jobs.retry", show=True),
        bindings.key(
            "D", "screen.clear", "Clear finished", "Take finished jobs off the list", id="jobs.clear", show=True
        ),
    ]


class JobsScreen(LabScreen):
    """Every job of this run; those that only fill a table leave the list when they are done."""

    HELP_TITLE = "Jobs screen"
    DEFAULT_CSS = """
    #job-table { height: 1fr; }
    #job-error { height: auto; max-height: 8; padding: 0 1; color: $text-error; background: $panel; }
    #job-none { content-align: center middle; height: 1fr; color: $foreground 70%; }
    """

    def __init__(self) -> None:
        super().__init__("jobs")

    def compose_body(self) -> ComposeResult:
        """The table, and the reason of the failed job under the cursor."""
        with Pane(title="Jobs", id="job-pane"):
            yield JobTable(_COLUMNS, self._cell, id="job-table")
            yield Static(Content("No jobs."), id="job-none")
            yield Static("", id="job-error")

    @property
    def table(self) -> JobTable:
        """The table."""
        return self.query_one(JobTable)

    def on_mount(self) -> None:
        """Show what is known, and keep the ETA going."""
        self.table.focus()
        self._draw()
        self.set_interval(_TICK_SECONDS, self.table.refresh)

    def on_job_updated(self, _message: JobUpdated) -> None:
        """Show the change."""
        self._draw()

    def _draw(self) -> None:
        jobs = self.lab.job_list.jobs
        self._known = {str(job.id): job for job in jobs}
        self.table.set_rows(list(self._known))
        self.table.display = bool(jobs)
        self.query_one("#job-none").display = not jobs
        active = sum(job.state in _ACTIVE for job in jobs)
        self.query_one("#job-pane", Pane).entitle("Jobs", f"{active} of {len(jobs)} active" if jobs else "")
        self._explain()
        self.refresh_bindings()

    @property
    def job(self) -> Job | None:
        """The job under the cursor."""
        return self._known.get(self.table.cursor_key or "")

    @on(LabTable.CursorMoved)
    def _explain(self) -> None:
        """Show the reason under the table, whole."""
        job = self.job
        box = self.query_one("#job-error", Static)
        reason = error_of(job) if job is not None else ""
        box.display = bool(reason)
        box.update(Content(reason))
        self.refresh_bindings()

    def _cell(self, key: str, column: str) -> Cell:
        job = self._known[key]
        if column == "what":
            return Cell(safe_text(job.title))
        if column == "state":
            return Cell(f"{_SIGNS[job.state]} {job.state}", _TONES[job.state])
        if column == "count":
            return Cell(self._counted(job), "dim")
        if column == "eta":
            eta = self.lab.job_list.eta_seconds(job)
            return Cell("" if eta is None else text.duration(eta))
        if not job.total or job.state not in ("running", "done"):
            return Cell("")
        share = 1.0 if job.state == "done" else job.done / job.total
        return Cell(f"{text.bar(share, _BAR_WIDTH):<{_BAR_WIDTH}} {int(100 * share):>3} %", "a")

    def _counted(self, job: Job) -> str:
        """How many units are done; of bytes, how many a second."""
        if job.request.call not in IN_BYTES:
            return f"{job.done}/{job.total}" if job.total else ""
        rate = self.lab.job_list.rate(job)
        return f"{text.size(round(rate))}/s" if rate else ""

    @on(LabTable.Opened, "#job-table")
    def _opened(self) -> None:
        """Show how far a change is, or what came of it."""
        from lora_lab.tui.changing.outcome import OutcomeScreen

        job = self.job
        if job is not None and job in self.lab.job_list.changes():
            self.app.switch_screen(OutcomeScreen(job))
        else:
            self.lab.say("What this computes is on the screen that asked for it.")

    # Keys

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what needs a job, or a job in another state."""
        job = self.job if self.is_mounted else None
        if action == "cancel" and (job is None or job.state not in _ACTIVE):
            return "only a queued or running job can be cancelled"
        if action == "retry" and (job is None or job.state in _ACTIVE):
            return "only a job that is over can be run again"
        if action == "clear" and not any(job.state not in _ACTIVE for job in self.lab.job_list.jobs):
            return "no job is finished"
        if action == "copy" and (job is None or not error_of(job)):
            return "only a failed job has an error to copy"
        if action == "export" and job is None:
            return "there are no jobs"
        return super().unavailable(action, parameters)

    def action_cancel(self) -> None:
        """Cancel the job under the cursor."""
        if self.job is not None:
            self.lab.jobs.cancel(self.job)
            self._draw()

    def action_retry(self) -> None:
        """Run the job under the cursor again, with what it was asked for."""
        job = self.job
        if job is not None:
            self.lab.job_list.forget(job)
            # The yes to replacing something was about what was there then.
            arguments = {name: value for name, value in job.request.arguments.items() if name != "overwrite"}
            request = replace(job.request, arguments=arguments)
            again = self.lab.jobs.submit(request, title=job.title, group=job.group, priority=job.priority)
            self.lab.job_list.add(again)
            self._draw()

    def action_clear(self) -> None:
        """Take finished jobs off the list."""
        for job in self.lab.job_list.jobs:
            if job.state not in _ACTIVE:
                self.lab.job_list.forget(job)
        self._draw()

    def copy_value(self) -> Copied | None:
        """The reason of a failed job."""
        job = self.job
        reason = error_of(job) if job is not None else ""
        return Copied("the error", reason) if reason else None

    def export_document(self) -> ExportDocument | None:
        """All jobs listed."""
        rows = [[job.title, str(job.state), job.done, job.total, job.error] for job in self.lab.job_list.jobs]
        return ExportDocument("jobs", ["title", "state", "done", "total", "error"], rows)


def error_of(job: Job) -> str:
    """What went wrong and what to do, or nothing."""
    return safe_text(" ".join(filter(None, (job.error, job.hint)))) if job.state == "failed" else ""
