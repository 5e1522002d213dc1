"""The tab of one analysis, whoever wrote it: run when it is first looked at, drawn from what its Report declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import on
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import Static

from lora_lab.domain.report import ColumnKind
from lora_lab.extension.contracts import Need
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.detail.spectrum_view import flowed, legend, put
from lora_lab.tui.detail.tables import ReportTable, cell_text
from lora_lab.tui.plots.drawings import curve_columns, row_readout
from lora_lab.tui.widgets.table import LabTable

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.domain.report import Report, Table
    from lora_lab.extension.contracts import Analysis
    from lora_lab.jobs import Job, JobEvent
    from lora_lab.tui.detail.feed import JobDesk
    from lora_lab.tui.plots.curves import CurvePlot

_MOST_FINDINGS: Final = 3
_PRIORITY: Final = 250


def takes_one_adapter(analysis: Analysis) -> bool:
    """Whether it can be run on a single adapter."""
    fewest, most = analysis.subjects
    return fewest <= 1 <= most


class AnalysisView(Vertical):
    """Shows the Report of one analysis.

    Parameters
    ----------
    analysis : what to run
    locator : of the adapter
    base : locator of the base model, when one was given
    base_model : name that the adapter gives its base, for the sentence when none was given
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("m", "next_table", "Next table", "Show the report's next table", id="analysis.table"),
    ]
    DEFAULT_CSS = """
    AnalysisView { height: 1fr; width: 1fr; }
    AnalysisView > .analysis--note { height: auto; max-height: 5; padding: 0 1; }
    AnalysisView > .analysis--holder { height: 3fr; display: none; }
    AnalysisView > .analysis--legend { height: auto; max-height: 2; padding: 0 1; display: none; }
    AnalysisView > .analysis--readout {
        height: 1; padding: 0 1; display: none; color: $text-accent; text-wrap: nowrap; text-overflow: ellipsis;
    }
    AnalysisView > ReportTable { height: 2fr; min-height: 4; display: none; }
    AnalysisView.-table > ReportTable { display: block; }
    AnalysisView.-plot > .analysis--holder { display: block; }
    AnalysisView.-curves > .analysis--legend, AnalysisView.-curves > .analysis--readout { display: block; }
    """

    def __init__(self, analysis: Analysis, locator: str, *, base: str | None, base_model: str | None) -> None:
        super().__init__()
        self.analysis = analysis
        self.report: Report | None = None
        self.reason = ""
        self._locator = locator
        self._base = base
        self._base_model = base_model
        self._job: Job | None = None
        self._table: Table | None = None
        self._tables: tuple[Table, ...] = ()
        self.HELP_TITLE = safe_text(analysis.title)

    def compose(self) -> ComposeResult:
        """Words, plot, table."""
        yield Static("", classes="analysis--note")
        yield Static("", classes="analysis--legend")
        yield Container(classes="analysis--holder")
        yield Static("", classes="analysis--readout")
        yield ReportTable()

    @property
    def table(self) -> ReportTable:
        """The rows."""
        return self.query_one(ReportTable)

    # Running.

    def reset(self) -> None:
        """Forget what came, so that it is run again when it is next looked at."""
        self._job, self.report, self.reason = None, None, ""
        self.remove_class("-table", "-plot", "-curves")
        self.query_one(".analysis--note", Static).update("")

    def begin(self, desk: JobDesk) -> None:
        """Run it unless it has been run."""
        if self._job is not None or self.report is not None or self.reason:
            return
        if self.analysis.base is Need.REQUIRED and self._base is None:
            wanted = (
                f"{safe_text(self._base_model)}, as the adapter says"
                if self._base_model
                else "the model it was trained on"
            )
            self._refuse(
                f"{self.analysis.title} needs the base model: {wanted}.", "open ADAPTER --base FOLDER gives it."
            )
            return
        arguments: dict[str, Any] = {"id": self.analysis.id, "locators": [self._locator]}
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
            self._refuse(event.job.error or "It failed.", event.job.hint or "")
        elif event.kind == "cancelled":
            self._refuse("Cancelled.", "r runs it again.")
        if event.kind in ("result", "failed", "cancelled"):
            self._job = None
            desk.over(event.job)
        return True

    def _refuse(self, reason: str, hint: str) -> None:
        self.reason = f"{reason} {hint}".strip()
        self.remove_class("-table", "-plot", "-curves")
        said = Content.assemble(Content.styled("✗ ", "$text-error"), safe_text(reason))
        if hint:
            said = Content.assemble(said, "\n", Content.styled("→ ", "$text-accent"), safe_text(hint))
        self.query_one(".analysis--note", Static).update(said)

    def _say(self, sentence: str) -> None:
        self.query_one(".analysis--note", Static).update(Content.assemble(self._heading(), "\n", sentence))

    def _heading(self) -> Content:
        about = [Content.styled(safe_text(self.analysis.summary), "$foreground 75%")]
        if self.analysis.reference:
            about.append(Content.styled(safe_text(self.analysis.reference), "$foreground 55%"))
        return Content("  ").join(about)

    # Drawing.

    def _show(self, report: Report) -> None:
        self.report = report
        lines = [self._heading()]
        numbers = [
            Content.assemble(
                Content.styled(f"{safe_text(column.title)} ", "$foreground 65%"),
                cell_text(group.values.get(column.id), column.kind),
            )
            for group in report.scalars
            for column in group.columns
            if column.kind not in (ColumnKind.CURVE, ColumnKind.HEATMAP)
        ]
        numbers += [
            Content.styled(f"{safe_text(name)} {safe_text(value)}", "$foreground 65%")
            for name, value in report.parameters.items()
        ]
        if numbers:
            lines.append(flowed(numbers, max(20, self.size.width - 2)))
        lines.extend(
            Content.assemble(Content.styled("⚠ ", "$text-warning"), safe_text(finding.message))
            for finding in report.findings[:_MOST_FINDINGS]
        )
        if len(report.findings) > _MOST_FINDINGS:
            lines.append(Content(f"  and {len(report.findings) - _MOST_FINDINGS} more findings"))
        self.query_one(".analysis--note", Static).update(Content("\n").join(lines))
        self._tables = tuple(table for table in report.tables if table.rows)
        self.set_class(bool(self._tables), "-table")
        self._show_table(0)

    def _show_table(self, number: int) -> None:
        self._table = self._tables[number] if self._tables else None
        if self._table is not None:
            self.table.show_table(self._table)
            self.call_later(self._draw_row)

    def unavailable(self, action: str, _parameters: tuple[object, ...]) -> str | None:
        """Say when there is no other table."""
        return "this report has no other table" if action == "next_table" and len(self._tables) < 2 else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Grey what is not available."""
        return None if self.unavailable(action, parameters) else True

    def action_next_table(self) -> None:
        """Show the next of several tables."""
        if self._table is not None:
            self._show_table((self._tables.index(self._table) + 1) % len(self._tables))

    @on(LabTable.CursorMoved)
    async def _row_changed(self, message: LabTable.CursorMoved) -> None:
        message.stop()
        await self._draw_row()

    async def _draw_row(self) -> None:
        """Draw the curves, or else the matrix, of the row under the cursor."""
        row, table = self.table.row, self._table
        if row is None or table is None:
            return
        matrices = [column for column in table.columns if column.kind is ColumnKind.HEATMAP and row.get(column.id)]
        has_curves = bool(curve_columns(table.columns))
        self.set_class(has_curves, "-curves")
        self.set_class(has_curves or bool(matrices), "-plot")
        if has_curves:
            plot = await self._plot()
            plot.show_row(table.columns, row)
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

    def on_resize(self) -> None:
        """Let the legend flow in the new width."""
        plot: Any = next(iter(self.query("RowPlot")), None)
        if plot is not None:
            self._update_legend(plot)

    def _update_legend(self, plot: CurvePlot) -> None:
        self.query_one(".analysis--legend", Static).update(legend(plot.drawing, self.size.width - 2))

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
        said = row_readout(self._table.columns, self.table.row, plot.cursor)
        put(self.query_one(".analysis--readout", Static), Content(safe_text(said)))

    def select(self, module: str) -> None:
        """Follow the module chosen on the left, when this table has it."""
        self.table.move_to(module)
