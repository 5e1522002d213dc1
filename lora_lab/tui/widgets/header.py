"""The line at the top: where one is on the left, what is being computed on the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from textual.app import RenderResult


_LEAST_CRUMB: Final = 16


class HeaderBar(Widget):
    """One line; the left part gives way so that the right part is always whole."""

    DEFAULT_CSS = """
    HeaderBar {
        height: 1;
        dock: top;
        background: $panel;
        color: $foreground;
        & > .header--brand { color: $text-accent; text-style: bold; }
        & > .header--note { color: $foreground 70%; }
        & > .header--status { color: $text-primary; text-style: bold; }
    }
    """
    COMPONENT_CLASSES = {"header--brand", "header--note", "header--status"}  # noqa: RUF012 - Textual's own declaration

    crumb: reactive[str] = reactive("")  # where one is
    note: reactive[str] = reactive("")  # about it, dim
    status: reactive[str] = reactive("")  # jobs

    def render(self) -> RenderResult:
        """Lay the parts out in the width there is."""
        status = Content(f" {self.status} " if self.status else "").stylize(
            self.get_visual_style("header--status", partial=True)
        )
        brand = Content(" lora-lab").stylize(self.get_visual_style("header--brand", partial=True))
        note = Content(f"  {self.note}" if self.note else "").stylize(
            self.get_visual_style("header--note", partial=True)
        )
        room = max(0, self.size.width - status.cell_length)
        # A long path loses its middle before the note loses its end.
        left_over = room - brand.cell_length - note.cell_length - 2
        crumb = safe_text(self.crumb, limit=max(_LEAST_CRUMB, left_over))
        left = Content.assemble(brand, f"  {crumb}" if crumb else "", note)
        return left.truncate(room, ellipsis=True, pad=True) + status
