"""A titled frame that shows where the focus is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.containers import Vertical, VerticalScroll
from textual.content import Content

from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from textual.widget import Widget


class Pane(Vertical):
    """A frame round one or more widgets; its border is coloured while the focus is inside.

    Parameters
    ----------
    title : shown in the upper border, as plain text
    """

    ALLOW_MAXIMIZE = True
    DEFAULT_CSS = """
    Pane {
        border: round $foreground 22%;
        border-title-color: $foreground 80%;
        border-subtitle-color: $foreground 65%;
        background: $background;
        height: 1fr;
        width: 1fr;
        &:focus-within {
            border: round $primary;
            border-title-color: $text-primary;
            border-title-style: bold;
        }
        &.-maximized { width: 100%; height: 1fr; }
    }
    """

    def __init__(self, *children: Widget, title: str = "", **options: Any) -> None:
        super().__init__(*children, **options)
        self.entitle(title)

    def entitle(self, title: str, note: str | None = None) -> None:
        """Set the title and, when given, the note in the lower border; neither is read as markup."""
        self.border_title = _plain(title)
        if note is not None:
            self.border_subtitle = _plain(note)


class Overflow(VerticalScroll, can_focus=False, inherit_bindings=False):
    """What is longer than its pane; whatever in it has the focus is brought into sight."""


def _plain(text: str) -> Content | None:
    shown = safe_text(text)
    return Content(shown) if shown else None
