"""A slider for ranks: powers of two by arrows, one by one with shift, or a number typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from rich.segment import Segment
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from lora_lab.tui import bindings
from lora_lab.tui.budget.plan import LARGEST_RANK

if TYPE_CHECKING:
    from textual import events
    from textual.binding import BindingType

_TYPING_SECONDS: Final = 1.5
_LONGEST: Final = 7  # digits of the largest rank


class RankSlider(Widget, can_focus=True):
    """A rank between 1 and 2²⁰ on a logarithmic track; what is typed may lie beyond the track."""

    HELP_TITLE = "Rank"
    HELP = "Type a number for any rank."
    BINDINGS: ClassVar[list[BindingType]] = [
        bindings.key("right,l", "double(1)", "Next", "Go to the next power of two", id="slider.next"),
        bindings.key("left,h", "double(-1)", "Previous", "Go to the power of two before", id="slider.previous"),
        bindings.key("shift+right,plus", "step(1)", "+1", "One more", id="slider.more"),
        bindings.key("shift+left,minus", "step(-1)", "−1", "One less", id="slider.less"),
        bindings.key("home", "end('first')", "First", "Rank 1", id="slider.first"),
        bindings.key("end", "end('last')", "Last", "The largest rank of the track", id="slider.last"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "slider--track", "slider--done", "slider--handle", "slider--value", "slider--tick",
    }  # fmt: skip
    DEFAULT_CSS = """
    RankSlider {
        height: 2;
        width: 1fr;
        & > .slider--track { color: $foreground 30%; }
        & > .slider--done { color: $series-1; }
        & > .slider--handle { color: $text-accent; text-style: bold; }
        & > .slider--value { text-style: bold; }
        & > .slider--tick { color: $foreground 60%; }
        &:focus > .slider--value { color: $block-cursor-foreground; background: $block-cursor-background; }
        &:disabled > .slider--value { color: $foreground 60%; }
    }
    """

    rank: reactive[int] = reactive(8)

    @dataclass
    class Changed(Message):
        """Another rank."""

        rank: int

    def __init__(self, rank: int, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.set_reactive(RankSlider.rank, max(1, min(rank, LARGEST_RANK)))
        self._ticks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
        self._typed = ""
        self._last_key = 0.0

    def set_ticks(self, ticks: tuple[int, ...]) -> None:
        """Let the track end elsewhere."""
        self._ticks = ticks or (1,)
        self.refresh()

    def validate_rank(self, rank: int) -> int:
        """Keep it a rank."""
        return max(1, min(rank, LARGEST_RANK))

    def watch_rank(self, rank: int) -> None:
        """Tell."""
        self.post_message(self.Changed(rank))

    # Keys.

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Digits are a rank being typed here, not numbers of screens."""
        return (character is not None and character.isascii() and character.isdigit()) or key == "backspace"

    def on_key(self, event: events.Key) -> None:
        """Take a digit; digits that follow each other at once are one number."""
        if not self.check_consume_key(event.key, event.character):
            return
        event.stop()
        event.prevent_default()
        if event.time - self._last_key > _TYPING_SECONDS:
            self._typed = ""
        self._last_key = event.time
        if event.key == "backspace":
            self._typed = (self._typed or str(self.rank))[:-1]
        else:
            self._typed = (self._typed + (event.character or ""))[-_LONGEST:].lstrip("0")
        if self._typed:
            self.rank = int(self._typed)

    def action_double(self, direction: int) -> None:
        """Go to the next power of two, or the one before."""
        self._typed = ""
        power = self.rank.bit_length() - 1
        if direction > 0:
            self.rank = 1 << (power + 1)
        else:
            self.rank = 1 << (power if self.rank != 1 << power else max(0, power - 1))

    def action_step(self, step: int) -> None:
        """One more or one less."""
        self._typed = ""
        self.rank += step

    def action_end(self, end: str) -> None:
        """Go to one end of the track."""
        self._typed = ""
        self.rank = 1 if end == "first" else self._ticks[-1]

    def on_blur(self) -> None:
        """A number is no longer being typed."""
        self._typed = ""

    def on_click(self, event: events.Click) -> None:
        """Go to the tick nearest to the pointer."""
        places = [self._place(tick) for tick in self._ticks]
        nearest = min(range(len(places)), key=lambda index: abs(places[index] - event.x))
        if event.y <= 1:
            self.rank = self._ticks[nearest]

    # Drawing.

    @property
    def _begin(self) -> int:
        return len(self._label()) + 1

    def _label(self) -> str:
        return f"rank {self.rank:>4} "

    def _place(self, rank: int) -> int:
        """Cell of a rank: powers of two are equally far from each other, what lies between them by its share."""
        length = max(1, self.size.width - self._begin - 2)
        power = rank.bit_length() - 1
        between = (rank - (1 << power)) / (1 << power)
        whole = max(1, len(self._ticks) - 1)
        return self._begin + round(min(1.0, (power + between) / whole) * length)

    def render_line(self, y: int) -> Strip:
        """Draw the number and the track, and the ticks' ranks under it."""
        width = self.size.width
        if y == 0:
            handle = self._place(self.rank)
            done, track = "━" * (handle - self._begin), "─" * (width - 1 - handle - 1)
            segments = [
                Segment(self._label(), self.get_component_rich_style("slider--value")),
                Segment(" ", self.rich_style),
                Segment(done, self.get_component_rich_style("slider--done")),
                Segment("●", self.get_component_rich_style("slider--handle")),
                Segment(track, self.get_component_rich_style("slider--track")),
            ]
            return Strip(segments).adjust_cell_length(width, self.rich_style)
        cells = [" "] * width
        free_from = 0
        for tick in self._ticks:
            place, shown = self._place(tick), str(tick)
            begin = max(0, min(place - (len(shown) - 1) // 2, width - len(shown)))
            if begin >= free_from:
                cells[begin : begin + len(shown)] = shown
                free_from = begin + len(shown) + 1
        return Strip([Segment("".join(cells[:width]), self.get_component_rich_style("slider--tick"))])
