"""The line at the bottom: as many keys as fit, each whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widget import Widget

from lora_lab.tui.bindings import SCREEN, key_name

if TYPE_CHECKING:
    from textual import events
    from textual.app import RenderResult
    from textual.screen import Screen

#: Always at the right end, in this order.
_ALWAYS = ("command_palette",)
_EVERYWHERE = frozenset(binding.action for binding in SCREEN)


class KeyBar(Widget):
    """Keys of the focused pane and of the screen; what does not fit is left to the help and the palette."""

    DEFAULT_CSS = """
    KeyBar {
        height: 1;
        dock: bottom;
        background: $footer-background;
        color: $foreground 85%;
        & > .keybar--key { color: $footer-key-foreground; text-style: bold; }
        & > .keybar--disabled { color: $foreground 40%; }
    }
    """
    COMPONENT_CLASSES = {"keybar--key", "keybar--disabled"}  # noqa: RUF012 - Textual's own declaration

    def __init__(self) -> None:
        super().__init__()
        self._spans: list[tuple[int, int, str]] = []  # first cell, last cell, key to press

    def on_mount(self) -> None:
        """Follow the focus."""
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def _bindings_changed(self, _screen: Screen[object]) -> None:
        self.refresh()

    def _items(self) -> list[tuple[str, str, str, bool]]:
        """Key to press, its name, label, and whether it can be used, once for each action."""
        items: dict[str, tuple[str, str, str, bool]] = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show or binding.action in _ALWAYS:
                items.setdefault(binding.action, (binding.key, key_name(binding), binding.description, active.enabled))
        last = [items.pop(action) for action in _ALWAYS if action in items]
        help_item, back = items.pop("help", None), items.pop("back", None)
        # What the pane adds stands before what every screen has.
        ordered = sorted(items, key=lambda action: action in _EVERYWHERE)
        middle = [items[action] for action in ordered]
        return [item for item in (help_item, *middle, back, *last) if item is not None]

    def render(self) -> RenderResult:
        """Lay out whole items until the line is full; the palette's key keeps its place at the end."""
        items = self._items()
        pieces = [self._piece(item) for item in items]
        widths = [piece.cell_length for piece in pieces]
        chosen = _fitting(widths, self.size.width - 1, keep_last=2 if len(items) > 2 else 1)
        self._spans, column, line = [], 1, Content(" ")
        for index in chosen:
            self._spans.append((column, column + widths[index], items[index][0]))
            line += pieces[index]
            column += widths[index]
        return line.truncate(self.size.width)

    def _piece(self, item: tuple[str, str, str, bool]) -> Content:
        _key, name, label, is_enabled = item
        if not is_enabled:
            return Content(f"{name} {label}  ").stylize(self.get_visual_style("keybar--disabled", partial=True))
        return Content.assemble(
            Content(name).stylize(self.get_visual_style("keybar--key", partial=True)), f" {label}  "
        )

    def on_click(self, event: events.Click) -> None:
        """A click on an item is its key."""
        for begin, end, key in self._spans:
            if begin <= event.x < end:
                self.app.simulate_key(key)


def _fitting(widths: list[int], room: int, *, keep_last: int) -> list[int]:
    """Indices of the items to show: the last `keep_last` always, the others from the left while they fit."""
    fixed = list(range(max(0, len(widths) - keep_last), len(widths)))
    left = room - sum(widths[index] for index in fixed)
    chosen = []
    for index in range(len(widths) - len(fixed)):
        if widths[index] > left:
            break
        left -= widths[index]
        chosen.append(index)
    return [*chosen, *fixed]
