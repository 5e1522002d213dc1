"""The Matrix tab: any number that a Report holds of every module, layers downwards and projections across."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import on
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from lora_lab.domain.report import Column, ColumnKind
from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.detail.layers import Grid, Metric, grid_of
from lora_lab.tui.detail.spectrum_view import flowed, put
from lora_lab.tui.dialog import LabDialog
from lora_lab.tui.export import Copied, ExportDocument, as_tsv
from lora_lab.tui.leaving import Leaving
from lora_lab.tui.plots.heatmap import Heatmap
from lora_lab.tui.widgets.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

FIRST_METRIC: Final = "spectrum.frobenius_norm"
_ARRANGE_DELAY_SECONDS: Final = 0.2
_MOST_OUTSIDE: Final = 12


class LayerMap(Heatmap):
    """The grid; enter goes to the module under the cursor."""

    HELP_TITLE = "Layers and projections"
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("enter", "jump", "Go to", "Go to the module under the cursor", id="matrix.jump", show=True),
    ]

    @dataclass
    class Chosen(Message):
        """Enter, or a double click."""

        at: tuple[int, int]

    def action_jump(self) -> None:
        """Tell."""
        self.post_message(self.Chosen(self.at))


class MetricList(Options):
    """Numbers that can be shown."""

    HELP_TITLE = "Numbers"


class MetricPicker(LabDialog["str | None"]):
    """Closes with the id of the metric to show.

    Parameters
    ----------
    metrics : in the order to offer
    current : id of the one that is shown
    """

    DEFAULT_CSS = """
    MetricPicker { align: right middle; }
    MetricPicker .dialog { width: 56; height: 80%; }
    """

    def __init__(self, metrics: Sequence[Metric], current: str) -> None:
        super().__init__()
        self._metrics = tuple(metrics)
        self._current = current

    def compose_dialog(self) -> ComposeResult:
        """One list."""
        options = MetricList(*map(self._option, self._metrics), classes="dialog")
        options.border_title = Content("Number to show")
        options.border_subtitle = Content("⏎ shows it · esc cancels")
        yield options

    def _option(self, metric: Metric) -> Option:
        title = Content.assemble(
            safe_text(metric.field.title),
            Content.styled(f"  {safe_text(metric.source_title)}", "$foreground 60%"),
        )
        return Option(title, id=metric.id)

    def on_mount(self) -> None:
        """Start at the one that is shown."""
        ids = [metric.id for metric in self._metrics]
        if self._current in ids:
            self.query_one(OptionList).highlighted = ids.index(self._current)

    @on(OptionList.OptionSelected)
    def _take(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)


class MatrixView(Leaving, Vertical):
    """One metric of all modules.

    Parameters
    ----------
    gather : gives the modules and the metrics there are, when they are to be drawn
    """

    HELP_TITLE = "Matrix"
    DEFAULT_CSS = """
    MatrixView { height: 1fr; width: 1fr; }
    MatrixView > .matrix--title { height: auto; max-height: 3; padding: 0 1; }
    MatrixView > LayerMap { height: 1fr; }
    MatrixView > .matrix--readout { height: auto; max-height: 2; padding: 0 1; color: $text-accent; }
    MatrixView > .matrix--outside { height: auto; max-height: 3; padding: 0 1; display: none; }
    MatrixView.-outside > .matrix--outside { display: block; }
    MatrixView.-gridless > LayerMap { display: none; }
    """

    @dataclass
    class Chosen(Message):
        """A module to go to."""

        module: str

    @dataclass
    class MetricChosen(Message):
        """Another metric is shown."""

        metric: str

    def __init__(
        self,
        gather: Callable[[], tuple[Sequence[str], Sequence[Metric]]],
        *,
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(id=id)
        self._gather = gather
        self.metrics: tuple[Metric, ...] = ()
        self.wanted = FIRST_METRIC
        self.grid: Grid = grid_of(())
        self._modules: tuple[str, ...] = ()
        self._is_waiting = False

    def compose(self) -> ComposeResult:
        """Title, grid, what stands under the cursor, and the modules that are in no layer."""
        yield Static("", classes="matrix--title")
        yield LayerMap(has_status=False)
        yield Static("", classes="matrix--readout")
        yield Static("", classes="matrix--outside")

    @property
    def map(self) -> LayerMap:
        """The grid on screen."""
        return self.query_one(LayerMap)

    @property
    def metric(self) -> Metric | None:
        """The one that is shown: the one asked for, or the first there is."""
        found = (metric for metric in self.metrics if metric.id == self.wanted)
        return next(found, self.metrics[0] if self.metrics else None)

    @property
    def module(self) -> str | None:
        """The module under the cursor."""
        row, column = self.map.at
        if row < len(self.grid.modules) and column < len(self.grid.columns):
            return self.grid.modules[row][column]
        return None

    # What is shown.

    def draw_soon(self) -> None:
        """Draw what has come, once for much that comes together, and not at all while it cannot be seen."""
        if not self._is_waiting:
            self._is_waiting = True
            self.set_timer(_ARRANGE_DELAY_SECONDS, self._draw_if_seen)

    def _draw_if_seen(self) -> None:
        self._is_waiting = False
        if self.is_on_screen:
            self.draw()

    def draw(self) -> None:
        """Draw what is known."""
        modules, metrics = self._gather()
        if tuple(modules) != self._modules:
            self._modules = tuple(modules)
            self.grid = grid_of(self._modules)
        self.metrics = tuple(metrics)
        metric = self.metric
        self.set_class(not self.grid.modules, "-gridless")
        if metric is not None:
            column = Column("value", metric.field.title, ColumnKind.HEATMAP, index_title="layer, projection")
            self.map.show_matrix(column, self.grid.values(metric), rows=self.grid.rows, columns=self.grid.columns)
        self._entitle()
        self._read_out()
        self._show_outside()
        self.refresh_bindings()

    def _entitle(self) -> None:
        metric = self.metric
        width = max(20, self.size.width - 2)
        if metric is None:
            put(self.query_one(".matrix--title", Static), Content("computing …"))
            return
        column = metric.field.column
        unit = f" [{column.unit}]" if column.unit else ""
        known = sum(module in metric.rows for module in self._modules)
        parts = [
            Content.styled(safe_text(metric.field.title + unit), "bold"),
            Content.styled(safe_text(metric.source_title), "$foreground 65%"),
        ]
        if column.formula:
            parts.append(Content.styled(safe_text(column.formula, limit=width), "$foreground 65%"))
        if known < len(self._modules):
            parts.append(Content.styled(f"{known} of {len(self._modules)} modules", "$text-warning"))
        put(self.query_one(".matrix--title", Static), flowed(parts, width))

    def _read_out(self) -> None:
        metric, module = self.metric, self.module
        parts = []
        if metric is not None and module is not None:
            parts = [Content(_exact(metric, module)), Content(safe_text(module))]
        elif metric is not None:
            parts = [Content("This layer has no such module.")]
        put(self.query_one(".matrix--readout", Static), flowed(parts, max(20, self.size.width - 2)))

    def _show_outside(self) -> None:
        metric, outside = self.metric, self.grid.outside
        self.set_class(bool(outside), "-outside")
        if metric is None or not outside:
            return
        parts = [Content.styled("in no layer:", "$foreground 65%")]
        for module in outside[:_MOST_OUTSIDE]:
            value = metric.value(module)
            number = text.PENDING if module not in metric.rows else text.number(value)
            tone = "dim" if value is None else "bold"
            parts.append(Content.assemble(f"{safe_text(module)} ", Content.styled(number, tone)))
        if len(outside) > _MOST_OUTSIDE:
            parts.append(Content(f"and {len(outside) - _MOST_OUTSIDE} more"))
        put(self.query_one(".matrix--outside", Static), flowed(parts, max(20, self.size.width - 2)))

    def select(self, module: str) -> None:
        """Put the cursor on `module`."""
        place = self.grid.place_of(module)
        if place is not None:
            self.map.at = place

    # Keys.

    def choose_metric(self) -> None:
        """Choose another number."""

        def take(chosen: str | None) -> None:
            if chosen is not None:
                self.wanted = chosen
                self.post_message(self.MetricChosen(chosen))
                self.draw()

        metric = self.metric
        self.app.push_screen(MetricPicker(self.metrics, metric.id if metric else ""), take)

    @on(Heatmap.CursorMoved)
    def _cursor_moved(self, message: Heatmap.CursorMoved) -> None:
        message.stop()
        self._read_out()

    @on(LayerMap.Chosen)
    def _map_chosen(self, message: LayerMap.Chosen) -> None:
        message.stop()
        if self.module is not None:
            self.post_message(self.Chosen(self.module))

    def on_resize(self) -> None:
        """Let the words flow in the new width."""
        self._entitle()
        self._show_outside()

    # Taking away.

    def copied(self) -> Copied | None:
        """The number under the cursor."""
        metric, module = self.metric, self.module
        if metric is None or module is None:
            return None
        row: list[Any] = [module, metric.value(module)]
        return Copied(f"{metric.field.title} of {safe_text(module, limit=40)}", as_tsv(["module", metric.id], [row]))

    def document(self, name: str) -> ExportDocument | None:
        """The number of every module."""
        metric = self.metric
        if metric is None:
            return None
        rows = [[module, metric.value(module)] for module in self._modules]
        return ExportDocument(f"{name}-{metric.id}", ["module", metric.id], rows)


def _exact(metric: Metric, module: str) -> str:
    """The number with the digits of the report."""
    if module not in metric.rows:
        return text.PENDING
    value = metric.value(module)
    return "undefined" if value is None else repr(value)
