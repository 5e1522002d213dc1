"""The list of targets: sets with a name, and every kind of matrix on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from lora_lab.safetext import safe_text
from lora_lab.tui import bindings
from lora_lab.tui.budget.plan import ALL_LINEAR, Kind, Preset

if TYPE_CHECKING:
    from collections.abc import Iterable

    from textual.binding import BindingType

_CUSTOM: Final = ""


class TargetList(OptionList, inherit_bindings=False):
    """Presets above, kinds of matrices below; what is chosen is told whenever it changes."""

    HELP_TITLE = "Targets"
    HELP = "A named set above, single kinds of matrices below, · those that all-linear may stand for."
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            binding
            for binding in bindings.described(OptionList.BINDINGS, "options")
            if not binding.action.endswith("select")
        ),
        bindings.key("enter,space", "select", "Choose", "Take or leave it", id="options.select", show=True),
        *bindings.OPTIONS,
    ]
    DEFAULT_CSS = """
    TargetList {
        height: 1fr; min-height: 4; border: none; background: $background; padding: 0;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    TargetList:focus { border: none; }
    """

    @dataclass
    class Changed(Message):
        """Other targets."""

        targets: str

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.kinds: tuple[Kind, ...] = ()
        self.presets: tuple[Preset, ...] = ()
        self.preset = ALL_LINEAR
        self.chosen: frozenset[str] = frozenset()  # patterns, unless the analysis decides

    @property
    def targets(self) -> str:
        """What ``--targets`` takes; empty when nothing is chosen."""
        if self.preset == ALL_LINEAR:
            return ALL_LINEAR
        return ",".join(kind.part for kind in self.kinds if kind.pattern in self.chosen)

    @property
    def chosen_kinds(self) -> tuple[Kind, ...]:
        """The kinds that are chosen, as far as that is known."""
        if self.preset == ALL_LINEAR and not self.chosen:
            return tuple(kind for kind in self.kinds if kind.is_linear and kind.is_layered)
        return tuple(kind for kind in self.kinds if kind.pattern in self.chosen)

    def offer(self, kinds: Iterable[Kind], presets: Iterable[Preset], wanted: Iterable[str] = ()) -> None:
        """Offer these; ``wanted`` are last names of modules that are chosen at first, where there are such."""
        self.kinds, self.presets = tuple(kinds), tuple(presets)
        names = set(wanted)
        found = frozenset(kind.pattern for kind in self.kinds if kind.pattern.rpartition(".")[2] in names)
        if found:
            self._take(found)
        else:
            self.preset = ALL_LINEAR
            known = [preset.kinds for preset in self.presets if preset.id == ALL_LINEAR and preset.kinds]
            self.chosen = known[0] if known else frozenset()
        options = [Option(self._line(index), id=str(index)) for index in range(len(self.presets) + len(self.kinds))]
        self.clear_options()
        self.add_options(options)
        self.highlighted = 0 if options else None

    def _take(self, chosen: frozenset[str]) -> None:
        """Choose these kinds, under a preset's name where it has the same."""
        same = (preset.id for preset in self.presets if preset.kinds == chosen and chosen)
        self.preset, self.chosen = next(same, _CUSTOM), chosen

    def _line(self, index: int) -> Content:
        if index < len(self.presets):
            preset = self.presets[index]
            mark = "●" if preset.id == self.preset else "○"
            shown = Content.assemble(Content.styled(f"{mark} ", "$text-accent"), preset.title)
            return shown if not preset.reason else Content.styled(f"- {preset.title}: {preset.reason}", "dim")
        kind = self.kinds[index - len(self.presets)]
        is_unknown = self.preset == ALL_LINEAR and not self.chosen and kind.is_linear
        mark = "·" if is_unknown else "x" if kind.pattern in self.chosen else " "
        shapes = " ".join("×".join(map(str, shape)) for shape in kind.shapes[:2])
        note = "" if kind.is_linear else f" {safe_text(kind.kind, limit=20)}"
        return Content.assemble(
            Content.styled(f"[{mark}] ", "$text-accent"),
            safe_text(_named(kind), limit=40),
            Content.styled(f"  {kind.matrices}× {shapes}{note}", "$foreground 60%"),
        )

    def draw(self) -> None:
        """Write every line anew."""
        for index in range(self.option_count):
            self.replace_option_prompt_at_index(index, self._line(index))

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        index = event.option_index
        if index < len(self.presets):
            preset = self.presets[index]
            if preset.reason:
                return
            self.preset, self.chosen = preset.id, preset.kinds or frozenset()
        else:
            before = self.chosen
            if self.preset == ALL_LINEAR and not before:
                before = frozenset(kind.pattern for kind in self.chosen_kinds)
            self._take(before ^ {self.kinds[index - len(self.presets)].pattern})
        self.draw()
        self.post_message(self.Changed(self.targets))


def _named(kind: Kind) -> str:
    """What a kind is called in the list: the end that tells it from the others."""
    return kind.part if "[" not in kind.part else kind.pattern.rpartition("*.")[2]
