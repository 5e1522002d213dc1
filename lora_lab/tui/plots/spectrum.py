"""The plot of singular values: one adapter, or several over each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.tui.plots.curves import CurvePlot
from lora_lab.tui.plots.drawings import Spectrum, spectrum_drawing
from lora_lab.tui.plots.series import View

if TYPE_CHECKING:
    from collections.abc import Sequence


class SpectrumPlot(CurvePlot):
    """Draws σₖ over k: logarithmic or linear, divided by σ₁, or as the energy that the first k directions hold."""

    HELP_TITLE = "Spectrum"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.spectra: tuple[Spectrum, ...] = ()
        self.view = View()

    def show_spectra(self, spectra: Sequence[Spectrum], view: View) -> None:
        """Draw `spectra` as `view` says; the window stays while only values arrive or the cursor moves."""
        drawing = spectrum_drawing(spectra, view)
        keep = view == self.view and bool(self.spectra) and drawing.last_index == self.drawing.last_index
        keep = keep and tuple(spectra)[:1] == self.spectra[:1]
        self.spectra, self.view = tuple(spectra), view
        self.show_drawing(drawing, keep_window=keep and self.is_zoomed)

    @property
    def is_zoomed(self) -> bool:
        """Whether the window is no longer the whole curve."""
        window = (self._x_min, self._x_max, self._y_min, self._y_max)
        return window != (self._user_x_min, self._user_x_max, self._user_y_min, self._user_y_max)
