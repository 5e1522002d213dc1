"""Chooses a theme while showing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from lora_lab.tui.dialog import LabDialog
from lora_lab.tui.widgets.options import Options

if TYPE_CHECKING:
    from textual.app import ComposeResult


class ThemeList(Options):
    """Names of themes."""

    HELP_TITLE = "Themes"


class ThemePicker(LabDialog["str | None"]):
    """Closes with the chosen name; esc goes back to the theme there was.

    Parameters
    ----------
    names : in the order to show
    current : where the cursor starts
    """

    DEFAULT_CSS = """
    ThemePicker { align: right middle; background: transparent; }
    ThemePicker .dialog { width: 30; height: 80%; }
    """

    def __init__(self, names: list[str], current: str) -> None:
        super().__init__()
        self._names = names
        self._current = current

    def compose_dialog(self) -> ComposeResult:
        """One list."""
        options = ThemeList(*(Option(Content(name), id=name) for name in self._names), classes="dialog")
        options.border_title = Content("Theme")
        options.border_subtitle = Content("⏎ keep · esc undo")
        yield options

    def on_mount(self) -> None:
        """Start at the current theme."""
        if self._current in self._names:
            self.query_one(OptionList).highlighted = self._names.index(self._current)

    @on(OptionList.OptionHighlighted)
    def _preview(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_id:
            self.app.theme = event.option_id

    @on(OptionList.OptionSelected)
    def _keep(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_close(self) -> None:
        """Undo the preview."""
        self.app.theme = self._current
        self.dismiss(None)
