"""The keys every screen and pane shares, each with an id (for a keymap) and a tooltip (for the help)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from textual.binding import Binding
from textual.keys import format_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType


def key(keys: str, action: str, label: str, tooltip: str, *, id: str, show: bool = False) -> Binding:  # noqa: A002
    """Bind `keys` (comma separated) to `action`; `show` puts it into the footer."""
    return Binding(keys, action, label, show=show, tooltip=tooltip, id=id)


def described(bindings: Iterable[BindingType], prefix: str) -> list[Binding]:
    """Give a Textual widget's own bindings ids and tooltips, so that help and keymaps know them too."""
    return [
        replace(
            binding,
            id=binding.id or f"{prefix}.{binding.action.partition('(')[0].rpartition('.')[2]}",
            tooltip=binding.tooltip or binding.description,
        )
        for binding in Binding.make_bindings(bindings)
    ]


#: Of every screen and every dialogue.
FOCUS: Final = [
    key("tab", "app.focus_next", "Next pane", "Move to the next pane", id="focus.next"),
    key("shift+tab", "app.focus_previous", "Previous pane", "Move to the previous pane", id="focus.previous"),
    key("ctrl+c,super+c", "screen.copy_text", "Copy selection", "Copy the text selected by mouse", id="copy.selection"),
]

#: Of every screen that is not a dialogue.
SCREEN: Final = [
    key("question_mark,f1", "help", "Help", "Every key of this pane and screen", id="help", show=True),
    key("slash", "filter", "Filter", "Filter what this screen lists", id="filter"),
    key("n", "find_next", "Next match", "Move to the next match of the filter", id="find.next"),
    key("N", "find_previous", "Previous match", "Move to the match before", id="find.previous"),
    key("escape", "leave", "Leave", "Leave the filter, or the maximised pane", id="leave"),
    key("y", "copy", "Copy", "Copy what the cursor is on, as tab-separated text", id="copy", show=True),
    key("x", "export", "Export", "Write what is on screen to a file: csv, json or svg", id="export", show=True),
    key("f", "maximise", "Full", "Give the focused pane the whole screen, or take it back", id="maximise", show=True),
    key("r", "rescan", "Rescan", "Read the files again", id="rescan"),
    key("1", "app.go('library')", "Library", "Go to the library", id="go.library"),
    key("2", "app.go('detail')", "Detail", "Go to the adapter opened last", id="go.detail"),
    key("3", "app.go('compare')", "Compare", "Go to the two adapters compared last", id="go.compare"),
    key("4", "app.go('combine')", "Combine", "Combine, resize or extract adapters", id="go.combine"),
    key("5", "app.go('bench')", "Bench", "Measure swaps and latency, and compare with before", id="go.bench"),
    key("6", "app.go('hub')", "Hub", "Open an adapter from the Hub", id="go.hub"),
    key("7", "app.go('jobs')", "Jobs", "Go to the list of jobs", id="go.jobs"),
    key("b", "app.budget", "Budget", "What a rank would cost on this base model", id="go.budget"),
    key("t", "app.pick_theme", "Theme", "Choose a theme, with a live preview", id="theme", show=True),
    key("ctrl+o", "jump", "Jump", "Put a letter on every pane and go to the one you type", id="jump", show=True),
    key("ctrl+s", "screenshot_svg", "Screenshot", "Write the screen as an SVG picture", id="screenshot"),
    key("q", "back", "Back", "Go back; on the library: quit", id="back", show=True),
]


def of_screen(*left_out: str) -> list[Binding]:
    """Keys of every screen, without those of these ids, which have another meaning there, or none."""
    return [*FOCUS, *(binding for binding in SCREEN if binding.id not in left_out)]


#: Of the application. Textual opens the palette by the key of its own constant.
APP: Final = [
    Binding("ctrl+q", "quit", "Quit", show=False, priority=True, tooltip="Quit at once", id="quit"),
    key("ctrl+c", "help_quit", "How to quit", "Say how to quit", id="quit.help"),
    key("ctrl+p", "command_palette", "Commands", "Search every action", id="palette"),
]

#: Of a table, a list or anything else with a cursor that has the actions cursor_up, cursor_down…
_UP_DOWN: Final = [
    key("k", "cursor_up", "Up", "Move up", id="cursor.up"),
    key("j", "cursor_down", "Down", "Move down", id="cursor.down"),
]

#: For a Textual Tree: h goes to the parent, l opens.
TREE: Final = [
    *_UP_DOWN,
    key("h", "cursor_parent", "Parent", "Move to the parent", id="tree.parent"),
    key("l", "toggle_node", "Open", "Open or close the branch", id="tree.toggle"),
    key("g,home", "scroll_home", "Top", "Move to the first line", id="cursor.first"),
    key("G,end", "scroll_end", "Bottom", "Move to the last line", id="cursor.last"),
]

#: For a Textual OptionList or ListView.
OPTIONS: Final = [
    *_UP_DOWN,
    key("g", "first", "Top", "Move to the first line", id="cursor.first"),
    key("G", "last", "Bottom", "Move to the last line", id="cursor.last"),
]

#: For anything that scrolls and has no cursor.
SCROLL: Final = [
    key("j", "scroll_down", "Down", "Scroll down", id="scroll.down"),
    key("k", "scroll_up", "Up", "Scroll up", id="scroll.up"),
    key("h", "scroll_left", "Left", "Scroll left", id="scroll.left"),
    key("l", "scroll_right", "Right", "Scroll right", id="scroll.right"),
    key("g", "scroll_home", "Top", "Scroll to the top", id="scroll.home"),
    key("G", "scroll_end", "Bottom", "Scroll to the bottom", id="scroll.end"),
]

_KEY_NAMES: Final = {
    "question_mark": "?",
    "slash": "/",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "enter": "⏎",
    "escape": "esc",
    "plus": "+",
    "minus": "-",
    "equals_sign": "=",
    "pagedown": "pgdn",
    "pageup": "pgup",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "tab": "tab",
}


def key_name(binding: Binding) -> str:
    """Show a key as a person writes it: ``ctrl+p`` is ``^p``, ``question_mark`` is ``?``."""
    if binding.key_display:
        return binding.key_display
    modifiers, name = binding.parse_key()
    shown = _KEY_NAMES.get(name) or format_key(name)
    return "".join("^" if modifier == "ctrl" else f"{modifier}+" for modifier in modifiers) + shown
