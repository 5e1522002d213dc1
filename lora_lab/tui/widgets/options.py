"""A list of which one line is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.widgets import OptionList

from lora_lab.tui import bindings

if TYPE_CHECKING:
    from textual.binding import BindingType


class Options(OptionList, inherit_bindings=False):
    """Textual's list with the keys of every other one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings.described(OptionList.BINDINGS, "options"),
        *bindings.OPTIONS,
    ]
