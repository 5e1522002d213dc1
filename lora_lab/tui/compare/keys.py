"""The keys of the screen of two adapters, and what each of them does."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.widgets import Input, TabbedContent

from lora_lab.tui import bindings
from lora_lab.tui.compare.module_list import ModuleList
from lora_lab.tui.compare.naming import pair_name
from lora_lab.tui.compare.overlap_view import GRID_COLUMNS, OverlapView
from lora_lab.tui.compare.report_view import ReportView
from lora_lab.tui.detail.keys import ModuleFilter
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.export import Copied, ExportDocument, as_tsv
from lora_lab.tui.screens import LabScreen

if TYPE_CHECKING:
    from textual.binding import BindingType

    from lora_lab.tui.compare.feed import Compared, OverlapFeed

OVERLAP, FACTS = "tab-overlap", "tab-facts"
_ELSEWHERE: Final = frozenset({"find.next", "find.previous", "theme"})  # [ and ] go through the filter; t is the table
_OWN: Final = frozenset(
    {
        "side",
        "swap",
        "sort",
        "cells",
        "numbers",
        "scale",
        "module",
        "tab",
        "filter",
        "copy",
        "export",
        "leave",
        "rescan",
    }
)


class CompareKeys(LabScreen, inherit_bindings=False):
    """What the keys do with the side, the modules, the grid and the tabs."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.of_screen(*_ELSEWHERE),
        bindings.key("v", "side", "Side", "Next side: right and left of ΔW, then lora_A and lora_B",
                     id="compare.side", show=True),
        bindings.key("w", "swap", "Swap", "Swap A and B", id="compare.swap", show=True),
        bindings.key("a", "app.combine", "Combine", "Combine the two", id="compare.combine", show=True),
        bindings.key("s", "sort", "Sort", "Sort modules: φ, natural, cosine, φ over random",
                     id="compare.sort", show=True),
        bindings.key("z", "cells", "Cells", "Fit the grid into the pane, or half, or whole cells",
                     id="compare.cells", show=True),
        bindings.key("t", "numbers", "Numbers", "The grid as a table of numbers, or as colours",
                     id="compare.numbers", show=True),
        bindings.key("e", "scale", "Scale", "Colours and bars from 0 to 1, or over the values there are",
                     id="compare.scale", show=True),
        bindings.key("left_square_bracket", "module(-1)", "Previous", "Go to the module before",
                     id="compare.previous"),
        bindings.key("right_square_bracket", "module(1)", "Next", "Go to the next module", id="compare.next"),
        bindings.key("greater_than_sign,ctrl+right", "tab(1)", "Next tab", "Show the next tab", id="tabs.next"),
        bindings.key("less_than_sign,ctrl+left", "tab(-1)", "Previous tab", "Show the tab before", id="tabs.previous"),
        bindings.key("T", "app.pick_theme", "Theme", "Choose a theme, with a live preview", id="theme"),
    ]  # fmt: skip

    compared: Compared
    names: tuple[str, str]
    feed: OverlapFeed
    _before_filter: str | None = None

    @property
    def list_view(self) -> ModuleList:
        """The modules."""
        return self.query_one(ModuleList)

    @property
    def overlap(self) -> OverlapView:
        """The grid of one module."""
        return self.query_one(OverlapView)

    @property
    def module(self) -> str | None:
        """The module whose grid is shown."""
        return self.list_view.cursor_key

    @property
    def tab(self) -> str:
        """Id of the tab that is shown."""
        return self.query_one(TabbedContent).active

    @abstractmethod
    def compare(self, compared: Compared, names: tuple[str, str]) -> None:
        """Show another side, or the two the other way round."""

    @abstractmethod
    def entitle(self) -> None:
        """Say in the frames what is shown of what."""

    @abstractmethod
    def show_module(self) -> None:
        """Draw the module under the cursor, or say why it cannot be drawn; ask for what is missing."""

    # Availability.

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what needs a module, a grid or another tab."""
        if not self.is_mounted:
            if action in _OWN:
                return "the screen is not there yet"
            return super().unavailable(action, parameters)
        if action in ("cells", "numbers"):
            if self.tab != OVERLAP:
                return "the grid is on the tab Overlap"
            if self.overlap.shown is None:
                return "there is no grid to show"
            if action == "cells" and self.overlap.is_table:
                return "numbers have one size; t goes back to colours"
        if action == "module" and not self.list_view.keys:
            return "there is no module in the list"
        return super().unavailable(action, parameters)

    # What is compared.

    def action_side(self) -> None:
        """Go on to the next side."""
        self.lab.state.set("compare.side", self.compared.next_side().side)
        self.compare(self.compared.next_side(), self.names)

    def action_swap(self) -> None:
        """Compare B with A."""
        self.compare(self.compared.swapped(), (self.names[1], self.names[0]))

    def action_cells(self) -> None:
        """Take the next size of the heatmap's cells."""
        self.overlap.heatmap.action_cells()

    def action_numbers(self) -> None:
        """Turn between colours and numbers."""
        overlap = self.overlap
        overlap.turn_table(is_table=not overlap.is_table)
        self.lab.state.set("compare.numbers", overlap.is_table)
        self.refresh_bindings()

    def action_scale(self) -> None:
        """Turn between the scale of φ and that of the values there are."""
        is_own = not self.overlap.has_own_scale
        self.lab.state.set("compare.own_scale", is_own)
        self.overlap.has_own_scale = self.list_view.has_own_scale = is_own
        self.list_view.lay_out()
        self.show_module()

    # Modules.

    def action_sort(self) -> None:
        """Go on to the next order."""
        self.list_view.order = self.list_view.order.next
        self.lab.state.set("compare.order", str(self.list_view.order))
        self.list_view.lay_out()
        self.entitle()

    def action_module(self, step: int) -> None:
        """Go to the module before or after, as the list is filtered and sorted."""
        modules = self.list_view
        if 0 <= modules.cursor + step < len(modules.keys):
            modules.cursor += step
        else:
            self.lab.say("This is the last module." if step > 0 else "This is the first module.")

    # The filter.

    def action_filter(self) -> None:
        """Type a filter."""
        self._before_filter = self.module
        self.add_class("-filtering")
        field = self.query_one(ModuleFilter)
        field.value = self.list_view.filter
        field.focus()

    @on(Input.Changed, "#compare-filter")
    def _filter_changed(self, message: Input.Changed) -> None:
        if self.has_class("-filtering"):
            self.set_filter(message.value)

    @on(Input.Submitted, "#compare-filter")
    def _filter_done(self) -> None:
        self.remove_class("-filtering")
        self._focus_pane()

    def set_filter(self, typed: str) -> None:
        """Show the modules that `typed` lets through, in the list and in the tables."""
        self.list_view.filter = " ".join(typed.split())
        self.list_view.lay_out()
        for view in self.query(ReportView):
            view.set_filter(self.list_view.filter)
        self.entitle()
        self.show_module()

    def leave(self) -> bool:
        """Leave the filter, with the cursor where it was before."""
        was_typing = self.has_class("-filtering")
        if not (was_typing or self.list_view.filter):
            return False
        self.remove_class("-filtering")
        before = self._before_filter if was_typing else self.module
        self.set_filter("")
        self._focus_pane()
        if before is not None:
            self.list_view.move_to(before)
        return True

    def _focus_pane(self) -> None:
        """Go back to the list, or to the table where the list is hidden."""
        if self.list_view.is_on_screen:
            self.list_view.focus()
        else:
            self._focus_tab()

    # Tabs.

    def action_tab(self, step: int) -> None:
        """Show the next tab, or the one before; the focus goes with it."""
        tabs = self.query_one(TabbedContent)
        ids = [pane.id or "" for pane in tabs.query("TabPane")]
        tabs.active = ids[(ids.index(tabs.active) + step) % len(ids)]
        self.call_after_refresh(self._focus_tab)

    def _focus_tab(self) -> None:
        if self.tab == OVERLAP:
            self.list_view.focus()
            return
        pane = self.query_one(TabbedContent).active_pane
        for widget in pane.query("*") if pane else ():
            if widget.focusable and widget.display:
                widget.focus()
                return

    # Taking away.

    def _report_view(self) -> ReportView | None:
        pane = self.query_one(TabbedContent).active_pane
        return next(iter(pane.query(ReportView)), None) if pane is not None else None

    def copy_value(self) -> Copied | None:
        """The value under the grid's cursor, the row under a table's cursor, or the row of the module."""
        focused, module = self.focused, self.module
        if isinstance(focused, ReportTable):
            return focused.copied()
        if module is None:
            return None
        overlap = self.overlap
        if focused is not None and focused is overlap.shown:
            return overlap.copied_value(module, self.compared.side)
        row = self.feed.rows.get(module)
        return None if row is None else Copied(f"the row of {module}", as_tsv(list(row), [list(row.values())]))

    def export_document(self) -> ExportDocument | None:
        """The grid when it has the focus, the list of modules, or the table of the tab that is shown."""
        name = pair_name(self.names)
        view = self._report_view()
        if view is not None:
            return view.table.document(f"{name}-{view.analysis}") if view.report else None
        overlap, module = self.overlap, self.module
        if self.tab != OVERLAP or module is None:
            return None
        if self.focused is not None and self.focused is overlap.shown:
            rows = overlap.grid_rows(module, self.compared.side)
            return ExportDocument(f"{name}-overlap-{self.compared.side}-{module}", GRID_COLUMNS, rows)
        shown = [self.feed.rows[key] for key in self.list_view.keys if key in self.feed.rows]
        columns = list(dict.fromkeys(column for row in shown for column in row))
        cells = [[row.get(column) for column in columns] for row in shown]
        return ExportDocument(f"{name}-overlap-{self.compared.side}", columns, cells)
