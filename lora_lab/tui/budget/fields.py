"""Fields of the budget's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.widgets import Checkbox, Input

from lora_lab.tui import bindings
from lora_lab.tui.widgets.table import LabTable

if TYPE_CHECKING:
    from textual import events
    from textual.binding import BindingType


class NumberField(Input, inherit_bindings=False):
    """A whole number, perhaps with spaces or separators between its digits."""

    HELP_TITLE = "Number"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings.described(Input.BINDINGS, "field")]

    def __init__(self, value: str, *, id: str, placeholder: str = "", least: int = 0) -> None:  # noqa: A002
        super().__init__(value, id=id, placeholder=placeholder, compact=True, restrict=r"[0-9 _]*", max_length=18)
        self.least = least

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Letters are keys of the screen here: only digits are typed."""
        del key
        return character is not None and (character in " _" or (character.isascii() and character.isdigit()))

    async def _on_key(self, event: events.Key) -> None:
        if event.is_printable and not self.check_consume_key(event.key, event.character):
            event.prevent_default()  # the field would swallow it

    @property
    def number(self) -> int | None:
        """What is typed; None when there is nothing, or too little."""
        digits = "".join(character for character in self.value if character.isdigit())
        return max(self.least, int(digits)) if digits else None


class Switch(Checkbox):
    """A box that is seen to be ticked without colours."""

    @property
    def BUTTON_INNER(self) -> str:  # type: ignore[override]  # noqa: N802 - Textual's own name
        """What stands in the box."""
        return "x" if self.value else " "


class RankTable(LabTable, inherit_bindings=False):
    """One line for each rank; enter takes it."""

    HELP_TITLE = "Ranks"
    BINDINGS: ClassVar[list[BindingType]] = [*LabTable.BINDINGS]
