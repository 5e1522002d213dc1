"""The frame of every dialogue: dims what is behind, closes on esc, and gives way to a terminal that is too small."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from textual.screen import ModalScreen, ScreenResultType

from lora_lab.tui import bindings
from lora_lab.tui.leaving import AbstractMeta, Leaving
from lora_lab.tui.widgets.too_small import TooSmall

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType


class LabDialog(Leaving, ModalScreen[ScreenResultType], metaclass=AbstractMeta, inherit_bindings=False):
    """A modal screen; :meth:`compose_dialog` gives what is in its box."""

    DEFAULT_CSS = """
    LabDialog { align: center middle; background: $background 55%; }
    LabDialog .dialog {
        background: $surface;
        border: round $primary;
        border-title-color: $text-primary;
        border-title-style: bold;
        border-subtitle-color: $foreground 65%;
        padding: 0 1;
        max-width: 100%;
        max-height: 100%;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.FOCUS,
        bindings.key("escape", "close", "Close", "Close without doing anything", id="dialog.close", show=True),
    ]

    def compose(self) -> ComposeResult:
        """Put the box and the cover in place."""
        yield from self.compose_dialog()
        yield TooSmall()

    @abstractmethod
    def compose_dialog(self) -> ComposeResult:
        """Yield the box, a container of class ``dialog``."""

    def on_mount(self) -> None:
        """Look at the size once before anything is shown."""
        self.query_one(TooSmall).fit(self.app.size)

    def on_resize(self, event: events.Resize) -> None:
        """Cover the dialogue when there is no room for it."""
        self.query_one(TooSmall).fit(event.size)

    def action_close(self) -> None:
        """Close without a result."""
        self.dismiss(None)
