"""A field for paths: one that is too long shows both its ends while nobody types in it."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip
from textual.widgets import Input

from lora_lab.safetext import safe_text


class PathInput(Input):
    """An input whose value loses its middle, not its end, where the width does not hold it."""

    def render_line(self, y: int) -> Strip:
        """Render the value, or its two ends."""
        width = self.scrollable_content_region.width
        if y or self.has_focus or cell_len(self.value) <= width:
            return super().render_line(y)
        shown = safe_text(self.value, limit=width)
        return Strip([Segment(shown)]).adjust_cell_length(width + 1).apply_style(self.rich_style)
