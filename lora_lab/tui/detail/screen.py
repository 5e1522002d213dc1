"""The screen of one adapter: its modules on the left; their spectra, tables and configuration on the right."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from textual import on
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static, TabbedContent, TabPane, Tabs

from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.background import work_beside
from lora_lab.tui.detail.analysis_view import AnalysisView, takes_one_adapter
from lora_lab.tui.detail.config_view import TextView, config_lines
from lora_lab.tui.detail.feed import MANY_MODULES, SpectrumFeed
from lora_lab.tui.detail.keys import CONFIG, MATRIX, MODULES, SPECTRUM, DetailKeys, ModuleFilter
from lora_lab.tui.detail.layers import Metric, metrics_of
from lora_lab.tui.detail.matrix_view import FIRST_METRIC, MatrixView
from lora_lab.tui.detail.module_tree import ModuleTree
from lora_lab.tui.detail.outline import TITLES, Grouping, Order, Outline
from lora_lab.tui.detail.presenting import presentation_of
from lora_lab.tui.detail.reading import AdapterRead, read_adapter
from lora_lab.tui.detail.spectrum_view import SpectrumView
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.plots.drawings import Spectrum
from lora_lab.tui.plots.series import View
from lora_lab.tui.widgets.pane import Pane
from lora_lab.tui.widgets.table import LabTable

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from textual.app import ComposeResult

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.report import Table
    from lora_lab.tui.messages import JobUpdated

_ARRANGE_DELAY_SECONDS: Final = 0.2


class DetailScreen(DetailKeys):
    """One adapter.

    Parameters
    ----------
    locator : of the adapter
    overlays : locators of adapters whose spectra can be laid over it
    name : what to call it; by default the last part of the locator
    """

    HELP_TITLE = "Adapter"
    CSS = """
    #modules-pane { width: 30; max-width: 38%; }
    DetailScreen.-normal #modules-pane { width: 38; }
    DetailScreen.-wide #modules-pane { width: 46; }
    DetailScreen ModuleFilter { display: none; height: 1; border: none; padding: 0 1; background: $panel; }
    DetailScreen ModuleFilter:focus { border: none; }
    DetailScreen.-filtering ModuleFilter { display: block; }
    DetailScreen TabbedContent { width: 1fr; height: 1fr; }
    DetailScreen Tabs { height: 1; }
    DetailScreen Tabs #tabs-list-bar { height: 1; }
    DetailScreen Tabs Underline { display: none; }
    DetailScreen Tab { height: 1; color: $foreground 70%; }
    DetailScreen Tab.-active { color: $text-primary; text-style: bold underline; }
    DetailScreen ContentSwitcher, DetailScreen TabPane { height: 1fr; width: 1fr; padding: 0; }
    #detail-reason { display: none; width: 1fr; height: 1fr; padding: 1 2; }
    DetailScreen.-unreadable #detail-reason { display: block; }
    DetailScreen.-unreadable #detail-panes { display: none; }
    """

    def __init__(self, locator: str, *, overlays: tuple[str, ...] = (), name: str = "") -> None:
        self.title_name = name or PurePath(locator).name or locator
        super().__init__(self.title_name)
        self.locator = locator
        self.feed = SpectrumFeed(locator, self.title_name)
        others = tuple(other for other in overlays if other != locator)
        self.overlays = tuple(SpectrumFeed(other, _name(other, (locator, *others))) for other in others)
        self.adapter: Adapter | None = None
        self.outline = Outline(())
        self.view = View()
        self.is_overlaid = False
        self._generation = 0
        self._stop_reading: threading.Event | None = None
        self._is_arranging = False

    # Building.

    def compose_body(self) -> ComposeResult:
        """Modules on the left, tabs on the right."""
        yield Static("", id="detail-reason")
        with Horizontal(id="detail-panes"):
            with Pane(title="Modules", id="modules-pane"):
                yield ModuleTree(id="modules")
                yield ModuleFilter(placeholder="words  L3  -word", id="module-filter", compact=True)
            with Pane(title=self.title_name, id="right-pane"), TabbedContent(id="tabs"):
                with TabPane("Spectrum", id=SPECTRUM):
                    yield SpectrumView(id="spectrum-view")
                with TabPane("Modules", id=MODULES):
                    yield ReportTable(id="module-table")
                with TabPane("Matrix", id=MATRIX):
                    yield MatrixView(self._matrix, id="matrix")
                with TabPane("Config", id=CONFIG):
                    yield TextView(id="config")

    def on_mount(self) -> None:
        """Take up the view that was left; read once there is something on screen."""
        self.query_one(Tabs).can_focus = False  # < and > turn the tabs from wherever one is
        state = self.lab.state
        self.view = View(
            state.get("detail.log", True), state.get("detail.energy", False), state.get("detail.normalised", False)
        )
        self.is_overlaid = state.get("detail.overlay", False) and bool(self.overlays)
        self.query_one(MatrixView).wanted = state.get("detail.metric", FIRST_METRIC)
        self.query_one(ModuleTree).focus()
        self.call_after_refresh(self.action_rescan)
        self.call_after_refresh(self.query_one(SpectrumView).mount_plot)

    def on_unmount(self) -> None:
        """Nothing goes on for a screen that is gone."""
        if self._stop_reading is not None:
            self._stop_reading.set()

    # Reading and computing.

    def action_rescan(self) -> None:
        """Read the files again, and compute again."""
        if self._stop_reading is not None:
            self._stop_reading.set()
        self._generation += 1
        lab, locator, generation = self.lab, self.locator, self._generation
        self.query_one("#modules-pane", Pane).entitle("Modules", "reading headers …")
        self._stop_reading = work_beside(
            lambda stop, tell: read_adapter(lab, locator, generation, stop, tell), self, "adapter"
        )

    async def on_adapter_read(self, message: AdapterRead) -> None:
        """Show what the headers say, and ask for the rest."""
        if message.generation != self._generation:
            return
        self.set_class(message.adapter is None, "-unreadable")
        if message.adapter is None:
            said = Content.assemble(Content.styled("✗ ", "$text-error"), safe_text(message.reason))
            if message.hint:
                said = Content.assemble(said, "\n\n", Content.styled("→ ", "$text-accent"), safe_text(message.hint))
            self.query_one("#detail-reason", Static).update(said)
            self.refresh_bindings()
            return
        adapter, before = message.adapter, self.module
        self.adapter = adapter
        self.feed.rows = {}
        self.outline = Outline(adapter.modules)
        self.outline.rows = self.feed.rows
        state = self.lab.state
        self.outline.grouping = Grouping(state.get("detail.grouping", str(Grouping.LAYER)))
        self.outline.order = Order(state.get("detail.order", str(Order.NATURAL)))
        self.tree_view.show_outline(self.outline)
        if before in self.outline.positions:
            self.tree_view.select(before or "")
        await self._add_analyses(message)
        self._show_config()
        self._show_table()
        self.entitle()
        self.refresh_bindings()
        self.jobs_ready()

    async def _add_analyses(self, message: AdapterRead) -> None:
        """A tab for each analysis of one adapter, whoever brought it."""
        assert message.adapter is not None
        chosen = [one for one in message.analyses if one.id != "spectrum" and takes_one_adapter(one)]
        views = list(self.query(AnalysisView))
        for view in views:
            view.reset()
        if [view.analysis.id for view in views] == [analysis.id for analysis in chosen]:
            return
        tabs = self.query_one(TabbedContent)
        for view in views:
            if isinstance(view.parent, TabPane) and view.parent.id:
                await tabs.remove_pane(view.parent.id)
        for number, analysis in enumerate(chosen):
            base_model = message.adapter.base_model
            base = self.lab.bases.base_for(base_model)
            view = AnalysisView(analysis, self.locator, base=base, base_model=base_model)
            title: Any = Content(safe_text(presentation_of(analysis.id).title or analysis.title, limit=24))
            await tabs.add_pane(TabPane(title, view, id=f"tab-analysis-{self._generation}-{number}"))

    def jobs_ready(self) -> None:
        """Ask for the spectrum: of what one sees first, then of everything."""
        if self.adapter is None or (desk := self.open_desk()) is None:
            return
        desk.drop_all()
        visible = self.tree_view.visible_modules() if len(self.outline.modules) > MANY_MODULES else []
        self.feed.begin(desk, visible)
        for feed in self.overlays:
            feed.rows, feed.report, feed.reason = {}, None, ""
        self.begin_overlays()
        self._begin_analysis()
        self.entitle()
        self.lab.refresh_job_status()

    def begin_overlays(self) -> None:
        if self.is_overlaid and self.desk is not None:
            for feed in self.overlays:
                if not (feed.is_waiting or feed.report or feed.reason):
                    feed.begin(self.desk)

    def on_job_updated(self, message: JobUpdated) -> None:
        """Take in what our own jobs tell; any other job's event is not for this screen."""
        event, desk = message.event, self.desk
        if desk is None:
            return
        if self.feed.take(event, desk):
            self._feed_changed(is_over=event.kind in ("result", "failed", "cancelled"))
        elif any(feed.take(event, desk) for feed in self.overlays):
            self.show_spectrum()
        else:
            for view in self.query(AnalysisView):
                if view.take(event, desk):
                    if view.report is not None:
                        self.query_one(MatrixView).draw_soon()
                    break

    def _feed_changed(self, *, is_over: bool) -> None:
        self.tree_view.rows_arrived()
        table = self.query_one("#module-table", ReportTable)
        table.rows.update(self.feed.rows)
        table.refresh()
        self.show_spectrum()
        self.query_one(MatrixView).draw_soon()
        if is_over:
            self._show_table()
            self._show_config()
        if self.outline.order is not Order.NATURAL and not self._is_arranging:
            self._is_arranging = True
            self.set_timer(_ARRANGE_DELAY_SECONDS, self._arrange)
        self.entitle()

    def _arrange(self) -> None:
        """Lay the list out once for many rows that arrive together."""
        self._is_arranging = False
        self.tree_view.lay_out()

    # Showing.

    def entitle(self) -> None:
        """Say in the frames what is shown of what."""
        outline = self.outline
        total = len(outline.modules)
        notes = []
        if outline.filter:
            notes.append(f"{len(outline.shown_modules())} of {total}")
        if self.feed.is_waiting and len(self.feed.rows) < total:
            notes.append(f"computed {len(self.feed.rows)} of {total}")
        if outline.order is not Order.NATURAL:
            notes.append(TITLES[outline.order])
        self.query_one("#modules-pane", Pane).entitle(
            f"By {outline.grouping}", " · ".join(notes) or text.plural(total, "module")
        )

    def show_spectrum(self) -> None:
        """Draw the selected module."""
        module = self.module
        if module is None:
            return
        feeds = (self.feed, *(self.overlays if self.is_overlaid else ()))
        self.query_one(SpectrumView).show(
            [_spectrum(feed, module) for feed in feeds], self.feed.rows.get(module), self.view
        )

    def _spectrum_table(self) -> Table:
        from lora_lab.analyses.columns import IDENTITY, MEASURES
        from lora_lab.domain.report import Table

        report = self.feed.report
        if report is not None:
            return report.table("modules")
        return Table("modules", "Modules", (*IDENTITY, *MEASURES), tuple(self.feed.rows.values()))

    def _show_table(self) -> None:
        pending = () if self.feed.report is not None else self.outline.modules
        self.query_one("#module-table", ReportTable).show_table(self._spectrum_table(), pending=pending)

    def _matrix(self) -> tuple[Sequence[str], Sequence[Metric]]:
        """The modules, and every number of them that is there."""
        metrics = metrics_of("spectrum", "Spectrum", self._spectrum_table()) if self.feed.rows else []
        for view in self.query(AnalysisView):
            for table in view.report.tables if view.report is not None else ():
                metrics += metrics_of(view.analysis.id, view.analysis.title, table)
        return self.outline.modules, metrics

    def _show_config(self) -> None:
        if self.adapter is None:
            return
        report = self.feed.report
        totals = next((group for group in report.scalars if group.id == "totals"), None) if report else None
        failure = f"{self.feed.reason} {self.feed.hint}".strip()
        self.query_one("#config", TextView).show(
            config_lines(self.adapter, report.findings if report else (), totals, failure)
        )

    @on(ModuleTree.Selected)
    def _module_selected(self, message: ModuleTree.Selected) -> None:
        """Draw it, and say its shapes."""
        delta = self.adapter.by_module.get(message.module) if self.adapter else None
        note = ""
        if delta is not None:
            sizes = ("×".join(map(str, ref.shape)) for ref in (delta.lora_A, delta.lora_B))
            note = "A {}  B {}".format(*sizes) + f"  scaling {text.compact(delta.scaling)}"
        self.set_header(self.title_name, note)
        room = max(12, self.query_one("#right-pane").size.width - 6)
        shown = message.module if len(message.module) <= room else "…" + message.module[-room + 1 :]
        self.query_one("#right-pane", Pane).entitle(shown)
        self.show_spectrum()
        self.query_one("#module-table", ReportTable).move_to(message.module)
        self.query_one(MatrixView).select(message.module)
        for view in self.query(AnalysisView):
            view.select(message.module)

    @on(MatrixView.Chosen)
    def _cell_chosen(self, message: MatrixView.Chosen) -> None:
        self.tree_view.select(message.module)
        self.tree_view.focus()

    @on(MatrixView.MetricChosen)
    def _metric_chosen(self, message: MatrixView.MetricChosen) -> None:
        self.lab.state.set("detail.metric", message.metric)

    @on(ModuleTree.Chosen)
    def _module_chosen(self) -> None:
        self._to_plot()

    @on(LabTable.Opened, "#module-table")
    def _row_opened(self, message: LabTable.Opened) -> None:
        if message.key in self.outline.positions:
            self.tree_view.select(message.key)
            self._to_plot()

    @on(AnalysisView.ModuleOpened)
    def _analysed_opened(self, message: AnalysisView.ModuleOpened) -> None:
        if message.module in self.outline.positions:
            self.tree_view.select(message.module)

    def _to_plot(self) -> None:
        self.query_one(TabbedContent).active = SPECTRUM
        plot = self.query_one(SpectrumView).plot
        if plot is not None:
            plot.focus()

    @on(TabbedContent.TabActivated)
    def _tab_activated(self) -> None:
        """An analysis runs when it is first looked at."""
        self._begin_analysis()
        if self.tab == MATRIX:
            self.query_one(MatrixView).draw()
        self.refresh_bindings()

    def use_base(self, base: str | None) -> None:
        """Run what depends on the base again, against another one."""
        for view in self.query(AnalysisView):
            view.use_base(base, self.desk)
        self._begin_analysis()
        self.lab.refresh_job_status()

    def _begin_analysis(self) -> None:
        pane = self.query_one(TabbedContent).active_pane
        if pane is not None and self.desk is not None:
            for view in pane.query(AnalysisView):
                view.begin(self.desk)


def _name(locator: str, among: tuple[str, ...]) -> str:
    """The last part of a locator, with the one before where two end alike."""
    path = PurePath(locator)
    alike = [other for other in among if PurePath(other).name == path.name]
    return path.name or locator if len(alike) < 2 else "/".join(path.parts[-2:])


def _spectrum(feed: SpectrumFeed, module: str) -> Spectrum:
    """What is known of `module` in one adapter."""
    row = feed.rows.get(module)
    if row is not None:
        return Spectrum.of_row(feed.name, row)
    if feed.reason:
        return Spectrum(feed.name, reason=f"{feed.reason} {feed.hint}".strip())
    is_missing = feed.report is not None
    return Spectrum(feed.name, reason="has no module of this name" if is_missing else "")
