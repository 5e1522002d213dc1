"""The Spectrum tab: legend, plot, measures, and the values under the cursor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.background import settle_memory
from lora_lab.tui.leaving import Leaving
from lora_lab.tui.plots.drawings import Spectrum, readout
from lora_lab.tui.plots.series import GLYPHS, Drawing, View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual.app import ComposeResult

    from lora_lab.tui.plots.spectrum import SpectrumPlot

#: Measures under the plot: column, key inside it, label, label where room is short.
_MEASURES: Final = (
    ("frobenius_norm", "", "‖ΔW‖F", "‖ΔW‖F"),
    ("spectral_norm", "", "σ₁", "σ₁"),
    ("stable_rank", "", "stable rank", "stable"),
    ("effective_rank", "", "effective", "eff"),
    ("participation_ratio", "", "participation", "part"),
    ("numerical_rank", "", "numerical", "num"),
    ("energy_rank", "0.9", "r@90", "r@90"),
    ("energy_rank", "0.99", "r@99", "r@99"),
)
_WIDE: Final = 66  # cells from which on labels are words
_NAME_WIDTH: Final = 22
_GAP: Final = 2
_SHORT: Final = 14  # lines below which the measures are left to the table


class SpectrumView(Leaving, Vertical):
    """Shows the spectra of one module; the first is the adapter's own, the others lie over it."""

    DEFAULT_CSS = """
    SpectrumView { height: 1fr; width: 1fr; }
    SpectrumView > #spectrum-legend { height: auto; max-height: 2; width: 1fr; padding: 0 1; }
    SpectrumView > #spectrum-holder { height: 1fr; width: 1fr; }
    SpectrumView > #spectrum-measures { height: auto; max-height: 2; width: 1fr; padding: 0 1; }
    SpectrumView > #spectrum-readout {
        height: auto; max-height: 3; width: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis;
    }
    SpectrumView.-short > #spectrum-measures { display: none; }
    """

    class PlotReady(Message):
        """The plot has been mounted."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.view = View()
        self.spectra: tuple[Spectrum, ...] = ()
        self.row: Mapping[str, Any] | None = None
        self._is_asked = False

    def compose(self) -> ComposeResult:
        """The plot itself comes after the first paint."""
        yield Static("", id="spectrum-legend")
        yield Container(id="spectrum-holder")
        yield Static("", id="spectrum-measures")
        yield Static("", id="spectrum-readout")

    @property
    def plot(self) -> SpectrumPlot | None:
        """The plot, once it is there."""
        if not self._is_asked:
            return None
        from lora_lab.tui.plots.spectrum import SpectrumPlot

        return next(iter(self.query(SpectrumPlot)), None)

    async def mount_plot(self) -> None:
        """Import the plotting library and put the plot in place."""
        if self._is_asked:
            return
        self._is_asked = True
        from lora_lab.tui.plots.spectrum import SpectrumPlot

        plot = SpectrumPlot(id="spectrum-plot")
        await self.query_one("#spectrum-holder").mount(plot)
        self.show(self.spectra, self.row, self.view)
        settle_memory()
        self.post_message(self.PlotReady())

    def show(self, spectra: Sequence[Spectrum], row: Mapping[str, Any] | None, view: View) -> None:
        """Show these spectra, and the measures of the first one's row."""
        self.spectra, self.row, self.view = tuple(spectra), row, view
        self._update_measures()
        plot = self.plot
        if plot is not None and plot.is_mounted:
            plot.show_spectra(self.spectra, view)
            self._update_legend()
        self._update_readout()

    def _update_legend(self) -> None:
        plot = self.plot
        if plot is not None:
            put(self.query_one("#spectrum-legend", Static), legend(plot.drawing, self.size.width - 2))

    def on_resize(self) -> None:
        """Let legend and measures flow in the new width; where there is little height, the plot has it."""
        self.set_class(self.size.height < _SHORT, "-short")
        self._update_measures()
        self._update_legend()

    def _update_measures(self) -> None:
        width = max(20, self.size.width - 2)
        shown = flowed(measure_parts(self.row, is_wide=width >= _WIDE), width)
        put(self.query_one("#spectrum-measures", Static), shown)

    def _update_readout(self) -> None:
        put(self.query_one("#spectrum-readout", Static), Content("\n").join(self.readout_lines()))

    def readout_lines(self) -> list[Content]:
        """One line for each spectrum: its glyph and name when there are several, and the values at the cursor."""
        plot = self.plot
        index = plot.cursor if plot is not None else None
        if not self.spectra:
            return [Content("")]
        if len(self.spectra) == 1:
            if self.spectra[0].values is None and plot is not None:
                return [Content("")]  # the plot itself says why
            return [Content.styled(safe_text(readout(self.spectra[0], index)), "$text-accent")]
        lines = []
        for number, spectrum in enumerate(self.spectra):
            said = safe_text(readout(spectrum, index, is_short=self.size.width < _WIDE))
            name = safe_text(spectrum.name, limit=_NAME_WIDTH)
            glyph = Content.styled(GLYPHS[number % len(GLYPHS)], f"$series-{number % len(GLYPHS) + 1}")
            width = max(len(safe_text(one.name, limit=_NAME_WIDTH)) for one in self.spectra)
            tone = "$text-accent" if number == 0 else "$foreground 80%"
            # The values come first: a long name gives way to them.
            lines.append(Content.assemble(glyph, " ", Content.styled(said, tone), "  ", f"{name:<{width}}"))
        return lines

    def on_curve_plot_cursor_moved(self) -> None:
        """Say what stands under the cursor."""
        self._update_readout()


