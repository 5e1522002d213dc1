"""The form of a push: where to, what would be sent, the card, and the command that does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Input, Label

from lora_lab.tui import bindings
from lora_lab.tui.confirm import ask
from lora_lab.tui.hub.card_dialog import CardDialog
from lora_lab.tui.hub.pages import Pages, Tick
from lora_lab.tui.hub.push_form import FIELDS, SWITCHES, PushForm
from lora_lab.tui.hub.push_words import plan_lines, question_of, values_of
from lora_lab.tui.operation import DryRun, PlannedScreen
from lora_lab.tui.widgets.pane import Pane
from lora_lab.tui.widgets.shell_line import ShellLine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.content import Content

    from lora_lab.domain.report import Report


class PushScreen(PlannedScreen, inherit_bindings=False):
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
        *bindings.of_screen("leave"),
        bindings.key("ctrl+g", "push", "Push", "Push it, after one question", id="push.push", show=True),
        bindings.key("f2,p", "preview", "Card", "Read the card as it would be sent", id="push.preview", show=True),
        bindings.key("ctrl+r,d", "plan", "Dry run", "Ask the Hub again what would be sent", id="push.plan", show=True),
        bindings.key("ctrl+y", "copy", "Command", "Copy the command that does the same", id="push.copy", show=True),
        bindings.key("escape", "back", "Back", "Go back without sending anything", id="push.back", show=True),
    ]
    DRY_RUN = DryRun(
        "push",
        "dry run of a push",
        delay_seconds=0.8,  # the Hub is asked each time
        while_asked="looking at the files, and asking the Hub …",
        when_cancelled="The dry run was cancelled; ctrl+r asks again.",
        is_awaited=True,
    )
    DEFAULT_CSS = """
    PushScreen #push-form { max-height: 60%; }
    """

    def __init__(self, folder: str, name: str, typed: Mapping[str, str]) -> None:
        super().__init__(f"push {name}", typed)
        self._folder = folder
        self._name = name

    # Building

    def compose_body(self) -> ComposeResult:
        """Fields, switches, plan, command."""
        with Pane(title=f"Push {self._name}", id="push-form", classes="form--fields"), VerticalScroll(can_focus=False):
            for one in FIELDS:
                with Horizontal(classes="form--row"):
                    yield Label(one.label)
                    yield Input(self._typed.get(one.id, ""), placeholder=one.about, id=f"push-{one.id}")
            with Horizontal(classes="form--row"):
                yield Label("")
                for one in SWITCHES:
                    yield Tick(one.label, id=f"push-{one.id}", tooltip=one.about)
        with Pane(title="Dry run", classes="form--plan"), Pages(id="push-pages"):
            yield self.said
        yield ShellLine(id="push-command")

    def on_mount(self) -> None:
        """Begin where something is to be typed."""
        super().on_mount()
        self.query_one("#push-repository", Input).focus()
        self.changed()

    @property
    def form(self) -> PushForm:
        """What stands in the fields."""
        typed = {one.id: self.query_one(f"#push-{one.id}", Input).value for one in FIELDS}
        switched = frozenset(one.id for one in SWITCHES if self.query_one(f"#push-{one.id}", Tick).value)
        return PushForm(self._folder, typed, switched, self.lab.session_options)

    @on(Tick.Changed)
    def _switched(self) -> None:
        self.changed()

    def planned(self, plan: Report) -> Content:
        """Who, where, and which files."""
        return plan_lines(plan)

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

    def action_plan(self) -> None:
        """Ask again."""
        self.changed()
        self.work_out()

    def action_preview(self) -> None:
        """Show the card."""
        if self.plan is not None:
            self.app.push_screen(CardDialog(str(values_of(self.plan)["card"])))

    def action_push(self) -> None:
        """Ask once, then push as a job what was shown, and nothing else."""
        if self.plan is None:
            return
        shown, form = values_of(self.plan), self.form

        def push() -> None:
            arguments = {**form.arguments(), "expected": str(shown["plan"])}
            self.show_outcome(self.lab.begin("push", arguments, f"push {shown['repository']}"))

        ask(self.app, question_of(self.plan), "push", push)
