"""Jump mode: a letter on every pane; typing it goes there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from textual.content import Content
from textual.geometry import Offset
from textual.widgets import Static

from lora_lab.tui.dialog import LabDialog

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from textual import events
    from textual.app import ComposeResult
    from textual.widget import Widget

#: Home row first.
LETTERS: Final = "asdfghjklqwertyuiopzxcvbnm"


def letters_for(targets: Sequence[Widget]) -> dict[str, Widget]:
    """Give each target a letter, in reading order of where the targets stand."""
    placed = sorted(targets, key=lambda widget: (widget.region.y, widget.region.x))
    return dict(zip(LETTERS, placed, strict=False))


class JumpScreen(LabDialog["Widget | None"]):
    """Draws the letters over the panes as they stand.

    Parameters
    ----------
    targets : letter to widget
    """

    DEFAULT_CSS = """
    JumpScreen { align: left top; background: $background 40%; }
    JumpScreen .jump--letter {
        position: absolute;
        width: 3;
        height: 1;
        background: $accent;
        color: $background;
        text-style: bold;
        text-align: center;
    }
    JumpScreen .jump--hint { dock: bottom; height: 1; background: $panel; color: $foreground; padding: 0 1; }
    """

    def __init__(self, targets: Mapping[str, Widget]) -> None:
        super().__init__()
        self.targets = targets

    def compose_dialog(self) -> ComposeResult:
        """One label for each target, at its upper left corner."""
        for letter, widget in self.targets.items():
            label = Static(Content(letter), classes="jump--letter")
            region = _frame(widget).region
            label.styles.offset = Offset(region.x, region.y)
            yield label
        yield Static(Content("Type the letter of a pane · esc stays here"), classes="jump--hint")

    def on_key(self, event: events.Key) -> None:
        """Go to the pane of the letter; any other key stays."""
        if event.key in self.targets:
            event.stop()
            self.dismiss(self.targets[event.key])


def _frame(widget: Widget) -> Widget:
    """The pane that frames `widget`, when there is one."""
    from lora_lab.tui.widgets.pane import Pane

    return next((node for node in widget.ancestors if isinstance(node, Pane)), widget)
