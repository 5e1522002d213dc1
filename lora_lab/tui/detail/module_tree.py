"""The list of modules on the left: a virtual tree that draws only the lines one sees."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from rich.segment import Segment
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings, text
from lora_lab.tui.detail.outline import Line, Outline
from lora_lab.tui.widgets.table import fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events
    from textual.binding import BindingType

_VALUE_WIDTH: Final = 8
_LONGEST_LABEL: Final = 28


class ModuleTree(ScrollView, can_focus=True, inherit_bindings=False):
    """Groups and modules, each with bars and a number.

    The bars of a group are its modules' ‖ΔW‖ against the largest of the adapter; those of a module are its singular
    values against its σ₁.
    """

    ALLOW_MAXIMIZE = True
    HELP_TITLE = "Modules"
    HELP = (
        "A group's bars are the ‖ΔW‖ of its modules, a module's bars are its singular values. "
        "Filter by words; -word leaves out."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key(
            "enter",
            "choose",
            "Plot",
            "Go to the plot of the module; open or close a group",
            id="tree.choose",
            show=True,
        ),
        bindings.key("down,j", "cursor(1)", "Down", "Move down", id="cursor.down"),
        bindings.key("up,k", "cursor(-1)", "Up", "Move up", id="cursor.up"),
        bindings.key("right", "open", "Open", "Open the group", id="tree.open"),
        bindings.key("left,h", "close", "Close", "Close the group, or go to it", id="tree.close"),
        bindings.key("space", "fold", "Open/close", "Open or close the group", id="tree.toggle"),
        bindings.key("z", "fold_all", "All", "Open or close every group", id="tree.toggle_all"),
        bindings.key("g,home", "cursor_to('first')", "Top", "Move to the first line", id="cursor.first"),
        bindings.key("G,end", "cursor_to('last')", "Bottom", "Move to the last line", id="cursor.last"),
        bindings.key("pagedown", "page(1)", "Page down", "Move down by a page", id="tree.page_down"),
        bindings.key("pageup", "page(-1)", "Page up", "Move up by a page", id="tree.page_up"),
    ]
    DEFAULT_CSS = """
    ModuleTree {
        background: $background;
        overflow-x: hidden;
        overflow-y: auto;
        & > .modules--group { text-style: bold; }
        & > .modules--bars { color: $series-1; }
        & > .modules--dim { color: $foreground 55%; }
        & > .modules--selected { color: $text-accent; text-style: bold; }
        & > .modules--cursor {
            background: $block-cursor-blurred-background;
            color: $block-cursor-blurred-foreground;
        }
        &:focus > .modules--cursor {
            background: $block-cursor-background;
            color: $block-cursor-foreground;
            text-style: $block-cursor-text-style;
        }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"modules--{name}" for name in ("group", "bars", "dim", "selected", "cursor")
    }

    cursor: reactive[int] = reactive(0)

    @dataclass
    class Selected(Message):
        """The cursor came to a module."""

        module: str

    @dataclass
    class Chosen(Message):
        """Enter on a module."""

        module: str

    @dataclass
    class ViewportChanged(Message):
        """Other lines can be seen than before."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.outline = Outline(())
        self.selected: str | None = None
        self._lines: list[Line] = []
        self._label_width = 0
        self._largest = 0.0  # norm of any module
        self._members: dict[str, tuple[str, ...]] = {}

    # What is shown.

    @property
    def lines(self) -> Sequence[Line]:
        """The lines, from above."""
        return self._lines

    @property
    def line(self) -> Line | None:
        """The line under the cursor."""
        return self._lines[self.cursor] if self._lines else None

    def show_outline(self, outline: Outline) -> None:
        """Show other modules; the first one is selected."""
        self.outline = outline
        if outline.modules:
            self.select(outline.modules[0])
        else:
            self.lay_out()

    def lay_out(self) -> None:
        """Make the lines anew after grouping, order, filter or folding changed; the cursor stays on what it is on."""
        before = self.line
        offset = self.cursor - round(self.scroll_offset.y)
        self._lines = self.outline.lines()
        labels = [len(line.label) for line in self._lines]
        self._label_width = min(_LONGEST_LABEL, max(labels, default=0))
        self._members = {group.id: group.modules for group in self.outline.groups}
        self._measure_rows()
        self.virtual_size = Size(self.size.width, len(self._lines))
        place = self._place_of(before)
        self.set_reactive(ModuleTree.cursor, place)
        self.scroll_to(y=max(0, place - offset), animate=False, immediate=True)
        self._show_cursor()
        self.refresh()
        self.post_message(self.ViewportChanged())

    def _place_of(self, before: Line | None) -> int:
        """Line for the cursor: the group it was on, else the selected module or its group, else the first."""
        wanted: list[tuple[str, str | None]] = []
        if before is not None and before.module is None:
            wanted.append((before.group, None))
        if self.selected is not None:
            group = self.outline.group_of(self.selected)
            wanted += [(group, self.selected), (group, None)]
        places = {
            (line.group if line.is_inside or line.module is None else "", line.module): place
            for place, line in enumerate(self._lines)
        }
        found = (places[one] for one in wanted if one in places)
        return next(found, 0)

    def rows_arrived(self) -> None:
        """Take in what is new in the outline's rows."""
        self._measure_rows()
        self.refresh()

    def _measure_rows(self) -> None:
        norms = [row["frobenius_norm"] for row in self.outline.rows.values() if row.get("frobenius_norm") is not None]
        self._largest = max(norms, default=0.0)

    def visible_modules(self) -> list[str]:
        """Modules on screen, and those of the groups on screen, from above."""
        top = round(self.scroll_offset.y)
        found: dict[str, None] = {}
        for line in self._lines[top : top + max(1, self.size.height)]:
            found.update(dict.fromkeys([line.module] if line.module else self._members.get(line.group, ())))
        return list(found)

    def select(self, module: str) -> None:
        """Put the cursor on `module`, opening its group."""
        self.selected = module
        group = self.outline.group_of(module)
        if group not in self.outline.opened:
            self.outline.opened.add(group)
        with self.prevent(self.Selected):
            self.lay_out()
            self.cursor = next((place for place, line in enumerate(self._lines) if line.module == module), self.cursor)
        self._show_cursor()
        self.post_message(self.Selected(module))

    # The cursor.

    def validate_cursor(self, cursor: int) -> int:
        """Keep it on a line."""
        return max(0, min(cursor, len(self._lines) - 1))

    def watch_cursor(self) -> None:
        """Follow it, and tell when it comes to a module."""
        self._show_cursor()
        self.refresh()
        line = self.line
        if line is not None and line.module is not None and line.module != self.selected:
            self.selected = line.module
            self.post_message(self.Selected(line.module))

    def _show_cursor(self) -> None:
        top, height = round(self.scroll_offset.y), max(1, self.size.height)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Say that other lines can be seen."""
        super().watch_scroll_y(old_value, new_value)
        if round(old_value) != round(new_value):
            self.post_message(self.ViewportChanged())

    def on_resize(self) -> None:
        """Keep the cursor in sight."""
        self.virtual_size = Size(self.size.width, len(self._lines))
        self._show_cursor()

    # Drawing.

    def render_line(self, y: int) -> Strip:
        """Draw one line: fold mark, label, bars, number."""
        place = round(self.scroll_offset.y) + y
        width = self.scrollable_content_region.width
        if not 0 <= place < len(self._lines):
            return Strip.blank(self.size.width, self.rich_style)
        line = self._lines[place]
        mark = "  "
        if line.module is None:
            is_open = bool(self.outline.filter) or line.group in self.outline.opened
            mark = "▼ " if is_open else "▶ "
        number = self._number(line)
        room = width - len(mark) - _VALUE_WIDTH - 1
        label_width = min(self._label_width, max(room - 5, min(room, 12)))
        bars_width = max(0, min(12, room - label_width - 1))
        label = fit(_left_cut(safe_text(line.label), label_width), label_width)
        bars = fit(self._bars(line, bars_width), bars_width) if bars_width else ""
        padding = " " * max(0, room - label_width - 1 - bars_width)
        parts = (
            (mark, "dim"),
            (label, self._tone(line)),
            (" ", ""),
            (bars, "bars"),
            (padding, ""),
            (" " + fit(number, _VALUE_WIDTH, is_right=True), "dim" if number == text.PENDING else ""),
        )
        if place == self.cursor:
            style = self.get_component_rich_style("modules--cursor")
            segments = [Segment(shown, style) for shown, _ in parts]
        else:
            style = self.rich_style
            segments = [
                Segment(shown, self.get_component_rich_style(f"modules--{tone}") if tone else style)
                for shown, tone in parts
            ]
        return Strip(segments).adjust_cell_length(self.size.width, style)

    def _tone(self, line: Line) -> str:
        if line.module is not None and line.module == self.selected:
            return "selected"
        return "group" if line.module is None else ""

    def _number(self, line: Line) -> str:
        modules = self._members.get(line.group, ()) if line.module is None else (line.module,)
        if not self.outline.is_known(modules):
            return text.PENDING
        value = self.outline.group_value(modules) if line.module is None else self.outline.value(line.module)
        return text.number(value)

    def _bars(self, line: Line, width: int) -> str:
        if line.module is not None:
            row = self.outline.rows.get(line.module)
            values = list(row["singular_values"] or ()) if row else []
            return text.bars(condensed(values, min(width, 8)))
        members = self._members.get(line.group, ())
        norms = [row.get("frobenius_norm") if (row := self.outline.rows.get(name)) else None for name in members]
        if all(norm is None for norm in norms):
            return ""
        # The largest norm of the adapter is the measure of every group's bars.
        return text.bars([*condensed(norms, width), self._largest])[:-1]

    # Keys and mouse.

    def action_cursor(self, step: int) -> None:
        """Move by `step` lines."""
        self.cursor += step

    def action_cursor_to(self, end: str) -> None:
        """Move to the first or the last line."""
        self.cursor = 0 if end == "first" else len(self._lines) - 1

    def action_page(self, direction: int) -> None:
        """Move by a page."""
        self.cursor += direction * max(1, self.size.height - 1)

    def action_choose(self) -> None:
        """Open or close a group; tell of a module."""
        line = self.line
        if line is None:
            return
        if line.module is None:
            self.action_fold()
        else:
            if line.module != self.selected:
                self.select(line.module)
            self.post_message(self.Chosen(line.module))

    def action_fold(self) -> None:
        """Open or close the group of the line."""
        line = self.line
        if line is None or (line.module is not None and not line.is_inside):
            return
        self.outline.opened ^= {line.group}
        self._fold_to(line.group)

    def action_open(self) -> None:
        """Open the group, or go into it."""
        line = self.line
        if line is None or line.module is not None:
            return
        if line.group in self.outline.opened:
            self.cursor += 1
        else:
            self.outline.opened.add(line.group)
            self._fold_to(line.group)

    def action_close(self) -> None:
        """Close the group; from a module, go to its group."""
        line = self.line
        if line is None or (line.module is not None and not line.is_inside):
            return
        if line.module is None:
            self.outline.opened.discard(line.group)
        self._fold_to(line.group)

    def action_fold_all(self) -> None:
        """Open every group, or close them all when all are open."""
        every = {group.id for group in self.outline.groups}
        self.outline.opened = set() if every <= self.outline.opened else every
        self.lay_out()

    def _fold_to(self, group: str) -> None:
        """Lay out anew with the cursor on the line of `group`."""
        self.lay_out()
        for place, line in enumerate(self._lines):
            if line.group == group and line.module is None:
                self.cursor = place

    def on_click(self, event: events.Click) -> None:
        """Move to the line; a click on the fold mark, or a double click, opens and closes."""
        place = round(self.scroll_offset.y) + event.y
        if not 0 <= place < len(self._lines):
            return
        self.cursor = place
        line = self._lines[place]
        if line.module is None and (event.x < 2 or event.chain == 2):
            self.action_fold()
        elif event.chain == 2:
            self.action_choose()


def condensed(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most `width` values: of each stretch the largest.

    Examples
    --------
    >>> condensed([3.0, 2.0, 1.0, 0.5], 2)
    [3.0, 1.0]
    """
    if len(values) <= width or width < 1:
        return list(values)
    edges = [place * len(values) // width for place in range(width + 1)]
    stretches = (values[begin:end] for begin, end in itertools.pairwise(edges))
    return [max((value for value in stretch if value is not None), default=None) for stretch in stretches]


def _left_cut(label: str, width: int) -> str:
    """The end of a label tells more than its beginning."""
    return label if len(label) <= width else "…" + label[len(label) - width + 1 :]
