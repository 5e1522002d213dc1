"""The plot itself: textual_plot's widget with our own axes, glyphs, cursor and keys.

Importing this module imports textual_plot and numpy; whoever mounts a plot does so then, not before the first paint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual_hires_canvas import Canvas
from textual_plot import HiResMode, PlotWidget
from textual_plot.axis_formatter import AxisFormatter

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.leaving import Leaving
from lora_lab.tui.plots.series import (
    GLYPHS,
    Drawing,
    Tick,
    horizontal_limits,
    index_ticks,
    linear_ticks,
    logarithmic_ticks,
    vertical_limits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual import events
    from textual.binding import BindingType
    from textual.events import MouseScrollDown, MouseScrollUp
    from textual_plot.plot_widget import VLinePlot

_EMPTY: Final = Drawing((), "")
_FALLBACK: Final = ("cyan", "yellow", "magenta", "green", "red", "blue")
_CELLS_BETWEEN_GLYPHS: Final = 2
_HEAVY: Final = "┏━┓┃┗┛┣┫┳┻╋"
_THIN: Final = str.maketrans(_HEAVY, "┌─┐│└┘├┤┬┴┼")
_LEAST_CANVAS: Final = (6, 4)
_WIDEST: Final = 4.0  # times the whole width, how far one can zoom out
_CLOSEST: Final = 0.01


class _Formatter(AxisFormatter):
    """Ticks from one of our functions."""

    def __init__(self, ticks: Callable[[float, float], list[Tick]]) -> None:
        self._ticks = ticks

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:  # noqa: ARG002
        return [tick.place for tick in self._ticks(min_, max_)]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        return [f"{tick:g}" for tick in ticks]

    def get_ticks_and_labels(self, min_: float, max_: float, max_ticks: int = 8) -> tuple[list[float], list[str]]:  # noqa: ARG002
        ticks = self._ticks(min_, max_)
        return [tick.place for tick in ticks], [tick.label for tick in ticks]


class CurvePlot(Leaving, PlotWidget, inherit_bindings=False):
    """Draws a :class:`~lora_lab.tui.plots.series.Drawing`, with a cursor that stands on one k."""

    ALLOW_MAXIMIZE = True
    HELP_TITLE = "Plot"
    HELP = "The cursor stands on one k; the line below says the values there. The wheel zooms, dragging pans."
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("left,comma", "cursor(-1)", "Left", "Move the cursor to the k before", id="plot.left"),
        bindings.key("right,full_stop", "cursor(1)", "Right", "Move the cursor to the next k", id="plot.right"),
        bindings.key("home,g", "cursor_to('first')", "First", "Move the cursor to k = 1", id="plot.first"),
        bindings.key("end,G", "cursor_to('last')", "Last", "Move the cursor to the last k", id="plot.last"),
        bindings.key("plus,equals_sign", "zoom_in", "Zoom in", "Zoom in", id="plot.zoom_in", show=True),
        bindings.key("minus", "zoom_out", "Zoom out", "Zoom out", id="plot.zoom_out", show=True),
        bindings.key("0", "reset_scales", "Reset", "Show the whole curve again", id="plot.reset", show=True),
        bindings.key("shift+left", "pan_left", "Pan left", "Move the window to the left", id="plot.pan_left"),
        bindings.key("shift+right", "pan_right", "Pan right", "Move the window to the right", id="plot.pan_right"),
        bindings.key("up,k,shift+up", "pan_up", "Pan up", "Move the window up", id="plot.pan_up"),
        bindings.key("down,j,shift+down", "pan_down", "Pan down", "Move the window down", id="plot.pan_down"),
    ]
    COMPONENT_CLASSES = {"plot--note", "plot--vertical", "plot--cursor"}  # noqa: RUF012 - Textual's own declaration
    DEFAULT_CSS = """
    CurvePlot {
        height: 1fr;
        width: 1fr;
        min-height: 4;
        & > .plot--axis { color: $foreground 30%; }
        &:focus > .plot--axis { color: $primary; }
        & > .plot--tick { color: $foreground 75%; text-style: none; }
        & > .plot--label { color: $foreground 75%; text-style: none; }
        & > .plot--note { color: $foreground 75%; }
        & > .plot--vertical { color: $accent; }
        & > .plot--cursor { color: $foreground 45%; }
    }
    """
    margin_left = reactive(7)
    margin_top = reactive(0)
    margin_bottom = reactive(1)
    cursor: reactive[int | None] = reactive(None)

    @dataclass
    class CursorMoved(Message):
        """The cursor stands on another k."""

        plot: CurvePlot
        index: int | None

        @property
        def control(self) -> CurvePlot:
            """The plot, for ``on`` selectors."""
            return self.plot

    def __init__(self, drawing: Drawing = _EMPTY, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.drawing = drawing

    def on_mount(self, event: events.Mount) -> None:  # type: ignore[override]
        """Draw what was given before there was a canvas."""
        event.prevent_default()  # the base's handler would clear the plot after this one
        if not self._has_parts:
            return
        super().on_mount()
        self.set_x_formatter(_Formatter(self._index_ticks))
        self.show_drawing(self.drawing)

    @property
    def _has_parts(self) -> bool:
        """Whether there is something to draw on; not so when the screen is left while this is being mounted."""
        return bool(self.query("Grid"))

    def _update_margin_sizes(self) -> None:
        if self._has_parts:
            super()._update_margin_sizes()

    # What is drawn.

    def show_drawing(self, drawing: Drawing, *, keep_window: bool = False) -> None:
        """Draw `drawing` instead; the window is reset unless it is to be kept."""
        self.drawing = drawing
        if not (self.is_mounted and self._has_parts):
            return
        self.clear()
        self.set_y_formatter(_Formatter(self._height_ticks))
        if not keep_window:
            self.set_xlimits(*horizontal_limits(drawing))
            self.set_ylimits(*vertical_limits(drawing))
        for number, series in enumerate(drawing.series):
            self.plot(
                series.points.indices,
                series.points.heights,
                line_style=self.colour(number),
                hires_mode=HiResMode.BRAILLE,
            )
        for vertical in drawing.verticals:
            self.add_v_line(vertical.place)
        if self.cursor is not None and not drawing.is_empty:
            self.cursor = min(self.cursor, drawing.last_index)

    def colour(self, number: int) -> str:
        """Colour of the series with this number, as a style."""
        variables = getattr(self.app, "theme_variables", {})
        wanted = variables.get(f"series-{number % len(GLYPHS) + 1}", "")
        return wanted if wanted.startswith("#") else _FALLBACK[number % len(_FALLBACK)]

    def notify_style_update(self) -> None:
        """Take the colours of the new theme."""
        super().notify_style_update()
        if self.is_mounted:
            self.show_drawing(self.drawing, keep_window=True)

    def _style(self, component: str) -> str:
        return str(self.get_component_rich_style(component))

    def _index_ticks(self, low: float, high: float) -> list[Tick]:
        if self.drawing.is_empty:
            return []
        return index_ticks(low, min(high, self.drawing.last_index), most=max(2, self._scale_rectangle.width // 5))

    def _height_ticks(self, low: float, high: float) -> list[Tick]:
        if self.drawing.is_empty:
            return []
        most = max(2, self._scale_rectangle.height // 2)
        ticks = logarithmic_ticks if self.drawing.is_logarithmic else linear_ticks
        return ticks(low, high, most=min(8, most))

    def _render_plot(self) -> None:
        """Draw curves and frame as the base does, then glyphs, levels, the cursor and the note over them."""
        canvas = self._canvas()
        if canvas is None:
            for drawn in self.query(Canvas):
                drawn.reset()
            return
        super()._render_plot()
        self._lighten_frame(canvas)
        for level in self.drawing.levels:
            self._draw_level(canvas, level.height)
        self._draw_cursor(canvas)
        for number, series in enumerate(self.drawing.series):
            self._draw_glyphs(canvas, number, list(zip(*series.points, strict=True)))
        if self.drawing.is_empty and self.drawing.note:
            self._draw_note(canvas)

    def _canvas(self) -> Canvas | None:
        """The canvas, when there is room to draw on it."""
        for canvas in self.query("#plot").results(Canvas):
            if canvas._canvas_size and all(
                side >= least for side, least in zip(canvas._canvas_size, _LEAST_CANVAS, strict=True)
            ):
                return canvas
        return None

    def _inside(self, x: int, y: int) -> bool:
        return self._scale_rectangle.contains(x, y)

    def _lighten_frame(self, canvas: Canvas) -> None:
        """Draw the frame and its ticks with thin lines: the curves are what should be seen."""
        width, height = self._scale_rectangle.width + 2, self._scale_rectangle.height + 2
        edge = [(x, y) for x in range(width) for y in (0, height - 1)]
        edge += [(x, y) for y in range(1, height - 1) for x in (0, width - 1)]
        for x, y in edge:
            character, style = canvas.get_pixel(x, y)
            if character in _HEAVY:
                canvas.set_pixel(x, y, character.translate(_THIN), style)

    def _draw_glyphs(self, canvas: Canvas, number: int, points: list[tuple[int, float]]) -> None:
        """Put a glyph on points, as many as do not crowd; the last point always has one."""
        glyph, style = GLYPHS[number % len(GLYPHS)], self.colour(number)
        free_from = -1
        for place, (index, height) in enumerate(points):
            x, y = self.get_pixel_from_coordinate(index, height)
            is_last = place == len(points) - 1
            if not self._inside(x, y) or (x < free_from and not is_last and index != self.cursor):
                continue
            free_from = x + _CELLS_BETWEEN_GLYPHS
            canvas.set_pixel(x, y, glyph, style if index != self.cursor else f"bold reverse {style}")

    def _draw_level(self, canvas: Canvas, height: float) -> None:
        box = self._scale_rectangle
        y = self.get_pixel_from_coordinate(box.x, height)[1]
        if not self._inside(box.x, y):
            return
        for x in range(box.x, box.right):
            if canvas.get_pixel(x, y)[0] == " ":
                canvas.set_pixel(x, y, "╌", self._style("plot--vertical"))

    def _draw_cursor(self, canvas: Canvas) -> None:
        if self.cursor is None or self.drawing.is_empty:
            return
        box = self._scale_rectangle
        x = self.get_pixel_from_coordinate(self.cursor, 0.0)[0]
        for y in range(box.y, box.bottom):
            if self._inside(x, y) and canvas.get_pixel(x, y)[0] in " ╌┊":
                canvas.set_pixel(x, y, "│", self._style("plot--cursor"))

    def _draw_note(self, canvas: Canvas) -> None:
        box = self._scale_rectangle
        lines = Content(safe_text(self.drawing.note)).wrap(max(1, box.width - 2))
        top = box.y + max(0, (box.height - len(lines)) // 2)
        style = self._style("plot--note")
        for row, line in enumerate(lines[: box.height]):
            left = box.x + max(0, (box.width - line.cell_length) // 2)
            for column, character in enumerate(line.plain):
                canvas.set_pixel(left + column, top + row, character, style)

    def _render_v_line_plot(self, vline: VLinePlot) -> None:
        """Draw a dotted line where nothing else is, and only inside the window."""
        canvas = self._canvas()
        if canvas is None:
            return
        box = self._scale_rectangle
        x = self.get_pixel_from_coordinate(vline.x, 0.0)[0]
        style = self._style("plot--vertical")
        for y in range(box.y, box.bottom):
            if self._inside(x, y) and canvas.get_pixel(x, y)[0] == " ":
                canvas.set_pixel(x, y, "┊", style)

    def _render_x_label(self) -> None:
        """Leave it to the legend."""

    def _render_y_label(self) -> None:
        """Leave it to the legend."""

    def _zoom(self, center_x: float, center_y: float, factor: float, zoom_x: bool, zoom_y: bool) -> None:
        """Zoom, but neither into nothing nor out of sight."""
        left, right = horizontal_limits(self.drawing)
        scale = (self._x_max - self._x_min) / (1 + factor) / (right - left)
        if not zoom_x or _CLOSEST <= scale <= _WIDEST:
            super()._zoom(center_x, center_y, factor, zoom_x, zoom_y)

    def _zoom_with_mouse(self, event: MouseScrollDown | MouseScrollUp, factor: float) -> None:
        """Zoom round the pointer, in when the wheel turns up; over an axis only that axis."""
        canvas = self._canvas()
        if canvas is not None:
            offset = event.screen_offset - canvas.region.offset
            x, y = self.get_coordinate_from_pixel(offset.x, offset.y)
            self._zoom(x, y, -factor, offset.x >= 0, offset.y < canvas.size.height)

    # The cursor.

    def watch_cursor(self) -> None:
        """Redraw, and tell."""
        self._rerender()
        self.post_message(self.CursorMoved(self, self.cursor))

    def action_cursor(self, step: int) -> None:
        """Move the cursor by `step`; the first press puts it on k = 1."""
        if not self.drawing.is_empty:
            wanted = 1 if self.cursor is None else self.cursor + step
            self.cursor = min(max(1, wanted), self.drawing.last_index)
            self._follow()

    def action_cursor_to(self, end: str) -> None:
        """Move the cursor to the first or the last k."""
        if not self.drawing.is_empty:
            self.cursor = 1 if end == "first" else self.drawing.last_index
            self._follow()

    def _follow(self) -> None:
        """Move the window so that the cursor is inside."""
        assert self.cursor is not None
        span = self._x_max - self._x_min
        if self.cursor < self._x_min:
            self._x_min, self._x_max = self.cursor - span / 10, self.cursor + span * 9 / 10
        elif self.cursor > self._x_max:
            self._x_min, self._x_max = self.cursor - span * 9 / 10, self.cursor + span / 10
        else:
            return
        self._auto_x_min = self._auto_x_max = False
        self._rerender()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Put the cursor on the k nearest to the pointer."""
        canvas = self._canvas()
        if event.button or canvas is None or self.drawing.is_empty:
            return
        offset = event.screen_offset - canvas.region.offset
        if self._inside(offset.x, offset.y):
            index = round(self.get_coordinate_from_pixel(offset.x, offset.y)[0])
            self.cursor = min(max(1, index), self.drawing.last_index)
