"""The card as it will be sent, word for word."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.content import Content
from textual.widgets import Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.dialog import LabDialog
from lora_lab.tui.hub.pages import Pages

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.binding import BindingType


class CardDialog(LabDialog[None]):
    """Shows the card; nothing in it is obeyed.

    Parameters
    ----------
    card : Markdown
    """

    HELP_TITLE = "Card"
    DEFAULT_CSS = """
    CardDialog .dialog { width: 100; height: 90%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("q,f2", "close", "Close", "Close the card", id="card.close", show=True),
    ]

    def __init__(self, card: str) -> None:
        super().__init__()
        self._card = card

    def compose_dialog(self) -> ComposeResult:
        """One long text."""
        pages = Pages(Static(Content("\n".join(map(safe_text, self._card.splitlines())))), classes="dialog")
        pages.border_title = Content("README.md")
        pages.border_subtitle = Content("j k scroll · esc closes")
        yield pages

    def on_mount(self) -> None:
        """Scroll at once."""
        super().on_mount()
        self.query_one(Pages).focus()
