"""The screen of two adapters: the modules they share on the left; overlap, differences, interference on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from textual import on
from textual.containers import Horizontal
from textual.widgets import TabbedContent, TabPane, Tabs

from lora_lab.tui import text
from lora_lab.tui.compare import words
from lora_lab.tui.compare.feed import SIDES, Compared, Grids, OverlapFeed
from lora_lab.tui.compare.keys import FACTS, OVERLAP, CompareKeys
from lora_lab.tui.compare.module_list import TITLES, ModuleList, Order
from lora_lab.tui.compare.naming import pair_name, pair_names
from lora_lab.tui.compare.overlap_view import OverlapView
from lora_lab.tui.compare.report_view import ReportView
from lora_lab.tui.detail.config_view import TextView
from lora_lab.tui.detail.keys import ModuleFilter
from lora_lab.tui.plots.heatmap import CellSize
from lora_lab.tui.widgets.pane import Pane
from lora_lab.tui.widgets.table import LabTable

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.timer import Timer

    from lora_lab.tui.messages import JobUpdated

_ARRANGE_DELAY_SECONDS: Final = 0.15  # rows that arrive together are laid out together
_GRID_DELAY_SECONDS: Final = 0.08  # while the cursor runs down the list, nothing is asked for
_REPORTS: Final = (("diff", "Diff"), ("interference", "Interference"))


class CompareScreen(CompareKeys):
    """Two adapters.

    Parameters
    ----------
    locators : of A and of B
    names : what to call them; by default the last parts of the locators
    """

    HELP_TITLE = "Compare"
    HELP = (
        "φ(i,j) is the share of A's first i directions that lies in the span of B's first j, or the other way round "
        "where j is smaller: 1 is all, and random subspaces have about max(i,j)/d."
    )
    CSS = """
    #compare-modules { width: 29; }
    CompareScreen.-normal #compare-modules { width: 38; }
    CompareScreen.-wide #compare-modules { width: 46; }
    CompareScreen.-tables.-narrow #compare-modules, CompareScreen.-tables.-normal #compare-modules { display: none; }
    CompareScreen ModuleFilter {
        display: none; dock: bottom; height: 1; border: none; padding: 0 1; background: $panel;
    }
    CompareScreen ModuleFilter:focus { border: none; }
    CompareScreen.-filtering ModuleFilter { display: block; }
    CompareScreen TabbedContent { width: 1fr; height: 1fr; }
    CompareScreen Tabs { height: 1; }
    CompareScreen Tabs #tabs-list-bar { height: 1; }
    CompareScreen Tabs Underline { display: none; }
    CompareScreen Tab { height: 1; color: $foreground 70%; }
    CompareScreen Tab.-active { color: $text-primary; text-style: bold underline; }
    CompareScreen ContentSwitcher, CompareScreen TabPane { height: 1fr; width: 1fr; padding: 0; }
    """

    def __init__(self, locators: tuple[str, str], *, names: tuple[str, str] | None = None) -> None:
        self.names = names or pair_names(locators)
        super().__init__(f"A {self.names[0]}  vs  B {self.names[1]}")
        self.compared = Compared(*locators, side=next(iter(SIDES)))
        self.feed = OverlapFeed(self.compared, self._title())
        self._feeds = {self.compared: self.feed}
        self._grids = Grids()
        self._is_arranging = False
        self._wanted = ""  # module to go back to when its row comes
        self._grid_timer: Timer | None = None

    def _title(self) -> str:
        return f"overlap {self.names[0]} {self.names[1]}"

    # Building.

    def compose_body(self) -> ComposeResult:
        """Modules on the left, tabs on the right."""
        with Horizontal():
            with Pane(title="Modules", id="compare-modules"):
                yield ModuleList(id="compare-list")
            with Pane(id="compare-right"):
                with TabbedContent(id="tabs"):
                    with TabPane("Overlap", id=OVERLAP):
                        yield OverlapView()
                    for analysis, title in _REPORTS:
                        with TabPane(title, id=f"tab-{analysis}"):
                            yield ReportView(analysis, title)
                    with TabPane("Facts", id=FACTS):
                        yield TextView(id="compare-facts")
                yield ModuleFilter(placeholder="words  L3  -word", id="compare-filter", compact=True)

    def on_mount(self) -> None:
        """Take up the view that was left; compute once there is something on screen."""
        self.query_one(Tabs).can_focus = False  # < and > turn the tabs from wherever one is
        state = self.lab.state
        side, order = state.get("compare.side", self.compared.side), state.get("compare.order", str(Order.PHI))
        cells = state.get("compare.cells", str(CellSize.FIT))
        self.list_view.order = Order(order) if order in list(Order) else Order.PHI
        self.overlap.heatmap.cell_size = CellSize(cells) if cells in list(CellSize) else CellSize.FIT
        self.overlap.is_table = state.get("compare.numbers", False)
        self.watch(self.overlap.heatmap, "cell_size", lambda size: state.set("compare.cells", str(size)), init=False)
        self.overlap.has_own_scale = self.list_view.has_own_scale = state.get("compare.own_scale", False)
        self.list_view.focus()
        self.compare(self.compared._replace(side=side if side in SIDES else self.compared.side), self.names)

    def on_resize(self, _event: events.Resize) -> None:
        """Let the titles have the room there is now; the bases' handlers are called as well."""
        self.call_after_refresh(self._entitle_module)

    # Computing.

    def compare(self, compared: Compared, names: tuple[str, str]) -> None:
        """Show another side, or the two the other way round; what has been computed of it is kept."""
        if compared != self.compared and self.desk is not None:
            self.feed.rest(self.desk)
            self._grids.rest(self.desk)
        is_swapped = compared.a != self.compared.a
        self._wanted = self.module or self._wanted
        self.compared, self.names = compared, names
        self.feed = self._feeds.setdefault(compared, OverlapFeed(compared, self._title()))
        if is_swapped:
            for view in self.query(ReportView):
                view.reset(self.desk)
        self.jobs_ready()
        self.set_header(f"A {names[0]}  vs  B {names[1]}", f"side {compared.side}")
        self._feed_changed()

    def action_rescan(self) -> None:
        """Compute again."""
        if self.desk is not None:
            self.desk.drop_all()
            self._grids.forget(self.desk)
        self.feed = OverlapFeed(self.compared, self._title())
        self._feeds = {self.compared: self.feed}
        for view in self.query(ReportView):
            view.reset(self.desk)
        self.jobs_ready()
        self._feed_changed()

    def jobs_ready(self) -> None:
        """Ask for the rows of all modules."""
        if (desk := self.open_desk()) is None:
            return
        if not self.feed.is_begun:
            self.feed.begin(desk)
        self._begin_report()
        self.lab.refresh_job_status()

    def _begin_report(self) -> None:
        """An analysis runs when it is first looked at."""
        view = self._report_view()
        if view is not None and self.desk is not None:
            view.begin(self.desk, (self.compared.a, self.compared.b), pair_name(self.names))

    def on_job_updated(self, message: JobUpdated) -> None:
        """Take in what our own jobs tell; any other job's event is not for this screen."""
        event, desk = message.event, self.desk
        if desk is None:
            return
        feed = next((one for one in self._feeds.values() if one.take(event, desk)), None)
        if feed is self.feed:
            if event.kind == "rows" or (event.kind == "progress" and not self._is_arranging):
                self._arrange_soon()
            elif event.kind in ("result", "failed", "cancelled"):
                self._feed_changed()
        elif feed is None and self._grids.take(event, desk):
            self.show_module()
        elif feed is None:
            for view in self.query(ReportView):
                if view.take(event, desk):
                    break

    def _arrange_soon(self) -> None:
        """Lay the list out once for many rows that arrive together."""
        if not self._is_arranging:
            self._is_arranging = True
            self.set_timer(_ARRANGE_DELAY_SECONDS, self._feed_changed)

    def _feed_changed(self) -> None:
        self._is_arranging = False
        feed = self.feed
        if self._wanted in feed.rows:
            wanted, self._wanted = self._wanted, ""
            self.list_view.show_rows(feed.rows, cursor=wanted)
        else:
            self.list_view.show_rows(feed.rows, stays_on_top=feed.is_waiting)
        if feed.reason:
            self.overlap.refuse(feed.reason, feed.hint)
        elif feed.report is not None:
            self.overlap.note(feed.report.findings, words.alone(feed.report))
        else:
            self.overlap.note(())
        lines = words.about_lines(self.compared, self.names, feed.report)
        self.query_one("#compare-facts", TextView).show(lines)
        self.entitle()
        self.show_module()

    # Showing.

    def entitle(self) -> None:
        """Say in the frames what is shown of what."""
        feed, modules = self.feed, self.list_view
        total = len(feed.rows)
        notes = []
        if modules.filter:
            notes.append(f"{len(modules.keys)} of {total}")
        if feed.is_waiting:
            notes.append(f"computed {total} of {feed.total}" if feed.total else "computing …")
        if modules.order is not Order.PHI:
            notes.append(TITLES[modules.order][1])
        shown = " · ".join(notes) or text.plural(total, "module")
        self.query_one("#compare-modules", Pane).entitle(
            "Modules φ ▼" if modules.order is Order.PHI else "Modules", shown
        )
        self._entitle_module()

    def _entitle_module(self) -> None:
        pane, module, modules = self.query_one("#compare-right", Pane), self.module, self.list_view
        if self.tab != OVERLAP:
            pane.entitle(f"{self.names[0]} and {self.names[1]}", "")
            return
        room = max(12, pane.size.width - 6)
        place = f"module {modules.cursor + 1} of {len(modules.keys)} · " if module else ""
        side = f"side {self.compared.side}: {SIDES[self.compared.side]}"
        shown = module or "φ(i,j)"
        pane.entitle(
            shown if len(shown) <= room else "…" + shown[-room + 1 :],
            place + (side if len(place + side) <= room else f"side {self.compared.side}"),
        )

    def show_module(self) -> None:
        """Draw the module under the cursor, or say why it cannot be drawn; ask for what is missing."""
        module, feed, overlap = self.module, self.feed, self.overlap
        if module is None or module not in feed.rows:
            overlap.show(None, None, reason=self._why_empty())
            return
        row = feed.rows[module]
        reason = words.undefined_reason(row, feed.report.findings if feed.report else ())
        grid = self._grids.get(self.compared, module)
        overlap.show(row, grid, reason=reason)
        self.refresh_bindings()
        if grid is None and not reason:
            self._want_grid_soon()

    def _why_empty(self) -> str:
        if self.feed.reason:
            return " "
        if self.feed.is_waiting or not self.feed.is_begun:
            return "computing the overlap of every module …"
        if self.list_view.filter:
            return f"None of {len(self.feed.rows)} modules matches; esc clears the filter."
        return "No module is in both adapters. The tab Diff lists what each of them has."

    def _want_grid_soon(self) -> None:
        if self._grid_timer is not None:
            self._grid_timer.stop()
        self._grid_timer = self.set_timer(_GRID_DELAY_SECONDS, self._want_grid)

    def _want_grid(self) -> None:
        """Ask for φ(i,j) of the module under the cursor, and for no other's."""
        module = self.module
        if self.desk is not None and module is not None and module in self.feed.rows:
            self._grids.want(self.desk, self.compared, module, title=f"φ(i,j) {module}")
            self.lab.refresh_job_status()

    @on(LabTable.CursorMoved, "#compare-list")
    def _module_selected(self, message: LabTable.CursorMoved) -> None:
        message.stop()
        self._entitle_module()
        self.show_module()

    @on(LabTable.Opened, "#compare-list")
    def _module_chosen(self, message: LabTable.Opened) -> None:
        message.stop()
        self.query_one(TabbedContent).active = OVERLAP
        if self.overlap.shown is not None:
            self.overlap.shown.focus()

    @on(LabTable.Opened, "ReportTable")
    def _row_opened(self, message: LabTable.Opened) -> None:
        """Go from a row of a table to its grid."""
        message.stop()
        if self.list_view.move_to(message.key):
            self.query_one(TabbedContent).active = OVERLAP
            self.call_after_refresh(self.list_view.focus)

    @on(LabTable.CursorMoved, "ReportTable")
    def _row_moved(self, message: LabTable.CursorMoved) -> None:
        message.stop()

    @on(TabbedContent.TabActivated)
    def _tab_activated(self) -> None:
        """Give the tables the whole width where it is short."""
        self.set_class(self.tab != OVERLAP, "-tables")
        self._begin_report()
        self._entitle_module()
        self.refresh_bindings()