def put(place: Static, shown: Content) -> None:
    """Show other text; the screen is laid out anew only when it has another number of lines."""
    before = place.content
    lines = before.plain.count("\n") if isinstance(before, Content) else -1
    place.update(shown, layout=lines != shown.plain.count("\n"))


def legend(drawing: Drawing, width: int) -> Content:
    """Name the axis, every series by glyph and colour, and the lines across, in as many lines as the width needs."""
    parts: list[Content] = [Content.styled(drawing.y_title, "$foreground 75%")] if drawing.y_title else []
    if len(drawing.series) > 1 or (drawing.series and drawing.levels):
        for number, series in enumerate(drawing.series):
            glyph = Content.styled(GLYPHS[number % len(GLYPHS)], f"$series-{number % len(GLYPHS) + 1}")
            parts.append(Content.assemble(glyph, f" {safe_text(series.name, limit=_NAME_WIDTH)}"))
    parts.extend(
        Content.assemble(Content.styled("┊", "$accent"), f" {safe_text(vertical.name)}={vertical.place:g}")
        for vertical in drawing.verticals
    )
    parts.extend(
        Content.assemble(Content.styled("╌", "$accent"), f" {safe_text(level.name)}") for level in drawing.levels
    )
    if drawing.note and not drawing.is_empty:
        parts.append(Content.styled(safe_text(drawing.note), "$text-warning"))
    return flowed(parts, max(20, width))


def measure_parts(row: Mapping[str, Any] | None, *, is_wide: bool) -> list[Content]:
    """The measures of one module, each a label and a number that stay together."""
    parts = []
    for column, key, *labels in _MEASURES:
        label = labels[0 if is_wide else 1]
        value = None if row is None else row.get(column)
        if key and value is not None:
            value = value.get(key)
        known = str(value) if isinstance(value, int) else text.number(value)
        said = text.PENDING if row is None else known
        parts.append(Content.assemble(Content.styled(f"{label} ", "$foreground 65%"), Content.styled(said, "bold")))
    return parts


def flowed(parts: Sequence[Content], width: int) -> Content:
    """Put parts on lines of at most `width` cells, never breaking inside one."""
    lines: list[Content] = []
    for part in parts:
        if lines and lines[-1].cell_length + _GAP + part.cell_length <= width:
            lines[-1] = Content.assemble(lines[-1], " " * _GAP, part)
        else:
            lines.append(part)
    return Content("\n").join(lines)
