"""Asks which base model an analysis is to be run against, and remembers it for adapters that name the same one."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from textual import on
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static
from textual.widgets.option_list import Option

from lora_lab.domain.library import EntryKind
from lora_lab.errors import LoraLabError
from lora_lab.safetext import safe_text
from lora_lab.sources.locators import parse
from lora_lab.tui import text
from lora_lab.tui.background import work_beside
from lora_lab.tui.locator_dialog import LocatorDialog
from lora_lab.tui.widgets.options import Options

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence

    from textual.app import ComposeResult

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.tui.app import LoraLabApp

_REMEMBERED = "bases"
_MOST_SHOWN = 60


class Choice(NamedTuple):
    """A base that can be chosen."""

    locator: str
    about: str
    is_named: bool = False  # by the adapter


class BaseMemory:
    """Which base goes with adapters that name a model: the one chosen last, in this run or in one before.

    Parameters
    ----------
    lab : the application; its ``base`` is the one given on the command line, until another one is chosen
    """

    def __init__(self, lab: LoraLabApp) -> None:
        self._lab = lab
        self._chosen: dict[str, str] = {}

    def base_for(self, base_model: str | None) -> str | None:
        """Locator of the base for adapters that name `base_model`; None when it has to be chosen."""
        given = self._lab.base
        name = base_model or ""
        if name in self._chosen:
            return self._chosen[name]
        if given is not None and given not in self._chosen.values():
            return given
        remembered = self._remembered().get(name) if name else None
        return remembered if isinstance(remembered, str) else None

    def _remembered(self) -> dict[str, object]:
        nothing: dict[str, object] = {}
        return self._lab.state.get(_REMEMBERED, nothing)

    def choose(self, base_model: str | None, locator: str) -> None:
        """Take `locator` for adapters that name `base_model`; one on this machine is remembered beyond this run."""
        self._chosen[base_model or ""] = self._lab.base = locator
        if base_model and parse(locator).is_local:
            place = os.path.abspath(locator)  # noqa: PTH100 - as typed, not where a link leads
            self._lab.state.set(_REMEMBERED, {**self._remembered(), base_model: place})


def choices_of(entries: Iterable[LibraryEntry], base_model: str | None, adapter_path: str = "") -> list[Choice]:
    """Bases to offer: what the adapter names first, if it is here, then the others of the library."""
    bases = [entry for entry in entries if entry.kind == EntryKind.BASE and entry.error is None]
    wanted = _last_part(base_model or "")
    named = {entry.path for entry in bases if wanted and _last_part(entry.path) == wanted}
    found = [Choice(entry.path, _about(entry), entry.path in named) for entry in bases]
    here = _path_of(base_model, adapter_path)
    if here is not None and not any(_is_same(here, choice.locator) for choice in found):
        found.append(Choice(here, "", is_named=True))
    return sorted(found, key=lambda choice: not choice.is_named)


def _about(entry: LibraryEntry) -> str:
    return f"{text.count(entry.parameters)} parameters  {text.size(entry.size_bytes)}  {entry.dtype or ''}".rstrip()


def _last_part(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/").rstrip("/")).name.casefold()


def _path_of(base_model: str | None, adapter_path: str) -> str | None:
    """The path that an adapter gives as its base, where there is something: as it stands, or beside the adapter."""
    if not base_model:
        return None
    places = [Path(base_model)]
    if adapter_path:
        places.append(Path(adapter_path).parent / base_model)
    for place in places:
        try:
            if place.is_dir() or place.is_file():
                return str(place)
        except (OSError, ValueError):  # a name that no file system takes
            continue
    return None


def _is_same(one: str, other: str) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)  # noqa: PTH100 - as typed, not where a link leads


def _is_of_the_hub(base_model: str | None) -> bool:
    """Whether what an adapter names can be asked for there."""
    try:
        return base_model is not None and not parse(base_model).is_local
    except LoraLabError:
        return False


class BaseList(Options):
    """Bases that are here."""

    HELP_TITLE = "Bases"


class BaseDialog(LocatorDialog):
    """Closes with a locator, or None.

    Parameters
    ----------
    who : what needs the base, for the title
    base_model : what the adapter says it was trained on
    choices : as :func:`choices_of` gives them
    current : the base that is used now
    open_base : reads the headers of what was typed; LoraLabError when there is no model
    """

    FETCHING = "Its weights would be fetched from the Hub when they are needed."
    DEFAULT_CSS = """
    BaseDialog OptionList { max-height: 10; }
    BaseDialog #base-said { height: auto; margin-bottom: 1; }
    """
    HELP_TITLE = "Base model"

    class Opened(Message):
        """What was typed has been looked at."""

        def __init__(self, locator: str, error: str) -> None:
            super().__init__()
            self.locator = locator
            self.error = error

    def __init__(
        self,
        who: str,
        base_model: str | None,
        choices: Sequence[Choice],
        *,
        current: str | None,
        open_base: Callable[[str], object],
    ) -> None:
        self._choices = tuple(choices)[:_MOST_SHOWN]
        super().__init__([choice.locator for choice in self._choices])
        self._who = who
        self._base_model = base_model
        self._current = current
        self._open_base = open_base
        is_here = any(choice.is_named for choice in self._choices)
        self._on_the_hub = "" if is_here or not _is_of_the_hub(base_model) else base_model or ""
        self._stop: threading.Event | None = None

    def compose_dialog(self) -> ComposeResult:
        """What is wanted, what is here, and a line for anything else."""
        box = Vertical(classes="dialog")
        box.border_title = Content(f"Base model of {safe_text(self._who, limit=50)}")
        box.border_subtitle = Content("⏎ takes it · tab types another · esc cancels")
        with box:
            yield Static(self._said(), id="base-said")
            yield BaseList(*(self._option(number, choice) for number, choice in enumerate(self._choices)))
            yield Input(self._on_the_hub, placeholder="a folder, a config.json, or org/name on the Hub")
            yield Static("", classes="dialog--reason")

    def _said(self) -> Content:
        name = safe_text(self._base_model, limit=120) if self._base_model else ""
        trained = f"It was trained on {name}." if name else "It does not say which model it was trained on."
        asked = "⏎ takes it from the Hub, or type where it is" if self._on_the_hub else "type where it is"
        here = "" if self._choices else f" The library holds no base model: {asked}."
        if self._choices and not any(choice.is_named for choice in self._choices):
            here = " None of these has that name." if name else ""
        return Content(trained + here)

    def _option(self, number: int, choice: Choice) -> Option:
        is_current = self._current is not None and _is_same(choice.locator, self._current)
        notes = ["chosen now"] if is_current else ["as the adapter says"] if choice.is_named else []
        notes += [choice.about] if choice.about else []
        note = safe_text("  ".join(notes))
        room = max(40, 66 - len(note))  # where there is not room for both, the path is what tells
        shown = safe_text(choice.locator, limit=room)
        mark = Content.styled("● " if choice.is_named else "  ", "$text-accent")
        return Option(Content.assemble(mark, shown, "  ", Content.styled(note, "$foreground 65%")), id=str(number))

    def on_unmount(self) -> None:
        """Nobody waits any longer."""
        if self._stop is not None:
            self._stop.set()

    def take_path(self, path: str) -> None:
        """Read the headers beside the screen, so that a slow disk stops nothing."""
        if self._stop is not None:
            self._stop.set()
        self.explain("reading headers …", is_error=False)
        open_base = self._open_base

        def look(stop: threading.Event, tell: Callable[[Message], bool]) -> None:
            del stop
            try:
                open_base(path)
            except LoraLabError as error:
                tell(self.Opened(path, str(error)))
            except Exception as error:  # what is there may be anything
                tell(self.Opened(path, f"{path} cannot be read: {type(error).__name__}: {error}."))
            else:
                tell(self.Opened(path, ""))

        self._stop = work_beside(look, self, "base")

    @on(Opened)
    def _opened(self, message: Opened) -> None:
        if message.error:
            self.explain(message.error)
        elif self.is_current:
            self.dismiss(message.locator)


def ask_for_base(
    lab: LoraLabApp, who: str, base_model: str | None, adapter_path: str, take: Callable[[str], None]
) -> None:
    """Ask, remember the answer, and hand it to `take`; nothing happens when there is none."""
    from lora_lab.tui.library.screen import LibraryScreen

    home = lab.library
    entries = [row.entry for row in home.library.rows.values()] if isinstance(home, LibraryScreen) else []

    def answer(locator: str | None) -> None:
        if locator is not None:
            lab.bases.choose(base_model, locator)
            take(locator)

    choices = choices_of(entries, base_model, adapter_path)
    current = lab.bases.base_for(base_model)

    def open_base(locator: str) -> object:
        return lab.session.base(locator)

    lab.push_screen(BaseDialog(who, base_model, choices, current=current, open_base=open_base), answer)
