"""The keys of the screen of one adapter, and what each of them does."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.widgets import Input, TabbedContent

from lora_lab.tui import bindings
from lora_lab.tui.base_dialog import ask_for_base
from lora_lab.tui.detail import taking
from lora_lab.tui.detail.analysis_view import AnalysisView
from lora_lab.tui.detail.matrix_view import LayerMap, MatrixView
from lora_lab.tui.detail.module_tree import ModuleTree
from lora_lab.tui.detail.spectrum_view import SpectrumView
from lora_lab.tui.detail.tables import ReportTable
from lora_lab.tui.screens import LabScreen

if TYPE_CHECKING:
    from textual.binding import BindingType

    from lora_lab.domain.adapter import Adapter
    from lora_lab.tui.detail.feed import SpectrumFeed
    from lora_lab.tui.detail.outline import Outline
    from lora_lab.tui.export import Copied, ExportDocument
    from lora_lab.tui.plots.drawings import Spectrum
    from lora_lab.tui.plots.series import View

SPECTRUM, MODULES, MATRIX, CONFIG = "tab-spectrum", "tab-modules", "tab-matrix", "tab-config"
_NEXT_MATCH: Final = frozenset({"find.next", "find.previous"})  # [ and ] go through what the filter shows; n normalises
_NEEDS_ADAPTER: Final = frozenset(
    {"view", "overlay", "group", "sort", "module", "tab", "filter", "copy", "choose_base"}
)
_REMEMBERED: Final = {
    "is_logarithmic": "detail.log",
    "is_energy": "detail.energy",
    "is_normalised": "detail.normalised",
}


class ModuleFilter(Input, inherit_bindings=False):
    """Where the filter of the modules is typed."""

    HELP_TITLE = "Filter"
    HELP = "Words that the module's path contains; -word leaves out; L3 is layer 3."
    BINDINGS: ClassVar[list[BindingType]] = [*bindings.described(Input.BINDINGS, "filter")]


class DetailKeys(LabScreen, inherit_bindings=False):
    """What the keys do with the modules, the view and the tabs."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.of_screen(*_NEXT_MATCH),
        bindings.key("l", "view('is_logarithmic')", "Log", "Logarithmic or linear axis", id="detail.log", show=True),
        bindings.key("e", "view('is_energy')", "Energy", "Energy that the first k directions hold, or σ",
                     id="detail.energy", show=True),
        bindings.key("n", "view('is_normalised')", "Normalise", "Divide every curve by its σ₁",
                     id="detail.normalise", show=True),
        bindings.key("o", "overlay", "Overlay", "Lay the marked adapters over this one",
                     id="detail.overlay", show=True),
        bindings.key("c", "compare", "Compare", "Compare this adapter with the marked one", id="detail.compare",
                     show=True),
        bindings.key("v", "group", "Group", "Group by layer or by projection", id="detail.group", show=True),
        bindings.key("s", "sort", "Sort", "Sort modules: natural, ‖ΔW‖, effective rank", id="detail.sort", show=True),
        bindings.key("m", "next_table", "Number", "Choose the matrix' number, or show the report's next table",
                     id="detail.number"),
        bindings.key("w", "next_curve", "Curve", "Draw the other curves of the row", id="detail.curve"),
        bindings.key("d", "choose_base", "Base", "Choose the base model that this analysis is run against",
                     id="detail.base"),
        bindings.key("left_square_bracket", "module(-1)", "Previous", "Go to the module before", id="detail.previous"),
        bindings.key("right_square_bracket", "module(1)", "Next", "Go to the next module", id="detail.next"),
        bindings.key("greater_than_sign,ctrl+right", "tab(1)", "Next tab", "Show the next tab", id="tabs.next"),
        bindings.key("less_than_sign,ctrl+left", "tab(-1)", "Previous tab", "Show the tab before", id="tabs.previous"),
    ]  # fmt: skip

    locator: str
    title_name: str
    feed: SpectrumFeed
    overlays: tuple[SpectrumFeed, ...]
    adapter: Adapter | None
    outline: Outline
    view: View
    is_overlaid: bool
    _before_filter: tuple[str, str | None] = ("", None)

    @property
    def tree_view(self) -> ModuleTree:
        """The list of modules."""
        return self.query_one(ModuleTree)

    @property
    def module(self) -> str | None:
        """The module whose spectrum is shown."""
        return self.tree_view.selected

    @property
    def tab(self) -> str:
        """Id of the tab that is shown."""
        return self.query_one(TabbedContent).active

    @property
    def spectra(self) -> tuple[Spectrum, ...]:
        """What is drawn."""
        return self.query_one(SpectrumView).spectra

    @abstractmethod
    def show_spectrum(self) -> None:
        """Draw the selected module."""

    @abstractmethod
    def begin_overlays(self) -> None:
        """Ask for the spectra of the overlaid adapters."""

    @abstractmethod
    def use_base(self, base: str | None) -> None:
        """Run what depends on the base again, against another one."""

    @abstractmethod
    def entitle(self) -> None:
        """Say in the frames what is shown of what."""

    # Availability.

    def unavailable(self, action: str, parameters: tuple[object, ...]) -> str | None:
        """Say what needs a module, a mark or another tab."""
        if action == "rescan":
            return super().unavailable(action, parameters)
        if self.adapter is None and action in (
            "view",
            "overlay",
            "group",
            "sort",
            "module",
            "tab",
            "filter",
            "copy",
            "choose_base",
        ):
            return "the adapter has not been read"
        if action in ("overlay", "compare") and not self.overlays:
            return "no other adapter is marked: mark one in the library with space, then open this one from there"
        if action in ("view", "overlay") and self.is_mounted and self.tab != SPECTRUM:
            return "the plot is on the tab Spectrum"
        if action == "view" and parameters != ("is_energy",) and self.view.is_energy:
            return "a cumulative share has a linear axis of its own; e goes back to σ"
        if action == "choose_base" and self.is_mounted and not self._takes_base():
            return "this tab needs no base model; those of analyses against the base's weights do"
        if action in ("next_table", "next_curve") and self.is_mounted:
            return self._no_choice(action)
        return super().unavailable(action, parameters)

    def _no_choice(self, action: str) -> str | None:
        """Reason why there is no other number, table or curve to show."""
        view = self._analysis()
        if view is not None:
            return view.unavailable(action)
        if action == "next_table" and self.tab == MATRIX:
            return None if self.query_one(MatrixView).metrics else "no number has been computed yet"
        return "this tab shows one thing" if action == "next_table" else "this tab has no curves to choose from"

    def action_next_table(self) -> None:
        """Choose the number of the matrix, or show the next table."""
        view = self._analysis()
        if view is not None:
            view.next_table()
        else:
            self.query_one(MatrixView).choose_metric()

    async def action_next_curve(self) -> None:
        """Draw the curves that have another axis."""
        view = self._analysis()
        if view is not None:
            await view.next_curve()

    def _takes_base(self) -> bool:
        view = self._analysis()
        return view is not None and view.takes_base

    def action_choose_base(self) -> None:
        """Ask which base model is meant."""
        if self.adapter is not None:
            ask_for_base(self.lab, self.title_name, self.adapter.base_model, self.adapter.path, self.use_base)

    # The view.

    def action_view(self, name: str) -> None:
        """Turn one property of the view round."""
        self.view = self.view.toggled(name)
        self.lab.state.set(_REMEMBERED[name], getattr(self.view, name))
        self.show_spectrum()
        self.refresh_bindings()

    def action_overlay(self) -> None:
        """Lay the marked adapters over this one, or take them away."""
        self.is_overlaid = not self.is_overlaid
        self.lab.state.set("detail.overlay", self.is_overlaid)
        self.begin_overlays()
        self.show_spectrum()

    def action_compare(self) -> None:
        """Go to this adapter and the marked one beside each other."""
        other = self.overlays[0]
        self.lab.open_compare((self.locator, other.locator), names=(self.title_name, other.name))

    # Modules.

    def action_group(self) -> None:
        """Group by the other thing."""
        outline = self.outline
        outline.grouping = outline.grouping.other
        self.lab.state.set("detail.grouping", str(outline.grouping))
        if self.module is not None:
            outline.opened.add(outline.group_of(self.module))
        self.tree_view.lay_out()
        self.entitle()

    def action_sort(self) -> None:
        """Go on to the next order."""
        self.outline.order = self.outline.order.next
        self.lab.state.set("detail.order", str(self.outline.order))
        self.tree_view.lay_out()
        self.entitle()

    def action_module(self, step: int) -> None:
        """Go to the module before or after, as the list is filtered and sorted."""
        shown = self.outline.shown_modules()
        if not shown:
            self.lab.say("The filter shows no module.")
            return
        place = shown.index(self.module) + step if self.module in shown else 0
        if 0 <= place < len(shown):
            self.tree_view.select(shown[place])
        else:
            self.lab.say("This is the last module." if step > 0 else "This is the first module.")

    # The filter.

    def action_filter(self) -> None:
        """Type a filter."""
        self._before_filter = (self.outline.filter, self.module)
        self.add_class("-filtering")
        field = self.query_one(ModuleFilter)
        field.value = self.outline.filter
        field.focus()

    @on(Input.Changed, "#module-filter")
    def _filter_changed(self, message: Input.Changed) -> None:
        if self.has_class("-filtering"):
            self.set_filter(message.value)

    @on(Input.Submitted, "#module-filter")
    def _filter_done(self) -> None:
        self.remove_class("-filtering")
        self.tree_view.focus()

    def set_filter(self, typed: str) -> None:
        """Show the modules that `typed` lets through."""
        self.outline.filter = " ".join(typed.split())
        self.tree_view.lay_out()
        self.entitle()

    def leave(self) -> bool:
        """Leave the filter, with the cursor where it was before."""
        if not (self.has_class("-filtering") or self.outline.filter):
            return False
        was_typing = self.has_class("-filtering")
        self.remove_class("-filtering")
        before = self._before_filter[1] if was_typing else self.module
        self.set_filter("")
        self.tree_view.focus()
        if before is not None:
            self.tree_view.select(before)
        return True

    # Tabs.

    def action_tab(self, step: int) -> None:
        """Show the next tab, or the one before; the focus goes with it."""
        tabs = self.query_one(TabbedContent)
        ids = [pane.id or "" for pane in tabs.query("TabPane")]
        tabs.active = ids[(ids.index(tabs.active) + step) % len(ids)]
        if not self.tree_view.has_focus:
            self.call_after_refresh(self._focus_tab)

    def _focus_tab(self) -> None:
        pane = self.query_one(TabbedContent).active_pane
        target = (
            next((widget for widget in pane.query("*") if widget.focusable and widget.display), None) if pane else None
        )
        if target is not None:
            target.focus()

    # Taking away.

    def _analysis(self) -> AnalysisView | None:
        pane = self.query_one(TabbedContent).active_pane
        return next(iter(pane.query(AnalysisView)), None) if pane is not None else None

    def copy_value(self) -> Copied | None:
        """The values under the plot's cursor, the row under the table's cursor, or the row of the module."""
        focused, module = self.focused, self.module
        if isinstance(focused, ReportTable):
            return focused.copied()
        if isinstance(focused, LayerMap):
            return self.query_one(MatrixView).copied()
        view = self.query_one(SpectrumView)
        plot = view.plot
        if module is not None and plot is not None and plot.has_focus and plot.cursor is not None:
            return taking.copied_value(module, view.spectra, plot.cursor)
        return None if module is None else taking.copied_row(module, self.feed.rows.get(module))

    def export_document(self) -> ExportDocument | None:
        """The curves, the table, the configuration or the rows of the analysis, whichever tab is shown."""
        name = self.title_name
        if self.adapter is None:
            return None
        if self.tab == MODULES:
            return self.query_one("#module-table", ReportTable).document(f"{name}-modules")
        if self.tab == MATRIX:
            return self.query_one(MatrixView).document(name)
        if self.tab == CONFIG:
            return taking.configuration_document(self.adapter)
        analysis = self._analysis()
        if analysis is not None:
            return analysis.table.document(f"{name}-{analysis.analysis.id}") if analysis.report else None
        return None if self.module is None else taking.spectrum_document(name, self.module, self.spectra)
