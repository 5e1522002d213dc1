"""What a table is told of its columns and cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """What a cell shows: plain text, already safe, and one of the tones ``dim good warn bad a b`` or none."""

    text: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of fixed width, in cells; a flexible one takes what is left over."""

    id: str
    title: str
    width: int
    is_right: bool = False
    is_flexible: bool = False
    is_fixed: bool = False  # stays when others are scrolled out
    keeps_end: bool = False  # a text too long loses its middle: names often differ at their end
