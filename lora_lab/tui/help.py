"""Help for the focused pane: every key that does something now, made from the bindings themselves."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from textual.app import App
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.dialog import LabDialog
from lora_lab.tui.palette import Action, actions_of

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult
    from textual.binding import BindingType
    from textual.dom import DOMNode


_WIDTH: Final = 84
_FRAME: Final = 6  # border, padding, scrollbar
_MOST_KEYS: Final = 18


class Section(NamedTuple):
    """The keys of one pane, of the screen, or of the application."""

    title: str
    about: str
    actions: tuple[Action, ...]


def sections_of(screen: Screen[Any]) -> list[Section]:
    """Group the actions of `screen` by what they belong to, the focused pane first.

    A widget or a screen may say more about itself in its ``HELP`` attribute.
    """
    grouped: dict[DOMNode, list[Action]] = {}
    for action in actions_of(screen):
        grouped.setdefault(action.node, []).append(action)
    return [Section(_title(node), getattr(node, "HELP", "") or "", tuple(actions)) for node, actions in grouped.items()]


def _title(node: DOMNode) -> str:
    if isinstance(node, App):
        return "Everywhere"
    title = getattr(node, "HELP_TITLE", "")
    if title:
        return str(title)
    return "This screen" if isinstance(node, Screen) else f"This pane ({type(node).__name__})"


class _Scroll(VerticalScroll, inherit_bindings=False):
    """The help's text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.described(VerticalScroll.BINDINGS, "scroll"),
        *bindings.SCROLL,
    ]


class HelpScreen(LabDialog[None], inherit_bindings=False):
    """Shows sections of keys.

    Parameters
    ----------
    sections : as :func:`sections_of` gives them
    """

    DEFAULT_CSS = """
    HelpScreen .dialog { width: 84; height: auto; padding: 0; }
    HelpScreen _Scroll { height: auto; max-height: 100%; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.FOCUS,
        bindings.key("escape,q,question_mark,f1", "close", "Close", "Close the help", id="dialog.close", show=True),
        bindings.key("ctrl+p", "search", "Commands", "Search every action", id="palette"),
    ]

    def __init__(self, sections: list[Section]) -> None:
        super().__init__()
        self.sections = sections

    def action_search(self) -> None:
        """Go on to the palette."""
        self.dismiss(None)
        self.app.call_later(self.app.action_command_palette)

    def compose_dialog(self) -> ComposeResult:
        """One scrolling text."""
        box = _Scroll(Static(id="help-text"), classes="dialog")
        box.border_title = Content("Keys")
        box.border_subtitle = Content("esc closes · ^p searches all")
        yield box

    def on_mount(self) -> None:
        """Write the text in the width there is."""
        self._write(self.app.size.width)

    def on_resize(self, event: events.Resize) -> None:
        """Wrap anew."""
        self._write(event.size.width)

    def _write(self, width: int) -> None:
        self.query_one("#help-text", Static).update(self.text(min(width, _WIDTH) - _FRAME))

    def text(self, width: int) -> Content:
        """All sections, each action on lines of at most `width` cells."""
        keys = [" ".join(action.keys) for section in self.sections for action in section.actions]
        key_width = min(_MOST_KEYS, max(map(len, keys), default=0))
        return Content("\n").join([_section(section, key_width, width) for section in self.sections])


def _section(section: Section, key_width: int, width: int) -> Content:
    lines = [Content.styled(section.title, "bold $text-accent")]
    lines.extend(Content.styled(line, "$foreground 80%") for line in textwrap.wrap(section.about, width))
    lines.extend(_action(action, key_width, width) for action in section.actions)
    return Content("\n").join([*lines, Content("")])


def _action(action: Action, key_width: int, width: int) -> Content:
    """The keys, what they do, and why not now, wrapped beside the keys."""
    about = textwrap.wrap(safe_text(action.tooltip or action.label), width - key_width - 3)
    reason = textwrap.wrap(f"not now: {safe_text(action.reason)}", width - key_width - 3) if action.reason else []
    keys = " ".join(action.keys)
    first = Content.assemble(Content.styled(f" {keys:>{key_width}}", "bold $text-primary"), f"  {about[0]}")
    indent = " " * (key_width + 3)
    return Content("\n").join(
        [
            first,
            *(Content(indent + line) for line in about[1:]),
            *(Content.styled(indent + line, "$text-warning") for line in reason),
        ]
    )
