"""The form of a push: where to, what would be sent, the card, and the command that does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Label, Static

from lora_lab.jobs.model import JobRequest
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.compare.words import refusal
from lora_lab.tui.confirm import Confirm
from lora_lab.tui.export import Copied
from lora_lab.tui.hub.card_dialog import CardDialog
from lora_lab.tui.hub.pages import Pages, Tick
from lora_lab.tui.hub.push_form import FIELDS, SWITCHES, PushForm
from lora_lab.tui.hub.push_words import plan_lines, question_of, values_of
from lora_lab.tui.job_list import BACKGROUND
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.timer import Timer

    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job
    from lora_lab.tui.messages import JobUpdated

_PLAN_SECONDS: Final = 0.8  # after the last key: the Hub is asked each time
_PLAN_PRIORITY: Final = 900
_PUSH_PRIORITY: Final = 1000
_PLAN_GROUP: Final = f"{BACKGROUND}push"


class PushScreen(LabScreen, inherit_bindings=False):
    """Pushes one adapter or model.

    Parameters
    ----------
    folder : that is pushed
    name : what it is called
    typed : what is known already, by field
    """

    HELP_TITLE = "Push to the Hub"
    HELP = "What would be sent is worked out while you type; nothing leaves this machine before ctrl+g and a yes."
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.FOCUS,
        *(binding for binding in bindings.SCREEN if binding.id != "leave"),
        bindings.key("ctrl+g", "push", "Push", "Push it, after one question", id="push.push", show=True),
        bindings.key("f2,p", "preview", "Card", "Read the card as it would be sent", id="push.preview", show=True),
        bindings.key("ctrl+r,d", "plan", "Dry run", "Ask the Hub again what would be sent", id="push.plan", show=True),
        bindings.key("ctrl+y", "copy", "Command", "Copy the command that does the same", id="push.copy", show=True),
        bindings.key("escape", "back", "Back", "Go back without sending anything", id="push.back", show=True),
    ]
    DEFAULT_CSS = """
    PushScreen .push--row { height: 1; }
    PushScreen .push--row Label { width: 11; color: $foreground 70%; }
    PushScreen Input { border: none; height: 1; padding: 0 1; background: $panel; width: 1fr; }
    PushScreen Input:focus { border: none; background: $primary 25%; }
    PushScreen #push-form { height: auto; max-height: 60%; }
    PushScreen #push-form VerticalScroll { height: auto; }
    PushScreen #push-plan { height: 1fr; min-height: 4; }
    PushScreen #push-command { height: auto; max-height: 3; padding: 0 1; color: $foreground 70%; }
    """

    def __init__(self, folder: str, name: str, typed: Mapping[str, str]) -> None:
        super().__init__(f"push {name}")
        self._folder = folder
        self._name = name
        self._typed = dict(typed)
        self._timer: Timer | None = None
        self._job: Job | None = None
        self._is_stale = False  # something was typed while the Hub was asked
        self.plan: Report | None = None

    # Building

    def compose_body(self) -> ComposeResult:
        """Fields, switches, plan, command."""
        with Pane(title=f"Push {self._name}", id="push-form"), VerticalScroll(can_focus=False):
            for one in FIELDS:
                with Horizontal(classes="push--row"):
                    yield Label(one.label)
                    yield Input(self._typed.get(one.id, ""), placeholder=one.about, id=f"push-{one.id}")
            with Horizontal(classes="push--row"):
                yield Label("")
                for one in SWITCHES:
                    yield Tick(one.label, id=f"push-{one.id}", tooltip=one.about)
        with Pane(title="Dry run", id="push-plan"), Pages(id="push-pages"):
            yield Static("", id="push-said")
        yield Static("", id="push-command")

    def on_mount(self) -> None:
        """Begin where something is to be typed."""
        super().on_mount()
        self.query_one("#push-repository", Input).focus()
        self._changed()

    @property
    def form(self) -> PushForm:
        """What stands in the fields."""
        typed = {one.id: self.query_one(f"#push-{one.id}", Input).value for one in FIELDS}
        switched = frozenset(one.id for one in SWITCHES if self.query_one(f"#push-{one.id}", Tick).value)
        return PushForm(self._folder, typed, switched, self.lab.session_options)

    # The plan

    @on(Input.Changed)
    @on(Tick.Changed)
    def _changed(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self.plan = None
        command = "" if self.form.missing() else f"$ {safe_text(self.form.command())}"
        self.query_one("#push-command", Static).update(Content(command))
        self._timer = self.set_timer(_PLAN_SECONDS, self._work_out)
        self.refresh_bindings()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.app.action_focus_next()

    def jobs_ready(self) -> None:
        """Ask as soon as jobs can be given."""
        self._work_out()

    def action_plan(self) -> None:
        """Ask again."""
        self.plan = None
        self._work_out()

    def _work_out(self) -> None:
        """Ask what would be sent; one question at a time, the newest next."""
        form = self.form
        lacking = form.missing()
        if lacking is not None:
            self._say(Content.styled(safe_text(lacking), "$foreground 70%"))
            return
        if not self.lab.is_measuring:
            return
        self._say(Content.styled("looking at the files, and asking the Hub …", "$foreground 70%"))
        if self._job is not None and not self._job.is_over:
            self._is_stale = True
            return
        self._is_stale = False
        request = JobRequest("push", {**form.arguments(), "dry_run": True})
        self._job = self.lab.jobs.submit(request, title="dry run of a push", group=_PLAN_GROUP, priority=_PLAN_PRIORITY)

    def on_job_updated(self, message: JobUpdated) -> None:
        """Show what would be sent, or why nothing can be."""
        super().on_job_updated(message)
        event = message.event
        if self._job is None or event.job is not self._job or event.kind not in ("result", "failed", "cancelled"):
            return
        self._job = None
        if self._is_stale:
            self._work_out()
        elif event.kind == "result" and event.report is not None:
            self.plan = event.report
            self._say(plan_lines(event.report))
        elif event.kind == "failed":
            self._say(refusal(event.job.error or "", event.job.hint or ""))
        else:
            self._say(Content("The dry run was cancelled; ctrl+r asks again."))

    def _say(self, said: Content) -> None:
        self.query_one("#push-said", Static).update(said)
        self.refresh_bindings()

    def copy_value(self) -> Copied | None:
        """The command that does the same."""
        return None if self.form.missing() else Copied("the command", self.form.command())

    # Doing it

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what is missing before it can be pushed, previewed or copied."""
        if action in ("push", "preview", "copy", "plan") and self.is_mounted:
            if self.form.missing() is not None:
                return "the repository is not named yet"
            if action in ("push", "preview") and self.plan is None:
                return "what would be sent is not worked out, or cannot be sent"
            if action == "push" and self.plan is not None and values_of(self.plan)["exists"] is None:
                return "the Hub was not asked, since lora-lab or its client is offline"
        return super().unavailable(action, parameters)

    def action_preview(self) -> None:
        """Show the card."""
        if self.plan is not None:
            self.app.push_screen(CardDialog(str(values_of(self.plan)["card"])))

    def action_push(self) -> None:
        """Ask once, then push as a job what was shown, and nothing else."""
        plan, form = self.plan, self.form
        if plan is None:
            return

        def answer(yes: bool | None) -> None:
            if yes:
                self._push(form, str(values_of(plan)["plan"]), str(values_of(plan)["repository"]))

        self.app.push_screen(Confirm(question_of(plan), "push"), answer)

    def _push(self, form: PushForm, expected: str, repository: str) -> None:
        from lora_lab.tui.changing.outcome import OutcomeScreen

        request = JobRequest("push", {**form.arguments(), "expected": expected})
        job = self.lab.jobs.submit(request, title=f"push {repository}", priority=_PUSH_PRIORITY)
        self.lab.job_list.add(job)
        self.lab.switch_screen(OutcomeScreen(job))
