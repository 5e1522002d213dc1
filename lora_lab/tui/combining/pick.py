"""Asks for one of several adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static
from textual.widgets.option_list import Option

from lora_lab.domain.library import EntryKind
from lora_lab.domain.modules import natural_key
from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.locator_dialog import LocatorDialog
from lora_lab.tui.widgets.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.app import ComposeResult

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp

_MOST_SHOWN = 400


class Choice(NamedTuple):
    """An adapter that can be chosen."""

    locator: str
    name: str
    about: str = ""


def adapters_of(lab: LoraLabApp, given: Sequence[str] = ()) -> list[Choice]:
    """Adapters of the library that can be read, those that are not `given` first."""
    entries = [entry for entry in entries_of(lab) if entry.kind == EntryKind.ADAPTER and entry.error is None]
    entries.sort(key=lambda entry: (entry.path in given, natural_key(entry.name)))
    return [_choice(entry, "is in" if entry.path in given else "") for entry in entries[:_MOST_SHOWN]]


def choices_of(lab: LoraLabApp, locators: Sequence[str]) -> list[Choice]:
    """These, each once, with what the library knows of them."""
    known = {entry.path: entry for entry in entries_of(lab)}
    return [_choice(known[one]) if one in known else Choice(one, one) for one in dict.fromkeys(locators)]


def entries_of(lab: LoraLabApp) -> list[LibraryEntry]:
    """All that the library lists."""
    from lora_lab.tui.library.screen import LibraryScreen

    home = lab.library
    return [row.entry for row in home.library.rows.values()] if isinstance(home, LibraryScreen) else []


def _choice(entry: LibraryEntry, note: str = "") -> Choice:
    ranks = text.span(entry.rank_min, entry.rank_max)
    return Choice(entry.path, entry.name, "  ".join(filter(None, (ranks and f"r {ranks}", entry.base_model, note))))


class PickList(Options):
    """Adapters."""

    HELP_TITLE = "Adapters"


class Pick(LocatorDialog):
    """Closes with a locator, or None.

    Parameters
    ----------
    title : what it is chosen for
    choices : to be listed
    is_typed : whether another one may be typed
    """

    HELP_TITLE = "Choose an adapter"

    def __init__(self, title: str, choices: Sequence[Choice], *, is_typed: bool = False) -> None:
        super().__init__([choice.locator for choice in choices])
        self._title = title
        self._choices = tuple(choices)
        self._is_typed = is_typed

    def compose_dialog(self) -> ComposeResult:
        """What is here, and a line for anything else."""
        box = Vertical(classes="dialog")
        box.border_title = Content(safe_text(self._title))
        more = "tab types another · " if self._is_typed and self._choices else ""
        box.border_subtitle = Content(f"⏎ takes it · {more}esc cancels")
        with box:
            yield PickList(*(_option(number, choice) for number, choice in enumerate(self._choices)))
            if self._is_typed:
                yield Input(placeholder="a folder, a file, or org/name on the Hub")
            yield Static("", classes="dialog--reason")


def _option(number: int, choice: Choice) -> Option:
    about = Content.styled(safe_text(choice.about), "$foreground 65%")
    return Option(Content.assemble(safe_text(choice.name, limit=40), "  ", about), id=str(number))
