"""The screens that run an operation: a form, what would come of it, the command that does the same, and the job.

A screen says what is typed, which command line says it, and which job does it; what they have in common is here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

from textual import on
from textual.content import Content
from textual.widgets import Input, Static

from lora_lab.errors import LoraLabError
from lora_lab.jobs.model import JobRequest
from lora_lab.safetext import safe_text
from lora_lab.tui.compare.words import refusal
from lora_lab.tui.export import Copied
from lora_lab.tui.job_list import BACKGROUND
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.widgets.shell_line import ShellLine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from textual.timer import Timer

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job
    from lora_lab.jobs.model import Call
    from lora_lab.tui.messages import JobUpdated

_PLAN_PRIORITY: Final = 900


class OperationScreen(LabScreen, inherit_bindings=False):
    """A form, the command that does the same as what is typed, and the job that does it."""

    ESCAPE_GOES_BACK = True
    _timer: Timer | None = None

    @property
    @abstractmethod
    def command(self) -> str:
        """The command that does the same; empty while there is none."""

    def tell_command(self, instead: str = "") -> None:
        """Show the command; while there is none, the sentence `instead`."""
        self.query_one(ShellLine).tell(self.command, instead)

    def copy_value(self) -> Copied | None:
        """The command that does the same."""
        command = self.command
        return Copied("the command", command) if command else None

    def action_copy_command(self) -> None:
        """Copy the command, whatever has the focus."""
        self.app.copy_to_clipboard(self.command)
        self.lab.say("Copied the command.")

    def when_typed(self, seconds: float, do: Callable[[], None]) -> None:
        """Do it when nothing more has been typed for a while."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(seconds, do)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.app.action_focus_next()

    def show_outcome(self, job: Job, *, stays: bool = False) -> None:
        """Show how far the job is, and what came of it; the form stays below where one comes back to it."""
        from lora_lab.tui.changing.outcome import OutcomeScreen

        show = self.lab.push_screen if stays else self.lab.switch_screen
        show(OutcomeScreen(job))


class Filled(Protocol):
    """What stands in the fields of a form."""

    @property
    def call(self) -> Call:
        """The session's method."""

    def missing(self) -> str | None:
        """The sentence that asks for what is not there yet; None when nothing is missing."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the session's method; LoraLabError when a field cannot be read."""

    def command(self) -> str:
        """The command that does the same; LoraLabError as :meth:`arguments`."""


class DryRun(NamedTuple):
    """How a screen asks what would be done."""

    name: str  # of the jobs' group, and of what is said of them
    title: str  # of the jobs
    delay_seconds: float  # after the last key
    while_asked: str
    when_cancelled: str
    options: Mapping[str, Any] = {}  # beside dry_run
    is_awaited: bool = False  # the one that is under way is let end, as the newest goes next; else it is cancelled


class PlannedScreen(OperationScreen, inherit_bindings=False):
    """One whose dry run says what would be done, a moment after the last key.

    Parameters
    ----------
    crumb : where one is
    typed : what is known already, by field
    """

    DRY_RUN: ClassVar[DryRun]
    DEFAULT_CSS = """
    PlannedScreen .form--row { height: 1; }
    PlannedScreen .form--row Label { width: 11; color: $foreground 70%; }
    PlannedScreen Input { border: none; height: 1; padding: 0 1; background: $panel; width: 1fr; }
    PlannedScreen Input:focus { border: none; background: $primary 25%; }
    PlannedScreen .form--fields { height: auto; }
    PlannedScreen .form--fields VerticalScroll { height: auto; }
    PlannedScreen .form--plan { height: 1fr; min-height: 4; }
    """

    def __init__(self, crumb: str, typed: Mapping[str, str]) -> None:
        super().__init__(crumb)
        self._typed = dict(typed)
        self.said = Static("", id=f"{self.DRY_RUN.name}-said")
        self._job: Job | None = None
        self._is_stale = True  # what is typed is not what was asked
        self.plan: Report | None = None

    @property
    @abstractmethod
    def form(self) -> Filled:
        """What stands in the fields."""

    @abstractmethod
    def planned(self, plan: Report) -> Content:
        """What would be done, in words."""

    def needs_no_plan(self) -> str:
        """What is said of an operation that is not planned; empty for one that is."""
        return ""

    @property
    def command(self) -> str:
        """The command that does the same; empty while a field is, or cannot be read."""
        form = self.form
        try:
            return "" if form.missing() else form.command()
        except LoraLabError:
            return ""

    @on(Input.Changed)
    def changed(self) -> None:
        """Tell the command at once, and ask what would be done when nothing more is typed."""
        self.plan, self._is_stale = None, True
        self.tell_command()
        self.when_typed(self.DRY_RUN.delay_seconds, self.work_out)
        self.refresh_bindings()

    def jobs_ready(self) -> None:
        """Ask as soon as jobs can be given."""
        self.work_out()

    def work_out(self) -> None:
        """Ask what would be done, or say why it is not asked."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        form, way = self.form, self.DRY_RUN
        lacking = form.missing()
        if lacking is not None:
            self._say(Content.styled(safe_text(lacking), "$foreground 70%"))
            return
        try:
            arguments = form.arguments()
        except LoraLabError as error:
            self._say(refusal(error.message, error.hint))
            return
        if self.needs_no_plan():
            self._say(Content(self.needs_no_plan()))
        elif self.lab.is_measuring:
            self._say(Content.styled(way.while_asked, "$foreground 70%"))
            if way.is_awaited and self._job is not None and not self._job.is_over:
                return
            self._is_stale = False
            request = JobRequest(form.call, {**arguments, **way.options, "dry_run": True})
            group = f"{BACKGROUND}{way.name}"
            self._job = self.lab.jobs.submit(request, title=way.title, group=group, priority=_PLAN_PRIORITY)

    def on_job_updated(self, message: JobUpdated) -> None:
        """Show what would be done, or why it cannot be; an answer to what is no longer typed is passed over."""
        super().on_job_updated(message)
        event = message.event
        if self._job is None or event.job is not self._job or event.kind not in ("result", "failed", "cancelled"):
            return
        self._job = None
        if self._is_stale:
            if self._timer is None:
                self.work_out()
        elif event.kind == "result" and event.report is not None:
            self.plan = event.report
            self._say(self.planned(event.report))
        elif event.kind == "failed":
            self._say(refusal(event.job.error or "", event.job.hint or ""))
        else:
            self._say(Content(self.DRY_RUN.when_cancelled))

    def _say(self, said: Content) -> None:
        self.said.update(said)
        self.refresh_bindings()
