"""The budget of a base model: rank, targets and tasks on the left; what they cost on the right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import on
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Checkbox, Input, Label, Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.base_dialog import ask_for_base
from lora_lab.tui.budget.feed import BudgetFeed
from lora_lab.tui.budget.fields import NumberField, RankTable, Switch
from lora_lab.tui.budget.figures import columns_of, facts, shown_cell
from lora_lab.tui.budget.plan import (
    ALL_LINEAR,
    EVERYTHING,
    LARGEST_RANK,
    Plan,
    all_linear_of,
    kinds_of,
    presets_of,
    ticks_of,
)
from lora_lab.tui.budget.slider import RankSlider
from lora_lab.tui.budget.targets import TargetList
from lora_lab.tui.export import Copied, ExportDocument
from lora_lab.tui.screens import LabScreen
from lora_lab.tui.widgets.pane import Pane
from lora_lab.tui.widgets.shell_line import ShellLine
from lora_lab.tui.widgets.table import Cell, LabTable, TableColumn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.report import Report
    from lora_lab.tui.budget.opening import Subject
    from lora_lab.tui.messages import JobUpdated

_DELAY_SECONDS: Final = 0.06  # while a key repeats, nothing is asked
_MOST_FINDINGS: Final = 3
_ABOUT_LARGEST: Final = "rank_over_side"  # a finding on the largest of the ranks that were asked for
_FIELDS: Final = {"budget-spent": "spent", "budget-tasks": "tasks", "budget-head": "head"}


class BudgetScreen(LabScreen):
    """What a rank would cost.

    Parameters
    ----------
    base : locator of the model, or of its config.json
    subject : what the budget was opened on: an adapter says where to start
    """

    HELP_TITLE = "Budget"
    ESCAPE_GOES_BACK = True
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("i", "inverse", "Inverse", "Ask what rank a number of parameters buys, or what a rank costs",
                     id="budget.inverse", show=True),
        bindings.key("d", "choose_base", "Base", "Choose another base model or config.json", id="budget.base",
                     show=True),
        bindings.key("y", "copy", "Copy", "Copy the command line that prints these numbers", id="copy", show=True),
    ]  # fmt: skip
    CSS = """
    #plan-pane { width: 36; }
    BudgetScreen.-normal #plan-pane { width: 46; }
    BudgetScreen.-wide #plan-pane { width: 56; }
    #plan-pane .budget--row { height: 1; padding: 0 1; }
    #plan-pane .budget--row Label { width: auto; color: $foreground 70%; padding: 0 1 0 0; }
    #plan-pane NumberField { width: 1fr; background: $panel; }
    #budget-slider-holder { height: 2; padding: 0 1; }
    #plan-pane Checkbox { border: none; padding: 0; background: $background; width: 1fr; }
    #plan-pane TargetList { padding: 0 1; margin-top: 1; }
    #costs-pane VerticalScroll { height: auto; max-height: 60%; padding: 0 1; }
    #budget-facts { height: auto; }
    RankTable { height: 1fr; min-height: 3; }
    BudgetScreen ShellLine { max-height: 2; color: $foreground 80%; background: $panel; }
    """

    def __init__(self, base: str, subject: Subject) -> None:
        self.base_name = PurePath(base).name or base
        super().__init__(f"budget  {self.base_name}")
        self.subject = subject
        self.plan = Plan(base, rank=subject.rank or 8)
        self.feed = BudgetFeed()
        self._wanted_targets = subject.targets
        self._has_kinds = False
        self._first: tuple[str, ...] = (EVERYTHING, ALL_LINEAR)  # what is asked before the matrices are known
        self._is_asking = False
        self._rows: dict[str, Mapping[str, Any]] = {}

    def compose_body(self) -> ComposeResult:
        """The plan, its costs, and the command line."""
        with Vertical():
            with Horizontal():
                with Pane(title="Plan", id="plan-pane"):
                    with Vertical(id="budget-slider-holder"):
                        yield RankSlider(self.plan.rank, id="budget-rank")
                    with Horizontal(classes="budget--row"):
                        yield Label("parameters")
                        yield NumberField("", id="budget-spent", placeholder="i: what do they buy?", least=1)
                    with Horizontal(classes="budget--row"):
                        yield Label("tasks")
                        yield NumberField("1", id="budget-tasks", least=1)
                        yield Label(" head")
                        yield NumberField("0", id="budget-head")
                    with Horizontal(classes="budget--row"):
                        yield Switch("DoRA", id="budget-dora", compact=True)
                        yield Switch("biases of B", id="budget-bias", compact=True)
                    yield TargetList(id="budget-targets")
                with Pane(title="Costs", id="costs-pane"):
                    with VerticalScroll(can_focus=False):
                        yield Static("reading headers …", id="budget-facts")
                    yield RankTable((TableColumn("rank", "r", 4, is_right=True),), self._cell, id="budget-table")
            yield ShellLine(id="budget-command")

    def on_mount(self) -> None:
        """Start at the slider."""
        self.query_one(RankSlider).focus()
        self._show_command()
        self.call_after_refresh(self.jobs_ready)

    # Asking.

    def jobs_ready(self) -> None:
        """Ask first for all matrices there are, then for what is planned."""
        if self.desk is None and self.open_desk() is not None:
            self._ask()

    def action_rescan(self) -> None:
        """Read the headers again."""
        self._has_kinds, self._first = False, (EVERYTHING, ALL_LINEAR)
        self._ask()

    def _ask_soon(self) -> None:
        self._show_command()
        if not self._is_asking:
            self._is_asking = True
            self.set_timer(_DELAY_SECONDS, self._ask)

    def _ask(self) -> None:
        self._is_asking = False
        if self.desk is None:
            return
        if not self._has_kinds:
            self.feed.ask(Plan(self.plan.base).arguments((), self._first), self.desk)
        elif self.plan.targets:
            self.feed.ask(self.plan.arguments(self._ticks()), self.desk)
        self.query_one("#costs-pane", Pane).entitle("Costs", "computing …")
        self.lab.refresh_job_status()

    def on_job_updated(self, message: JobUpdated) -> None:
        """Take in the answer."""
        if self.desk is None:
            return
        news = self.feed.take(message.event, self.desk)
        if news == "report" and self.feed.report is not None:
            if self._has_kinds:
                self._show(self.feed.report)
            else:
                self._offer(self.feed.report)
        elif news == "failed" and not self._has_kinds and ALL_LINEAR in self._first:
            self._first = (EVERYTHING,)  # a model without a linear layer has matrices all the same
            self._ask()
        elif news == "failed":
            self._refuse(self.feed.reason, self.feed.hint)

    def _offer(self, report: Report) -> None:
        """Offer the kinds of matrices that there are."""
        self._has_kinds = True
        kinds = kinds_of(report.table("matrices").rows)
        linear = next((row["matrices"] for row in report.table("rows").rows if row["targets"] == ALL_LINEAR), None)
        targets = self.query_one(TargetList)
        targets.offer(kinds, presets_of(kinds, all_linear_of(kinds, linear)), self._wanted_targets)
        self._wanted_targets = ()
        self._set_plan(targets=targets.targets or ALL_LINEAR)

    def _ticks(self) -> tuple[int, ...]:
        return ticks_of(self.query_one(TargetList).chosen_kinds)

    # The plan.

    def _set_plan(self, **changes: Any) -> None:
        self.plan = replace(self.plan, **changes)
        self.query_one(RankSlider).set_ticks(self._ticks())
        if self.plan.targets:
            self._ask_soon()
        else:
            self._show_command()
            self._refuse("No matrix is chosen.", "Take one with space in the list of targets.")

    @on(RankSlider.Changed)
    def _rank_changed(self, message: RankSlider.Changed) -> None:
        self.plan = replace(self.plan, rank=message.rank)
        if self.feed.report is not None and str(message.rank) in self._rows and self.plan.spent is None:
            self._show_rank()  # it is in the answer that is there
            self._show_command()
        elif self.plan.spent is None:
            self._ask_soon()

    @on(TargetList.Changed)
    def _targets_changed(self, message: TargetList.Changed) -> None:
        self._set_plan(targets=message.targets)

    @on(Input.Changed)
    def _number_changed(self, message: Input.Changed) -> None:
        field = message.input
        if isinstance(field, NumberField) and field.id in _FIELDS and self.is_mounted:
            number = field.number
            name = _FIELDS[field.id]
            self._set_plan(**{name: number if number is not None or name == "spent" else field.least})
            if name == "spent":
                self._show_mode()

    @on(Input.Submitted)
    def _number_done(self) -> None:
        self.query_one(RankTable).focus()

    @on(Checkbox.Changed)
    def _box_changed(self) -> None:
        self._set_plan(
            dora=self.query_one("#budget-dora", Checkbox).value,
            lora_bias=self.query_one("#budget-bias", Checkbox).value,
        )

    def action_inverse(self) -> None:
        """Go to the number of parameters, or back to the rank."""
        field = self.query_one("#budget-spent", NumberField)
        if self.plan.spent is not None or field.has_focus:
            field.value = ""
            slider = self.query_one(RankSlider)
            slider.disabled = False  # before the field's own message says so: what is disabled takes no focus
            slider.focus()
        else:
            row = self._rows.get(str(self.plan.rank))
            field.value = str(row["parameters"]) if row else ""
            field.focus()

    def _show_mode(self) -> None:
        self.query_one(RankSlider).disabled = self.plan.spent is not None

    def action_choose_base(self) -> None:
        """Ask for another base model."""

        def take(base: str) -> None:
            self.plan = replace(self.plan, base=base, targets=ALL_LINEAR)
            self.base_name = PurePath(base).name or base
            self.action_rescan()
            self._show_command()

        subject = self.subject
        ask_for_base(self.lab, subject.name, subject.base_model, subject.path, take)

    # Showing.

    def _refuse(self, reason: str, hint: str) -> None:
        said = Content.assemble(Content.styled("✗ ", "$text-error"), safe_text(reason))
        if hint:
            said = Content.assemble(said, "\n", Content.styled("→ ", "$text-accent"), safe_text(hint))
        self.query_one("#budget-facts", Static).update(said)
        self._rows = {}
        self.query_one(RankTable).set_rows(())
        self.query_one("#costs-pane", Pane).entitle("Costs", "")

    def _show(self, report: Report) -> None:
        table = report.table("rows")
        self._rows = {str(row["rank"]): row for row in table.rows}
        shown = self.query_one(RankTable)
        shown.columns = columns_of(table.columns, table.rows)
        shown.set_rows(tuple(self._rows))
        if self.plan.spent is not None and self._rows:
            bought = next(iter(self._rows))
            self.query_one(RankSlider).set_reactive(RankSlider.rank, int(bought))
            self.query_one(RankSlider).refresh()
            self.plan = replace(self.plan, rank=int(bought))
        self._show_rank()

    def _show_rank(self) -> None:
        report, row = self.feed.report, self._rows.get(str(self.plan.rank))
        if report is None or row is None:
            return
        table = self.query_one(RankTable)
        table.move_to(str(self.plan.rank))
        width = max(30, self.query_one("#budget-facts").size.width)
        lines = facts(row, report, width)
        is_largest = self.plan.rank == max(map(int, self._rows))
        findings = [one for one in report.findings if one.code != _ABOUT_LARGEST or is_largest]
        lines += [
            Content.assemble(Content.styled("⚠ ", "$text-warning"), safe_text(finding.message))
            for finding in findings[:_MOST_FINDINGS]
        ]
        self.query_one("#budget-facts", Static).update(Content("\n").join(lines))
        model = next((group.values for group in report.scalars if not group.id), {})
        size = text.count(model.get("model_parameters"))
        self.set_header(f"budget  {self.base_name}", f"{size} parameters · shapes from {model.get('shapes_from')}")
        self.query_one("#costs-pane", Pane).entitle(f"Costs of rank {self.plan.rank}", self._note())

    def _note(self) -> str:
        if self.plan.spent is None:
            return ""
        return f"what {text.count(self.plan.spent)} parameters buy, and the next rank"

    def _cell(self, key: str, column: str) -> Cell:
        report, row = self.feed.report, self._rows.get(key)
        if row is None or report is None:
            return Cell("")
        tone = "" if key == str(self.plan.rank) else "dim"
        if column == "rank":
            return Cell(key, tone)
        declared = next((one for one in report.table("rows").columns if one.id == column), None)
        return Cell(shown_cell(row, declared) if declared is not None else "", tone)

    def _show_command(self) -> None:
        self.query_one(ShellLine).tell(self.plan.command())

    def on_resize(self, event: events.Resize) -> None:
        """Draw bars in the new width."""
        del event
        self.call_after_refresh(self._show_rank)

    @on(LabTable.CursorMoved, "#budget-table")
    def _row_moved(self, message: LabTable.CursorMoved) -> None:
        message.stop()

    @on(LabTable.Opened, "#budget-table")
    def _row_opened(self, message: LabTable.Opened) -> None:
        message.stop()
        rank = int(message.key)
        if self.plan.spent is not None:
            self.query_one("#budget-spent", NumberField).value = ""
        self.query_one(RankSlider).rank = min(rank, LARGEST_RANK)

    # Taking away.

    def copy_value(self) -> Copied | None:
        """The command line."""
        return Copied("the command line", self.plan.command())

    def export_document(self) -> ExportDocument | None:
        """One row for each rank."""
        report = self.feed.report
        if report is None or not self._rows:
            return None
        columns = [column.id for column in report.table("rows").columns]
        rows = [[row.get(column) for column in columns] for row in self._rows.values()]
        return ExportDocument(f"budget-{self.base_name}", columns, rows)
