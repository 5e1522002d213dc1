"""What a form is made of: lines of labelled fields, with the reason below when what is typed is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input, Label, Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from textual import events
    from textual.app import ComposeResult, RenderResult
    from textual.binding import BindingType

_GAP: Final = 2
_NUMERIC: Final = r"[0-9.+\-]*"
_DIGITS: Final = frozenset("0123456789.+-")
_UP_DOWN: Final = [
    bindings.key("up", "app.focus_previous", "Up", "Move to the field before", id="field.previous"),
    bindings.key("down", "app.focus_next", "Down", "Move to the next field", id="field.next"),
]


class Entry(Input, inherit_bindings=False):
    """One line of text."""

    HELP_TITLE = "Field"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings.described(Input.BINDINGS, "field"), *_UP_DOWN]


class NumberEntry(Entry, inherit_bindings=False):
    """A number; letters are keys of the screen here."""

    HELP_TITLE = "Number"
    BINDINGS: ClassVar[list[BindingType]] = [*Entry.BINDINGS]

    def __init__(self, value: str = "", *, placeholder: str = "", id: str | None = None) -> None:  # noqa: A002
        super().__init__(value, placeholder=placeholder, id=id, restrict=_NUMERIC, max_length=18)

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Only what a number is made of is typed."""
        del key
        return character is not None and character in _DIGITS

    async def _on_key(self, event: events.Key) -> None:
        if event.is_printable and not self.check_consume_key(event.key, event.character):
            event.prevent_default()  # the field would swallow it


class Option(NamedTuple):
    """One of several values."""

    value: str
    label: str


class ChoiceField(Widget, can_focus=True):
    """One of several values: all of them where they fit, else the one that is chosen.

    Parameters
    ----------
    options : at least one
    value : of the one that is chosen at first; the first by default
    """

    HELP_TITLE = "Choice"
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("right,l,space", "step(1)", "Next", "Choose the next", id="choice.next", show=True),
        bindings.key("left,h", "step(-1)", "Before", "Choose the one before", id="choice.previous"),
        bindings.key("enter", "app.focus_next", "Next field", "Move to the next field", id="choice.done"),
        *_UP_DOWN,
    ]
    DEFAULT_CSS = """
    ChoiceField { height: 1; width: 1fr; padding: 0 1; background: $panel; }
    ChoiceField:focus { background: $primary 25%; }
    """

    value: reactive[str] = reactive("")

    @dataclass
    class Changed(Message):
        """Another one is chosen."""

        field: ChoiceField
        value: str

    def __init__(self, options: Sequence[Option], value: str | None = None, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.options = tuple(options)
        self.set_reactive(ChoiceField.value, self.options[0].value if value is None else value)

    def offer(self, options: Sequence[Option]) -> None:
        """Offer others; the one that is chosen stays where it is among them."""
        self.options = tuple(options)
        if self.value not in [option.value for option in options]:
            self.value = self.options[0].value
        self.refresh()

    @property
    def place(self) -> int:
        """Of the chosen one."""
        return next((place for place, option in enumerate(self.options) if option.value == self.value), 0)

    def render(self) -> RenderResult:
        """The options, or the chosen one between arrows."""
        shown = [
            Content.assemble(
                Content.styled("● " if option.value == self.value else "○ ", "$text-accent"),
                Content.styled(safe_text(option.label), "" if option.value == self.value else "$foreground 65%"),
            )
            for option in self.options
        ]
        if sum(one.cell_length + _GAP for one in shown) - _GAP <= self.content_size.width:
            return Content(" " * _GAP).join(shown)
        return Content.assemble(
            Content.styled("◂ ", "$text-accent"),
            safe_text(self.options[self.place].label),
            Content.styled(" ▸", "$text-accent"),
            Content.styled(f"  {self.place + 1} of {len(self.options)}", "$foreground 65%"),
        )

    def watch_value(self, value: str) -> None:
        """Tell of it."""
        self.post_message(self.Changed(self, value))

    def action_step(self, step: int) -> None:
        """Choose one further on, round the end."""
        self.value = self.options[(self.place + step) % len(self.options)].value

    def on_click(self) -> None:
        """A click goes on by one."""
        self.action_step(1)


class Field(NamedTuple):
    """A control with its label, and after it what it takes."""

    id: str
    label: str
    control: Widget
    hint: str = ""
    about: str = ""  # a few words, shown while it has the focus


class FieldLine(Vertical):
    """One or more fields beside each other, and the reasons why they are refused below.

    Parameters
    ----------
    fields : from left to right
    """

    DEFAULT_CSS = """
    FieldLine { height: auto; }
    FieldLine Horizontal { height: 1; padding: 0 1 0 0; }
    FieldLine Label { width: auto; min-width: 11; padding: 0 1; color: $foreground 70%; }
    FieldLine Label.-second { min-width: 0; padding: 0 1 0 2; }
    FieldLine .field--hint { min-width: 0; color: $foreground 60%; padding: 0 0 0 1; }
    FieldLine Entry { border: none; height: 1; padding: 0 1; background: $panel; width: 1fr; }
    FieldLine Entry:focus { border: none; background: $primary 25%; }
    FieldLine .-wrong, FieldLine .-wrong:focus {
        border: none; border-left: outer $error; border-right: outer $error; padding: 0;
    }
    FieldLine .field--reason { display: none; height: auto; color: $text-error; padding: 0 1; }
    FieldLine.-refused .field--reason { display: block; }
    """

    def __init__(self, *fields: Field, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.fields = fields

    def compose(self) -> ComposeResult:
        """Labels, controls, hints; the reason below."""
        with Horizontal():
            for place, field in enumerate(self.fields):
                yield Label(Content(safe_text(field.label)), classes="-second" if place else "")
                yield field.control
                if field.hint:
                    yield Label(Content(safe_text(field.hint)), classes="field--hint")
        yield Static("", classes="field--reason")

    def refuse(self, faults: Mapping[str, str]) -> None:
        """Show the reasons of `faults` that are about fields of this line."""
        reasons = []
        for field in self.fields:
            reason = faults.get(field.id, "")
            field.control.set_class(bool(reason), "-wrong")
            if reason:
                reasons.append(Content(f"✗ {safe_text(reason)}"))
        self.set_class(bool(reasons), "-refused")
        self.query_one(".field--reason", Static).update(Content("\n").join(reasons))


def values_of(lines: Iterable[FieldLine]) -> dict[str, str]:
    """What is typed or chosen, by field."""
    found = {}
    for line in lines:
        for field in line.fields:
            control = field.control
            if isinstance(control, Input | ChoiceField):
                found[field.id] = control.value
    return found
