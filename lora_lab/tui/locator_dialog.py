"""Asks for one of several places, or for another one that is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.content import Content
from textual.widgets import Input, OptionList, Static

from lora_lab.errors import LoraLabError
from lora_lab.safetext import safe_text
from lora_lab.sources.locators import parse
from lora_lab.tui.confirm import ask
from lora_lab.tui.dialog import LabDialog

if TYPE_CHECKING:
    from collections.abc import Sequence


class LocatorDialog(LabDialog["str | None"]):
    """Closes with a locator, or None; asks before anything is fetched.

    Its box holds a list, a line to type in where more than the list can be taken, and ``dialog--reason``.

    Parameters
    ----------
    locators : of the lines of the list, whose ids are their places
    """

    FETCHING: ClassVar[str] = "It would be fetched from the Hub."
    DEFAULT_CSS = """
    LocatorDialog .dialog { width: 76; height: auto; }
    LocatorDialog OptionList {
        height: auto; max-height: 12; border: none; background: $surface; padding: 0;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    LocatorDialog OptionList:focus { border: none; }
    LocatorDialog Input { border: none; height: 1; padding: 0 1; background: $panel; margin-top: 1; }
    LocatorDialog Input:focus { border: none; }
    LocatorDialog .dialog--reason { height: auto; }
    """

    def __init__(self, locators: Sequence[str]) -> None:
        super().__init__()
        self._locators = tuple(locators)

    def on_mount(self) -> None:
        """Start where enter is most likely right."""
        options = self.query_one(OptionList)
        options.display = bool(self._locators)
        if self._locators:
            options.highlighted = 0
            options.focus()
        else:
            self.query_one(Input).focus()

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        if event.option_id is not None:
            self.dismiss(self._locators[int(event.option_id)])

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        typed = event.value.strip()
        if not typed:
            self.explain("Type a path, or esc cancels.")
            return
        try:
            place = parse(typed)
        except LoraLabError as error:
            self.explain(str(error))
            return
        if place.is_local:
            self.take_path(place.path)
        else:
            ask(self.app, f"{typed} is not on this machine. {self.FETCHING}", "fetch it", lambda: self.dismiss(typed))

    def take_path(self, path: str) -> None:
        """Close with what was typed and is on this machine."""
        self.dismiss(path)

    def explain(self, sentence: str, *, is_error: bool = True) -> None:
        """Say why what was typed is not taken, or not yet."""
        tone = "$text-error" if is_error else "$foreground 70%"
        self.query_one(".dialog--reason", Static).update(Content.styled(safe_text(sentence), tone))
