"""The form: an operation, its fields, what it would do, and the command that does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Input, Label, RadioButton, RadioSet, Static

from lora_lab.errors import LoraLabError
from lora_lab.jobs.model import JobRequest
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.changing.form import CALLS, FIELDS, Form
from lora_lab.tui.changing.path_input import PathInput
from lora_lab.tui.compare.words import finding_lines, refusal
from lora_lab.tui.confirm import Confirm
from lora_lab.tui.export import Copied
from lora_lab.tui.job_list import BACKGROUND
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.widgets.pane import Overflow, Pane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.timer import Timer

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job
    from lora_lab.tui.changing.form import Call
    from lora_lab.tui.messages import JobUpdated

_PATH_WIDTH: Final = 60
_TITLE_WIDTH: Final = 40
_PLAN_SECONDS: Final = 0.3  # after the last key
_PLAN_PRIORITY: Final = 900
_RUN_PRIORITY: Final = 1000
_PLAN_GROUP: Final = f"{BACKGROUND}plan"


class ChangeScreen(LabScreen, inherit_bindings=False):
    """Merges, unmerges, swaps or verifies.

    Parameters
    ----------
    call : the operation to begin with
    typed : what is known already, by field
    """

    HELP_TITLE = "Change a model"
    HELP = "What would be done is worked out while you type; nothing is written before ctrl+g."
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.FOCUS,
        *(binding for binding in bindings.SCREEN if binding.id != "leave"),
        bindings.key("ctrl+g", "run", "Go", "Do it, as a job", id="change.run", show=True),
        bindings.key("ctrl+y", "copy", "Command", "Copy the command that does the same", id="change.copy", show=True),
        bindings.key("escape", "back", "Back", "Go back without doing anything", id="change.back", show=True),
    ]
    DEFAULT_CSS = """
    ChangeScreen RadioSet { layout: horizontal; height: 1; border: none; background: $background; padding: 0; }
    ChangeScreen RadioSet:focus { border: none; }
    ChangeScreen RadioButton { width: auto; margin-right: 2; background: $background; border: none; }
    ChangeScreen .change--row { height: 1; }
    ChangeScreen .change--row Label { width: 11; color: $foreground 70%; }
    ChangeScreen Input { border: none; height: 1; padding: 0 1; background: $panel; width: 1fr; }
    ChangeScreen Input:focus { border: none; background: $primary 25%; }
    ChangeScreen #change-form { height: auto; max-height: 70%; }
    ChangeScreen #change-form VerticalScroll { height: auto; }
    ChangeScreen #change-plan { height: 1fr; min-height: 4; }
    ChangeScreen #change-command { height: auto; max-height: 3; padding: 0 1; color: $foreground 70%; }
    """

    def __init__(self, call: Call, typed: Mapping[str, str]) -> None:
        super().__init__("change a model")
        self._first = call
        self._typed = dict(typed)
        self._timer: Timer | None = None
        self._job: Job | None = None
        self.plan: Report | None = None

    # Building

    def compose_body(self) -> ComposeResult:
        """Operations, fields, plan, command."""
        with Pane(title="Change a model", id="change-form"), Overflow():
            with RadioSet(id="change-call"):
                for call in CALLS:
                    yield RadioButton(call, value=call == self._first)
            for one in {one.id: one for call in CALLS for one in FIELDS[call]}.values():
                with Horizontal(classes="change--row", id=f"row-{one.id}"):
                    yield Label(one.label)
                    yield PathInput(self._typed.get(one.id, ""), id=f"field-{one.id}")
        with Pane(title="Plan", id="change-plan"), Overflow():
            yield Static("", id="change-said")
        yield Static("", id="change-command")

    def on_mount(self) -> None:
        """Show the fields of the first operation."""
        super().on_mount()
        self._show_fields()
        first = next((one for one in FIELDS[self.call] if not self._typed.get(one.id)), FIELDS[self.call][0])
        self.query_one(f"#field-{first.id}", Input).focus()

    @property
    def call(self) -> Call:
        """The operation chosen."""
        place = self.query_one(RadioSet).pressed_index
        return CALLS[place] if place >= 0 else self._first

    @property
    def form(self) -> Form:
        """What stands in the fields."""
        typed = {one.id: self.query_one(f"#field-{one.id}", Input).value for one in FIELDS[self.call]}
        return Form(self.call, typed, self.lab.session_options)

    @on(RadioSet.Changed)
    def _show_fields(self) -> None:
        places = {one.id: place for place, one in enumerate(FIELDS[self.call])}
        rows = self.query(".change--row")
        for row in rows:
            row.display = (row.id or "").removeprefix("row-") in places
        for one in FIELDS[self.call]:
            row = self.query_one(f"#row-{one.id}")
            row.query_one(Label).update(one.label)
            row.query_one(Input).placeholder = one.about
        box = self.query_one("#change-form VerticalScroll")
        # The dot of the operation chosen differs in brightness alone, which not every terminal shows.
        self.query_one("#change-form", Pane).entitle(f"Change a model: {self.call}")
        box.sort_children(key=lambda child: places.get((child.id or "").removeprefix("row-"), -1))
        self._changed()

    # The plan

    @on(Input.Changed)
    def _changed(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self.plan = None
        self._tell_command()
        self._timer = self.set_timer(_PLAN_SECONDS, self._work_out)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.app.action_focus_next()

    def jobs_ready(self) -> None:
        """Work the plan out as soon as jobs can be given."""
        self._work_out()

    def _work_out(self) -> None:
        form = self.form
        lacking = form.missing()
        if lacking is not None:
            self._say(Content.styled(safe_text(lacking), "$foreground 70%"))
            return
        try:
            arguments = form.arguments()
        except LoraLabError as error:
            self._say(refusal(error.message, error.hint))
            return
        if form.call == "verify":
            self._say(Content("Reads, compares and says what it finds; nothing is written. ctrl+g begins."))
            return
        if not self.lab.is_measuring:
            return
        self._say(Content.styled("working it out …", "$foreground 70%"))
        request = JobRequest(form.call, {**arguments, "overwrite": True, "dry_run": True})
        self._job = self.lab.jobs.submit(request, title="plan", group=_PLAN_GROUP, priority=_PLAN_PRIORITY)

    def on_job_updated(self, message: JobUpdated) -> None:
        """Show what would be done, or why it cannot be."""
        super().on_job_updated(message)
        event = message.event
        if self._job is None or event.job is not self._job:
            return
        if event.kind == "result" and event.report is not None:
            self.plan = event.report
            self._say(self._planned(event.report))
        elif event.kind == "failed":
            self._say(refusal(event.job.error or "", event.job.hint or ""))

    def _planned(self, report: Report) -> Content:
        planned = next(dict(group.values) for group in report.scalars if group.id == "plan")
        changing = text.plural(planned["tensors_to_change"], "tensor changes", "tensors change")
        writes = f"{text.size(planned['bytes_to_write'])} to write, {text.size(planned['bytes_free'])} free"
        if planned["undo_bytes_at_most"] is not None:
            writes = f"{writes}  ·  undo file at most {text.size(planned['undo_bytes_at_most'])}"
        lines = [Content(f"{changing}  ·  {writes}")]
        for path in self.form.replaced():
            there = f"{safe_text(path, limit=_PATH_WIDTH)} is there already; ctrl+g asks before it is replaced."
            lines.append(Content.assemble(Content.styled("⚠ ", "$text-warning"), there))
        return Content("\n").join([*lines, *finding_lines(report.findings), Content("ctrl+g does it.")])

    def _say(self, said: Content) -> None:
        self.query_one("#change-said", Static).update(said)
        self.refresh_bindings()

    def _tell_command(self) -> None:
        command = self._command()
        self.query_one("#change-command", Static).update(Content(f"$ {safe_text(command)}" if command else ""))

    def _command(self) -> str:
        try:
            return "" if self.form.missing() else self.form.command()
        except LoraLabError:
            return ""

    def copy_value(self) -> Copied | None:
        """The command that does the same."""
        command = self._command()
        return Copied("the command", command) if command else None

    # Doing it

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what is missing before it can be done, or copied as a command."""
        if action in ("run", "copy") and self.is_mounted:
            if self.form.missing() is not None:
                return "a field is empty that is needed"
            if action == "run" and self.call != "verify" and self.plan is None:
                return "the plan is not worked out, or does not stand"
        return super().unavailable(action, parameters)

    def action_run(self) -> None:
        """Do it as a job; ask before a folder is replaced."""
        form = self.form
        there = form.replaced()
        if there:

            def answer(yes: bool | None) -> None:
                if yes:
                    self._run(form, overwrite=True)

            verb = "is" if len(there) == 1 else "are"
            named = " and ".join(safe_text(path, limit=_PATH_WIDTH) for path in there)
            self.app.push_screen(Confirm(f"{named} {verb} there already, and would be replaced.", "replace"), answer)
        else:
            self._run(form)

    def _run(self, form: Form, *, overwrite: bool = False) -> None:
        from lora_lab.tui.changing.outcome import OutcomeScreen

        arguments = form.arguments() | ({"overwrite": True} if overwrite else {})
        shown = str(arguments.get("output") or arguments["merged"])
        request = JobRequest(form.call, arguments)
        title = f"{form.call} {safe_text(shown, limit=_TITLE_WIDTH)}"
        job = self.lab.jobs.submit(request, title=title, priority=_RUN_PRIORITY)
        self.lab.job_list.add(job)
        self.lab.switch_screen(OutcomeScreen(job))
