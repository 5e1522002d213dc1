"""Whatever a row of any Report holds that can be drawn: its curves, or its matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.tui.plots.curves import CurvePlot
from lora_lab.tui.plots.drawings import row_drawing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.report import Column


class RowPlot(CurvePlot):
    """Draws the curves of one row, and its marker columns as levels across them."""

    HELP_TITLE = "Curves"

    def show_row(self, columns: Sequence[Column], row: Mapping[str, Any]) -> None:
        """Draw `row` as `columns` declare it."""
        self.show_drawing(row_drawing(columns, row))
