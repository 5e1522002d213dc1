"""A long text that scrolls by the keys of every other pane."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.containers import VerticalScroll
from textual.widgets import Checkbox

from lora_lab.tui import bindings

if TYPE_CHECKING:
    from textual.binding import BindingType


class Pages(VerticalScroll, inherit_bindings=False):
    """What is in it, as much as there is room for."""

    HELP_TITLE = "Text"
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.SCROLL,
        bindings.key("up", "scroll_up", "Up", "Scroll up", id="scroll.up.arrow"),
        bindings.key("down", "scroll_down", "Down", "Scroll down", id="scroll.down.arrow"),
        bindings.key("pageup", "page_up", "Page up", "Scroll up by a page", id="scroll.page_up"),
        bindings.key("pagedown", "page_down", "Page down", "Scroll down by a page", id="scroll.page_down"),
    ]


class Tick(Checkbox, inherit_bindings=False):
    """A switch whose state is a sign, not a colour alone."""

    HELP_TITLE = "Switch"
    BUTTON_INNER = " "
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("enter,space", "toggle_button", "Switch", "Switch it on or off", id="push.switch", show=True),
    ]
    DEFAULT_CSS = """
    Tick { border: none; height: 1; padding: 0; margin-right: 2; background: $background; width: auto; }
    Tick:focus { border: none; }
    """

    def watch_value(self) -> None:
        """Draw the sign."""
        self.BUTTON_INNER = "x" if self.value else " "
        super().watch_value()
