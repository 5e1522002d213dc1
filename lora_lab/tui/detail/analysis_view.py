"""The tab of one analysis, whoever wrote it: run when it is first looked at, drawn from what its Report declares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from textual import on
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from lora_lab.domain.report import ColumnKind
from lora_lab.extension.contracts import Need
from lora_lab.safetext import safe_text
from lora_lab.tui.detail.presenting import curve_groups, numbers_of, presentation_of
from lora_lab.tui.detail.spectrum_view import flowed, legend, put
from lora_lab.tui.detail.tables import ReportTable, cell_text
from lora_lab.tui.leaving import Leaving
from lora_lab.tui.plots.drawings import curve_columns, row_readout
from lora_lab.tui.widgets.table import LabTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.app import ComposeResult

    from lora_lab.domain.report import Column, Report, Table
    from lora_lab.extension.contracts import Analysis
    from lora_lab.jobs import Job, JobEvent
    from lora_lab.tui.detail.feed import JobDesk
    from lora_lab.tui.plots.curves import CurvePlot

_MOST_FINDINGS: Final = 3
_PRIORITY: Final = 250
_LOW: Final = 24  # lines
_LOWEST: Final = 16


def takes_one_adapter(analysis: Analysis) -> bool:
    """Whether it is about one adapter: not about two, and not about a model alone."""
    fewest, most = analysis.subjects
    return fewest == 1 <= most


class AnalysisView(Leaving, Vertical):
    """Shows the Report of one analysis.

    Parameters
    ----------
    analysis : what to run
    locator : of the adapter
    base : locator of the base model, when one was given
    base_model : name that the adapter gives its base, for the sentence when none was given
    before : locators of the inputs that come before it
    """

    DEFAULT_CSS = """
    AnalysisView { height: 1fr; width: 1fr; }
    AnalysisView > .analysis--note { height: auto; max-height: 6; padding: 0 1; }
    AnalysisView > .analysis--row { height: auto; max-height: 8; padding: 0 1; display: none; }
    AnalysisView.-row > .analysis--row { display: block; }
    AnalysisView > .analysis--holder { height: 3fr; min-height: 4; display: none; }
    AnalysisView > .analysis--legend { height: auto; max-height: 2; padding: 0 1; display: none; }
    AnalysisView > .analysis--readout {
        height: 1; padding: 0 1; display: none; color: $text-accent; text-wrap: nowrap; text-overflow: ellipsis;
    }
    AnalysisView > ReportTable { height: 2fr; min-height: 3; display: none; }
    AnalysisView.-low > .analysis--note { max-height: 5; }
    AnalysisView.-table > ReportTable { display: block; }
    AnalysisView.-plot > .analysis--holder { display: block; }
    AnalysisView.-curves > .analysis--legend, AnalysisView.-curves > .analysis--readout { display: block; }
    AnalysisView.-lowest > .analysis--note { max-height: 2; }
    AnalysisView.-lowest > .analysis--holder, AnalysisView.-lowest > .analysis--legend,
    AnalysisView.-lowest > .analysis--readout { display: none; }
    AnalysisView.-lowest > .analysis--row { max-height: 4; }
    """

    @dataclass
    class ModuleOpened(Message):
        """Enter on a row of the table."""

        module: str

    def __init__(
        self,
        analysis: Analysis,
        locator: str,
        *,
        base: str | None,
        base_model: str | None,
        before: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self._before = before
        self.analysis = analysis
        self.report: Report | None = None
        self.reason = ""
        self._locator = locator
        self._base = base
        self._base_model = base_model
        self._job: Job | None = None
        self._table: Table | None = None
        self._tables: tuple[Table, ...] = ()
        self._presentation = presentation_of(analysis.id)
        self._groups: list[tuple[Column, ...]] = []
        self._group = 0  # of those curves, the ones drawn
        # Both belong to the view from its birth: its screen may be left, or speak to it, before they are mounted.
        self.note = Static("", classes="analysis--note")
        self.table = ReportTable()
        self.HELP_TITLE = safe_text(analysis.title)

    def compose(self) -> ComposeResult:
        """Words, plot, table."""
        yield self.note
        yield Static("", classes="analysis--legend")
        yield Container(classes="analysis--holder")
        yield Static("", classes="analysis--readout")
        yield Static("", classes="analysis--row")
        yield self.table

    # Running.

    def reset(self) -> None:
        """Forget what came, so that it is run again when it is next looked at."""
        self._job, self.report, self.reason = None, None, ""
        self._tables, self._table, self._groups = (), None, []
        self.remove_class("-table", "-plot", "-curves", "-row")
        self.note.update("")

    @property
    def takes_base(self) -> bool:
        """Whether a base model makes a difference."""
        return self.analysis.base is not Need.NO

    def use_base(self, base: str | None, desk: JobDesk | None) -> None:
        """Run it against another base, the next time it is looked at."""
        if not self.takes_base or base == self._base:
            return
        self._base = base
        if desk is not None and self._job is not None:
            desk.drop(self._job)
        self.reset()

    def begin(self, desk: JobDesk) -> None:
        """Run it unless it has been run."""
        if self._job is not None or self.report is not None or self.reason:
            return
        if self.analysis.base is Need.REQUIRED and self._base is None:
            name = f"{safe_text(self._base_model)}, as the adapter says" if self._base_model else ""
            self._refuse(
                f"{self.analysis.title}: the base model is needed, {name or 'the one it was trained on'}.",
                "d chooses it; so does open ADAPTER --base FOLDER.",
            )
            return
        arguments: dict[str, Any] = {"id": self.analysis.id, "locators": [*self._before, self._locator]}
        if self._base is not None and self.analysis.base is not Need.NO:
            arguments["base"] = self._base
        self._job = desk.submit(
            "analyze",
            arguments,
            title=f"{safe_text(self.analysis.id)} {safe_text(self._locator)}",
            group=f"analyze:{self.analysis.id}:{self._locator}",
            priority=_PRIORITY,
        )
        self._say("computing …")

    def take(self, event: JobEvent, desk: JobDesk) -> bool:
        """Take in an event of our own job; False when it is another's."""
        if self._job is None or event.job.id != self._job.id:
            return False
        if event.kind == "progress" and event.job.total:
            self._say(f"computing … {event.job.done} of {event.job.total}  {safe_text(event.job.what, limit=60)}")
        elif event.kind == "result" and event.report is not None:
            self._show(event.report)
        elif event.kind == "failed":
            self._refuse(event.job.error or "It failed.", self._hint(event.job.hint or ""))
        elif event.kind == "cancelled":
            self._refuse("Cancelled.", "r runs it again.")
        if event.kind in ("result", "failed", "cancelled"):
            self._job = None
            desk.over(event.job)
        return True

    def _hint(self, hint: str) -> str:
        """The next step, and that another base can be chosen where that may help."""
        return f"{hint} Press d for another base.".strip() if self.takes_base and self._base is not None else hint

    def _refuse(self, reason: str, hint: str) -> None:
        self.reason = f"{reason} {hint}".strip()
        self.remove_class("-table", "-plot", "-curves", "-row")
        said = Content.assemble(Content.styled("✗ ", "$text-error"), safe_text(reason))
        if hint:
            said = Content.assemble(said, "\n", Content.styled("→ ", "$text-accent"), safe_text(hint))
        self.note.update(said)

    def _say(self, sentence: str) -> None:
        self.note.update(Content.assemble(self._heading(), "\n", sentence))

    def _heading(self) -> Content:
        about = [Content.styled(safe_text(self.analysis.summary), "$foreground 75%")]
        if self.analysis.reference:
            about.append(Content.styled(safe_text(self.analysis.reference), "$foreground 55%"))
        return Content("  ").join(about)

    # Drawing.

    def _show(self, report: Report) -> None:
        self.report = report
        self._tables = tuple(table for table in report.tables if table.rows)
        self.set_class(bool(self._tables), "-table")
        self._show_table(0)

    def _show_note(self) -> None:
        """What the numbers mean, the numbers about the whole, and what else one should know."""
        report = self.report
        if report is None:
            return
        about = self._presentation.about(report)
        lines = [Content.styled(safe_text(about), "bold") if about else self._heading()]
        numbers = [
            Content.assemble(Content.styled(f"{safe_text(title)} ", "$foreground 65%"), cell_text(value, kind))
            for title, value, kind in numbers_of(report, self._presentation.said if about else frozenset())
        ]
        if self._base is not None and self.takes_base:
            numbers.append(Content.styled(f"against {safe_text(PurePath(self._base).name)}", "$foreground 65%"))
        numbers += [
            Content.styled(f"{safe_text(name)} {safe_text(value)}", "$foreground 65%")
            for name, value in report.parameters.items()
            if value is not None
        ]
        if len(self._tables) > 1 and self._table is not None:
            place = self._tables.index(self._table) + 1
            title = f"{safe_text(self._table.title)}, table {place} of {len(self._tables)} (m)"
            numbers.append(Content.styled(title, "$text-accent"))
        lines.extend(
            Content.assemble(Content.styled("⚠ ", "$text-warning"), safe_text(finding.message))
            for finding in report.findings[:_MOST_FINDINGS]
        )
        if len(report.findings) > _MOST_FINDINGS:
            lines.append(Content(f"  and {len(report.findings) - _MOST_FINDINGS} more findings"))
        if numbers:
            lines.append(flowed(numbers, max(20, self.size.width - 2)))
        self.note.update(Content("\n").join(lines))

    def _show_table(self, number: int) -> None:
        self._table = self._tables[number] if self._tables else None
        self._show_note()
        if self._table is None:
            return
        self._groups, self._group = curve_groups(self._table, self._presentation), 0
        is_modules = self._table.key == "module"
        self.table.show_table(
            self._table,
            first=self._presentation.first,
            order=(self._presentation.order if is_modules else None) or ("", False),
        )
        self.refresh_bindings()
        self.call_later(self._draw_row)

    def unavailable(self, action: str, _parameters: tuple[object, ...] = ()) -> str | None:
        """Say when there is no other table or curve."""
        if action == "next_table" and len(self._tables) < 2:
            return "this report has no other table"
        if action == "next_curve" and len(self._groups) < 2:
            return "these rows have no other curve"
        return None

    def next_table(self) -> None:
        """Show the next of several tables."""
        if self._table is not None:
            self._show_table((self._tables.index(self._table) + 1) % len(self._tables))

    async def next_curve(self) -> None:
        """Draw the curves that have another axis."""
        self._group = (self._group + 1) % max(1, len(self._groups))
        await self._draw_row()

    @on(LabTable.CursorMoved)
    async def _row_changed(self, message: LabTable.CursorMoved) -> None:
        message.stop()
        await self._draw_row()

    @on(LabTable.Opened)
    def _row_opened(self, message: LabTable.Opened) -> None:
        message.stop()
        self.post_message(self.ModuleOpened(message.key))

    async def _draw_row(self) -> None:
        """Draw the curves, or else the matrix, of the row under the cursor."""
        row, table = self.table.row, self._table
        if row is None or table is None or not self.is_attached:
            return
        self._update_row(row)
        matrices = [column for column in table.columns if column.kind is ColumnKind.HEATMAP and row.get(column.id)]
        self.set_class(bool(self._groups), "-curves")
        self.set_class(bool(self._groups) or bool(matrices), "-plot")
        if self._groups:
            plot = await self._plot()
            plot.show_row(self._curves, row)
            self._update_legend(plot)
            self._update_readout()
        elif matrices:
            from lora_lab.tui.plots.heatmap import Heatmap

            holder = self.query_one(".analysis--holder")
            found = next(iter(holder.query(Heatmap)), None)
            if found is None:
                found = Heatmap()
                await holder.mount(found)
            found.show_matrix(matrices[0], row[matrices[0].id])

    @property
    def _curves(self) -> tuple[Column, ...]:
        """Columns of the curves that are drawn, and the levels across them."""
        return self._groups[self._group] if self._group < len(self._groups) else ()

    def _update_row(self, row: Mapping[str, Any]) -> None:
        is_modules = self._table is not None and self._table.key == "module"
        lines = self._presentation.row(row, max(20, self.size.width - 2)) if is_modules else []
        self.set_class(bool(lines), "-row")
        put(self.query_one(".analysis--row", Static), Content("\n").join(lines))

    def on_resize(self) -> None:
        """Let words and legend flow in the new width; where there is little height, they give way."""
        # Less than the least heights of plot and table together must never be left to them.
        self.set_class(self.size.height < _LOW, "-low")
        self.set_class(self.size.height < _LOWEST, "-lowest")
        self._show_note()
        if self.report is not None and self.table.row is not None:
            self._update_row(self.table.row)
        plot: Any = next(iter(self.query("RowPlot")), None)
        if plot is not None:
            self._update_legend(plot)

    def _update_legend(self, plot: CurvePlot) -> None:
        said = legend(plot.drawing, self.size.width - 2)
        if len(self._groups) > 1:
            drawn = Content(safe_text(curve_columns(self._curves)[0].title))
            more = Content.styled("w other curve", "$foreground 60%")
            is_named = bool(plot.drawing.levels) or len(plot.drawing.series) > 1  # the legend says it then
            said = flowed([*([] if is_named else [drawn]), said, more], self.size.width - 2)
        self.query_one(".analysis--legend", Static).update(said)

    async def _plot(self) -> Any:
        from lora_lab.tui.plots.generic import RowPlot

        holder = self.query_one(".analysis--holder")
        found = next(iter(holder.query(RowPlot)), None)
        if found is None:
            found = RowPlot()
            await holder.mount(found)
        return found

    def on_curve_plot_cursor_moved(self) -> None:
        """Say what stands under the cursor."""
        self._update_readout()

    def _update_readout(self) -> None:
        plot: CurvePlot | None = next(iter(self.query("RowPlot").results()), None)  # type: ignore[assignment]
        if plot is None or self._table is None or self.table.row is None:
            return
        said = row_readout(self._curves, self.table.row, plot.cursor) or "tab to the plot; ← and → read the values"
        put(self.query_one(".analysis--readout", Static), Content(safe_text(said)))

    def select(self, module: str) -> None:
        """Follow the module chosen on the left, when this table has it."""
        self.table.move_to(module)
