"""The adapters of a combination, each with its strength, and what their headers say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from textual import on
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Label, Static

from lora_lab.errors import LoraLabError
from lora_lab.safetext import safe_text
from lora_lab.sources.locators import parse
from lora_lab.tui import bindings, text
from lora_lab.tui.combining.fields import NumberEntry
from lora_lab.tui.leaving import Leaving

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

    from lora_lab.extension.contracts import MergeMethod
    from lora_lab.tui.app import LoraLabApp
    from lora_lab.tui.combining.recipe import Source

_LEAST_NAME: Final = 8
_USUAL_NAME: Final = 40
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NEED_BASE: Final = frozenset({"dora", "pissa"})
_MARKS: Final = ("$mark-a", "$mark-b")


class Facts(NamedTuple):
    """What is known of an input without reading a weight."""

    name: str
    rank_min: int | None = None
    rank_max: int | None = None
    base_model: str | None = None  # that it names
    needs_base: bool = False  # its change is known with its base alone
    reason: str = ""  # why it cannot be read

    @property
    def ranks(self) -> str:
        """Its rank, or the ends of its ranks."""
        said = text.span(self.rank_min, self.rank_max)
        return f"r {said}" if said else ""


@dataclass
class MethodsRead(Message):
    """Which methods there are; or why that cannot be known."""

    methods: tuple[MergeMethod, ...] = ()
    reason: str = ""


@dataclass
class SourceRead(Message):
    """What the headers of an input say."""

    locator: str
    facts: Facts


def read_methods(app: LoraLabApp, stop: threading.Event, tell: Callable[[Message], bool]) -> None:
    """Tell of the methods that are installed; a plugin is loaded beside the screen."""
    del stop
    try:
        methods = tuple(app.session.registry.methods.values())
    except Exception as error:  # a plugin may do anything while it is loaded
        tell(MethodsRead(reason=f"The methods cannot be read: {type(error).__name__}: {error}."))
    else:
        tell(MethodsRead(methods))


def read_source(
    app: LoraLabApp, locator: str, name: str, stop: threading.Event, tell: Callable[[Message], bool]
) -> None:
    """Tell what the headers of an adapter on this machine say; nothing is fetched for it."""
    del stop
    try:
        if not parse(locator).is_local:
            return
        adapter = app.session.adapter(locator)
    except LoraLabError as error:
        tell(SourceRead(locator, Facts(name, reason=error.message)))
    except Exception as error:  # what is there may be anything
        tell(SourceRead(locator, Facts(name, reason=f"It cannot be read: {type(error).__name__}: {error}.")))
    else:
        needs_base = any(feature.id in _NEED_BASE for feature in adapter.features)
        tell(SourceRead(locator, Facts(name, *adapter.ranks, adapter.base_model, needs_base)))


def letter(place: int) -> str:
    """What an input is called beside its name.

    Examples
    --------
    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', '27')
    """
    return _LETTERS[place] if place < len(_LETTERS) else str(place + 1)


class SourceRow(Leaving, Vertical):
    """One adapter: its letter, its name, its rank, and a field for its strength."""

    DEFAULT_CSS = """
    SourceRow { height: auto; }
    SourceRow Horizontal { height: 1; padding: 0 1 0 0; }
    SourceRow .source--who { width: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    SourceRow .source--rank { width: auto; color: $foreground 65%; padding: 0 1; }
    SourceRow NumberEntry { border: none; height: 1; padding: 0 1; background: $panel; width: 10; }
    SourceRow NumberEntry:focus { border: none; background: $primary 25%; }
    SourceRow NumberEntry.-wrong, SourceRow NumberEntry.-wrong:focus {
        border: none; border-left: outer $error; border-right: outer $error; padding: 0;
    }
    SourceRow .source--reason { display: none; height: auto; color: $text-error; padding: 0 1; }
    SourceRow.-refused .source--reason { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._who = ("", "", "")

    def compose(self) -> ComposeResult:
        """One line, and the reason below."""
        with Horizontal():
            yield Static("", classes="source--who")
            yield Label("", classes="source--rank")
            yield Label("× ")
            yield NumberEntry("1")
        yield Static("", classes="source--reason")

    @property
    def entry(self) -> NumberEntry:
        """Where the strength is typed."""
        return self.query_one(NumberEntry)

    def show(self, place: int, facts: Facts) -> None:
        """Write all but what is typed."""
        self._who = (letter(place), _MARKS[place] if place < len(_MARKS) else "$text-accent", facts.name)
        self._name_it()
        self.query_one(".source--rank", Label).update(Content(facts.ranks))

    def _name_it(self) -> None:
        """A name too long loses its middle: names often differ at their end."""
        mark, tone, name = self._who
        who = self.query_one(".source--who", Static)
        room = max(_LEAST_NAME, (who.content_size.width or _USUAL_NAME) - len(mark) - 1)
        who.update(Content.assemble(Content.styled(f"{mark} ", f"bold {tone}"), safe_text(name, limit=room)))

    def on_resize(self) -> None:
        """Use the room there is now."""
        self.call_after_refresh(self._name_it)

    def refuse(self, reason: str, *, is_typed: bool) -> None:
        """Show the reason; the field is marked when it is about what is typed there."""
        self.entry.set_class(bool(reason) and is_typed, "-wrong")
        self.set_class(bool(reason), "-refused")
        self.query_one(".source--reason", Static).update(Content(f"✗ {safe_text(reason)}"))


class SourceList(Leaving, Vertical, inherit_bindings=False):
    """All of them, in order."""

    HELP_TITLE = "Inputs"
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("d", "remove", "Remove", "Take this input out", id="sources.remove", show=True),
        bindings.key("K,shift+up", "move(-1)", "Up", "Move this input before the one above", id="sources.up"),
        bindings.key("J,shift+down", "move(1)", "Down", "Move this input behind the one below", id="sources.down"),
    ]
    DEFAULT_CSS = """
    SourceList { height: auto; }
    SourceList #source-none { color: $foreground 70%; padding: 0 1; display: none; height: auto; }
    SourceList.-empty #source-none { display: block; }
    """

    @dataclass
    class Changed(Message):
        """Other inputs, another order, or another strength."""

    def __init__(self, sources: Sequence[Source], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.sources = list(sources)
        self.facts: dict[str, Facts] = {}

    def compose(self) -> ComposeResult:
        """A row for each."""
        yield Static(Content("no input yet: a adds one"), id="source-none")
        for _ in self.sources:
            yield SourceRow()

    def on_mount(self) -> None:
        """Fill the rows."""
        self._refill()

    @property
    def rows(self) -> list[SourceRow]:
        """From above."""
        return list(self.query(SourceRow))

    def facts_of(self, locator: str) -> Facts:
        """As far as they are known."""
        return self.facts.get(locator) or Facts(locator.rstrip("/").rpartition("/")[2] or locator)

    def draw(self, faults: Mapping[str, str] | None = None) -> None:
        """Write every row anew, but for what is typed."""
        self.set_class(not self.sources, "-empty")
        for place, (row, source) in enumerate(zip(self.rows, self.sources, strict=False)):
            if not row.is_mounted:
                continue
            facts = self.facts_of(source.locator)
            row.show(place, facts)
            typed = (faults or {}).get(f"strength:{place}", "")
            row.refuse(typed or facts.reason, is_typed=bool(typed))

    def _refill(self) -> None:
        """Put every strength into its row; never while one is typed, for more may have been typed than is known."""
        with self.prevent(Input.Changed):
            for row, source in zip(self.rows, self.sources, strict=False):
                row.entry.value = source.strength
        self.draw()

    @property
    def _place(self) -> int | None:
        return next((place for place, row in enumerate(self.rows) if row.has_focus_within), None)

    async def add(self, source: Source) -> None:
        """Add one at the end, and go to its strength."""
        row = SourceRow()
        self.sources.append(source)
        await self.mount(row)
        self._refill()
        row.entry.focus()
        self.post_message(self.Changed())

    async def action_remove(self) -> None:
        """Take the one out whose strength has the focus."""
        place = self._place
        if place is None:
            return
        del self.sources[place]
        if self.sources:
            self.rows[max(0, place - 1)].entry.focus()
        await self.rows[-1].remove()
        self._refill()
        self.post_message(self.Changed())

    def action_move(self, step: int) -> None:
        """Change places with the one above or below."""
        place = self._place
        if place is None or not 0 <= place + step < len(self.sources):
            return
        other = place + step
        self.sources[place], self.sources[other] = self.sources[other], self.sources[place]
        self._refill()
        self.rows[other].entry.focus()
        self.post_message(self.Changed())

    @on(Input.Changed)
    def _typed(self, message: Input.Changed) -> None:
        message.stop()
        for place, row in enumerate(self.rows):
            if row.is_mounted and row.entry is message.input and place < len(self.sources):
                self.sources[place] = self.sources[place]._replace(strength=row.entry.value)
        self.post_message(self.Changed())
