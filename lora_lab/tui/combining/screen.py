"""The wizard: the form, what would come of it while it is typed, and doing it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.content import Content
from textual.widgets import Static

from lora_lab.domain.report import Table
from lora_lab.operations.method_columns import METHODS
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.combining.asking import Asker, Question
from lora_lab.tui.combining.form import CombineForm
from lora_lab.tui.combining.pick import Pick, adapters_of
from lora_lab.tui.combining.recipe import Source
from lora_lab.tui.combining.words import SIGN_ROWS, foretold
from lora_lab.tui.compare.words import refusal
from lora_lab.tui.confirm import ask
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.widgets.pane import Pane
from lora_lab.tui.widgets.table import LabTable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual import events
    from textual.binding import BindingType

    from lora_lab.domain.report import Report
    from lora_lab.tui.combining.recipe import Operation, Recipe
    from lora_lab.tui.export import Copied, ExportDocument
    from lora_lab.tui.messages import JobUpdated

_ASK_SECONDS: Final = 0.3  # after the last key
_GRACE_SECONDS: Final = 1.0
_PLAN_PRIORITY: Final = 900
_MEETING_PRIORITY: Final = 890
_COMPARISON_PRIORITY: Final = 880
_TALL: Final = 32
_SCROLLBAR: Final = 1  # it may come with what is written
_FIRST: Final = ("rank", "relative_error", "ranks", "norm")


class CombineScreen(CombineForm, inherit_bindings=False):
    """Combines adapters, resizes one, or extracts one from a fine-tune; parameters as of :class:`CombineForm`."""

    HELP_TITLE = "Combine"
    HELP = (
        "Pane 4 shows what would come of it while you type; nothing is written before ctrl+g. In fields for numbers "
        "letters are keys of the screen."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.of_screen("leave", "copy"),
        bindings.key("ctrl+g", "run", "Go", "Do it, as a job", id="combine.run", show=True),
        bindings.key("a", "add", "Add", "Add an input, from the library or by its path", id="combine.add", show=True),
        bindings.key("m,ctrl+t", "modules", "Modules", "Show or hide the error module by module",
                     id="combine.modules", show=True),
        bindings.key("e,ctrl+l", "methods", "Errors", "What each method would lose; enter on a row chooses it",
                     id="combine.methods", show=True),
        bindings.key("ctrl+y", "copy_command", "Command", "Copy the command that does the same",
                     id="combine.command", show=True),
        bindings.key("y", "copy", "Copy", "Copy the row under the cursor of a table, else the command", id="copy"),
        bindings.key("escape", "leave", "Back", "Leave the table, or go back without doing anything",
                     id="leave", show=True),
    ]  # fmt: skip

    def __init__(self, operation: Operation, sources: Sequence[Source], typed: Mapping[str, str]) -> None:
        super().__init__(operation, sources, typed)
        self._plan = Asker("combine preview", _PLAN_PRIORITY)
        self._meeting = Asker("interference preview", _MEETING_PRIORITY)
        self._comparison = Asker("methods preview", _COMPARISON_PRIORITY)
        self._is_typing = True  # since the last question

    def on_mount(self) -> None:
        """Begin."""
        for table in (self.table, self.compared):
            table.sorted_by = ("none", False)
        self.call_after_refresh(self.jobs_ready)

    def on_screen_resume(self) -> None:
        """What is there may have changed since."""
        if self.is_mounted:
            self.show_faults(self.recipe.faults())
            self.draw_preview()

    def on_resize(self, event: events.Resize) -> None:
        """Show words and table together where there is room for both."""
        self.set_class(event.size.height >= _TALL, "-tall")

    # Asking

    def jobs_ready(self) -> None:
        """Ask as soon as jobs can be given."""
        self.open_desk()
        self._ask()

    def changed(self) -> None:
        """Show what is wrong at once, and ask what would come of it when nothing more is typed."""
        if not self.is_mounted:
            return
        self._is_typing = True
        self.show_faults(self.recipe.faults())
        self.tell_command()
        self.when_typed(_ASK_SECONDS, self._ask)
        self.draw_preview()

    def _ask(self) -> None:
        recipe = self.recipe
        self._is_typing = False
        self.tell_command()
        if self.desk is not None:
            is_sound = recipe.lacking() is None and not set(recipe.faults()) - {"output"}
            self._plan.ask(Question(recipe.operation, recipe.foretelling()) if is_sound else None, self.desk)
            self._meeting.ask(_meeting_of(recipe) if is_sound else None, self.desk)
            is_compared = is_sound and recipe.operation == "combine" and self.has_class("-methods")
            asked = Question("compare_methods", recipe.comparison(self.settings_of_all())) if is_compared else None
            self._comparison.ask(asked, self.desk)
            if any(asker.is_obsolete for asker in self._askers):
                self.set_timer(_GRACE_SECONDS, self._expire)
            self.lab.refresh_job_status()
        self.draw_preview()

    def _expire(self) -> None:
        if self.desk is not None:
            for asker in self._askers:
                asker.expire(self.desk)

    def on_job_updated(self, message: JobUpdated) -> None:
        """Take in what our own jobs tell."""
        if self.desk is None:
            return
        if any(asker.take(message.event, self.desk) for asker in self._askers):
            self.draw_preview()

    def action_rescan(self) -> None:
        """Ask everything anew."""
        if self.desk is not None:
            for asker in self._askers:
                asker.forget(self.desk)
            self.draw_preview()

    @property
    def _askers(self) -> tuple[Asker, Asker, Asker]:
        return self._plan, self._meeting, self._comparison

    @property
    def table(self) -> ReportTable:
        """The error module by module."""
        return self.query_one("#combine-table", ReportTable)

    @property
    def compared(self) -> ReportTable:
        """What each method would lose."""
        return self.query_one("#combine-compared", ReportTable)

    @property
    def plan(self) -> Report | None:
        """What would come of what is typed; None while that is not known."""
        return None if self._is_typing else self._plan.report

    # Showing

    def draw_preview(self) -> None:
        """Write what is known; what was known stays, paler, until there is something new."""
        recipe, said = self.recipe, self.query_one("#combine-said", Static)
        lacking, faults = recipe.lacking(), recipe.faults()
        words: Content | None = None
        if lacking is not None:
            words = Content.styled(safe_text(lacking), "$foreground 70%")
        elif set(faults) - {"output"}:
            words = Content.styled("What is marked ✗ has to be put right first.", "$foreground 70%")
        elif not self._is_typing and self._plan.reason:
            words = refusal(self._plan.reason, self._plan.hint)
        elif self.plan is not None:
            width = self.query_one("#combine-words").content_size.width - _SCROLLBAR
            meeting = self._meeting if len(recipe.sources) > 1 and recipe.operation == "combine" else None
            words = Content("\n").join(foretold(recipe.operation, self.plan, meeting, width))
            self.table.show_table(self.plan.table("modules"), first=_FIRST)
        elif not str(said.content):
            words = Content.styled("working it out …", "$foreground 70%")
        said.set_class(words is None, "-stale")
        if words is not None:
            said.update(words)
        self.set_class(self.plan is not None, "-known")
        is_waiting = lacking is None and not set(faults) - {"output"} and (self._is_typing or self._plan.is_waiting)
        note = self._progress() if is_waiting else self._what_go_does(recipe) if self._why_not() is None else ""
        warnings = text.plural(len(self.plan.findings), "warning") if self.plan and self.plan.findings else ""
        self.query_one("#combine-preview", Pane).entitle(f"4 Preview  ⚠ {warnings}" if warnings else "4 Preview", note)
        if self.plan is None and not is_waiting:
            self._leave_tables()
        self._draw_comparison()
        self.refresh_bindings()

    def _draw_comparison(self) -> None:
        if not self.has_class("-methods"):
            return
        comparison, pane = self._comparison, self.query_one("#combine-preview", Pane)
        report = None if self._is_typing else comparison.report
        if report is not None:
            self.compared.show_table(report.table("methods"))
            pane.entitle("4 What each method loses", "⏎ chooses the method")
            return
        ids = [method.id for method in self.methods.methods]
        self.compared.show_table(Table("methods", "Methods", METHODS, tuple(comparison.rows), key="id"), pending=ids)
        done = f" {100 * job.done // job.total} %" if (job := comparison.job) is not None and job.total else ""
        pane.entitle("4 What each method loses", comparison.reason or f"working it out …{done}")

    def _progress(self) -> str:
        job = self._plan.job
        if self._is_typing or job is None or not job.total or job.done == job.total:
            return "working it out …"
        left = self.lab.job_list.eta_seconds(job)
        return f"{job.done} of {job.total} modules" + (f" · {text.duration(left)} left" if left is not None else "")

    def _what_go_does(self, recipe: Recipe) -> str:
        is_there = os.path.lexists(recipe.output)
        return f"^g {'replaces, after a yes,' if is_there else 'writes'} {recipe.output}"

    @property
    def command(self) -> str:
        """The command that does the same; empty while something is missing or wrong."""
        recipe = self.recipe
        is_whole = recipe.lacking() is None and not recipe.faults() and recipe.output
        return recipe.command() if is_whole else ""

    # The tables

    def action_modules(self) -> None:
        """Go to the table of modules, which takes the place of the words where there is no room for both; or back."""
        self._turn("-table", self.table)

    def action_methods(self) -> None:
        """Go to the table of methods, at the one that is chosen; or back."""
        self._turn("-methods", self.compared)
        if self.methods.method is not None:
            self.compared.move_to(self.methods.method.id)

    def _turn(self, name: str, table: ReportTable) -> None:
        was_there = table.has_focus
        self._leave_tables()
        if not was_there:
            self.add_class(name)
            self.call_after_refresh(table.focus)
            self._ask()

    def _leave_tables(self) -> None:
        had_focus = self.table.has_focus or self.compared.has_focus
        self.remove_class("-table", "-methods")
        if had_focus:
            self.query_one("#combine-operation").focus()

    @on(LabTable.Opened, "#combine-compared")
    def _method_opened(self, message: LabTable.Opened) -> None:
        message.stop()
        self.methods.choose(message.key)
        self._leave_tables()
        self.methods.focus()
        self.changed()

    def leave(self) -> bool:
        """Leave a table."""
        is_there = self.has_class("-table") or self.has_class("-methods")
        if is_there:
            self._leave_tables()
            self.draw_preview()
        return is_there

    # Keys

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what is missing before it can be done, or copied as a command."""
        if not self.is_mounted:
            return super().unavailable(action, parameters)
        if action in ("run", "copy_command"):
            reason = self._why_not(must_be_planned=action == "run")
            if reason:
                return reason
        if action == "add" and self.operation != "combine":
            return f"{self.operation} has no further input"
        if action == "methods" and self.operation != "combine":
            return f"{self.operation} has one way"
        if action == "methods" and (reason := self._why_not(must_be_planned=False)):
            return reason
        if action in ("modules", "export") and self.plan is None and not self.has_class("-methods"):
            return "there is no preview yet"
        return super().unavailable(action, parameters)

    def _why_not(self, *, must_be_planned: bool = True) -> str | None:
        recipe = self.recipe
        said = [recipe.lacking(), *recipe.faults().values(), None if recipe.output else "The output has no name."]
        first = next((sentence for sentence in said if sentence), None)
        if first is None and must_be_planned and self.plan is None:
            first = "what it would do is not worked out yet" if self._is_typing or not self._plan.reason else (
                f"it cannot be done: {self._plan.reason}"
            )  # fmt: skip
        return first[0].lower() + first[1:].rstrip(".") if first else None

    def action_add(self) -> None:
        """Choose one more adapter."""

        def take(locator: str | None) -> None:
            if locator is not None:
                self.run_worker(self.sources.add(Source(locator)))

        given = [source.locator for source in self.sources.sources]
        self.app.push_screen(Pick("Add an input", adapters_of(self.lab, given), is_typed=True), take)

    def copy_value(self) -> Copied | None:
        """The row under the cursor where the table has the focus, else the command."""
        table = next((one for one in (self.table, self.compared) if one.has_focus), None)
        return table.copied() if table is not None else super().copy_value()

    def export_document(self) -> ExportDocument | None:
        """The error module by module."""
        return (
            self.query_one("#combine-table", ReportTable).document(f"{self.operation}-preview") if self.plan else None
        )

    # Doing it

    def action_run(self) -> None:
        """Do it as a job; ask before a folder is replaced."""
        recipe = self.recipe
        if not os.path.lexists(recipe.output):
            self._run(recipe)
            return
        named = safe_text(recipe.output, limit=200)
        question = f"{named} is there already, and would be replaced."
        ask(self.app, question, "replace", lambda: self._run(recipe, overwrite=True))

    def _run(self, recipe: Recipe, **options: bool) -> None:
        title = f"{recipe.operation} {recipe.output}"
        self.show_outcome(self.lab.begin(recipe.operation, recipe.arguments() | options, title), stays=True)


def _meeting_of(recipe: Recipe) -> Question | None:
    """What the inputs do to each other; None for one alone."""
    arguments = recipe.arguments()
    if recipe.operation != "combine" or len(recipe.sources) < 2:
        return None
    parameters = {"strength": arguments["strengths"], "sign_rows": SIGN_ROWS}
    asked = {"id": "interference", "locators": arguments["adapters"], "parameters": parameters}
    return Question("analyze", {**asked, "modules": arguments.get("modules", [])})
