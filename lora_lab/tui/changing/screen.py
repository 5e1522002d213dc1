"""The form: an operation, its fields, what it would do, and the command that does the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Input, Label, RadioButton, RadioSet

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.changing.form import CALLS, FIELDS, Form
from lora_lab.tui.changing.path_input import PathInput
from lora_lab.tui.compare.words import finding_lines
from lora_lab.tui.confirm import ask
from lora_lab.tui.operation import DryRun, PlannedScreen
from lora_lab.tui.widgets.pane import Overflow, Pane
from lora_lab.tui.widgets.shell_line import ShellLine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.report import Report
    from lora_lab.tui.changing.form import Call

_PATH_WIDTH: Final = 60
_TITLE_WIDTH: Final = 40


class ChangeScreen(PlannedScreen, inherit_bindings=False):
    """Merges, unmerges, swaps or verifies.

    Parameters
    ----------
    call : the operation to begin with
    typed : what is known already, by field
    """

    HELP_TITLE = "Change a model"
    HELP = "What would be done is worked out while you type; nothing is written before ctrl+g."
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.of_screen("leave"),
        bindings.key("ctrl+g", "run", "Go", "Do it, as a job", id="change.run", show=True),
        bindings.key("ctrl+y", "copy", "Command", "Copy the command that does the same", id="change.copy", show=True),
        bindings.key("escape", "back", "Back", "Go back without doing anything", id="change.back", show=True),
    ]
    DRY_RUN = DryRun(
        "change",
        "plan",
        delay_seconds=0.3,
        while_asked="working it out …",
        when_cancelled="It was cancelled; it is worked out again when something is typed.",
        options={"overwrite": True},
    )
    DEFAULT_CSS = """
    ChangeScreen RadioSet { layout: horizontal; height: 1; border: none; background: $background; padding: 0; }
    ChangeScreen RadioSet:focus { border: none; }
    ChangeScreen RadioButton { width: auto; margin-right: 2; background: $background; border: none; }
    ChangeScreen #change-form { max-height: 70%; }
    """

    def __init__(self, call: Call, typed: Mapping[str, str]) -> None:
        super().__init__("change a model", typed)
        self._first = call

    # Building

    def compose_body(self) -> ComposeResult:
        """Operations, fields, plan, command."""
        with Pane(title="Change a model", id="change-form", classes="form--fields"), Overflow():
            with RadioSet(id="change-call"):
                for call in CALLS:
                    yield RadioButton(call, value=call == self._first)
            for one in {one.id: one for call in CALLS for one in FIELDS[call]}.values():
                with Horizontal(classes="form--row", id=f"row-{one.id}"):
                    yield Label(one.label)
                    yield PathInput(self._typed.get(one.id, ""), id=f"field-{one.id}")
        with Pane(title="Plan", classes="form--plan"), Overflow():
            yield self.said
        yield ShellLine(id="change-command")

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
        rows = self.query(".form--row")
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
        self.changed()

    # The plan

    def needs_no_plan(self) -> str:
        """What is said of a verification, which writes nothing."""
        return "Reads, compares and says what it finds; nothing is written. ctrl+g begins." * (self.call == "verify")

    def planned(self, plan: Report) -> Content:
        """Tensors and bytes, what is replaced, warnings."""
        planned = next(dict(group.values) for group in plan.scalars if group.id == "plan")
        changing = text.plural(planned["tensors_to_change"], "tensor changes", "tensors change")
        writes = f"{text.size(planned['bytes_to_write'])} to write, {text.size(planned['bytes_free'])} free"
        if planned["undo_bytes_at_most"] is not None:
            writes = f"{writes}  ·  undo file at most {text.size(planned['undo_bytes_at_most'])}"
        lines = [Content(f"{changing}  ·  {writes}")]
        for path in self.form.replaced():
            there = f"{safe_text(path, limit=_PATH_WIDTH)} is there already; ctrl+g asks before it is replaced."
            lines.append(Content.assemble(Content.styled("⚠ ", "$text-warning"), there))
        return Content("\n").join([*lines, *finding_lines(plan.findings), Content("ctrl+g does it.")])

    # Doing it

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what is missing before it can be done, or copied as a command."""
        if action in ("run", "copy") and self.is_mounted:
            if self.form.missing() is not None:
                return "a field is empty that is needed"
            if action == "run" and not self.needs_no_plan() and self.plan is None:
                return "the plan is not worked out, or does not stand"
        return super().unavailable(action, parameters)

    def action_run(self) -> None:
        """Do it as a job; ask before a folder is replaced."""
        form = self.form
        there = form.replaced()
        if not there:
            self._run(form)
            return
        verb = "is" if len(there) == 1 else "are"
        named = " and ".join(safe_text(path, limit=_PATH_WIDTH) for path in there)
        question = f"{named} {verb} there already, and would be replaced."
        ask(self.app, question, "replace", lambda: self._run(form, overwrite=True))

    def _run(self, form: Form, **options: bool) -> None:
        arguments = form.arguments() | options
        shown = safe_text(str(arguments.get("output") or arguments["merged"]), limit=_TITLE_WIDTH)
        self.show_outcome(self.lab.begin(form.call, arguments, f"{form.call} {shown}"))
