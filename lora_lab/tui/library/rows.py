"""One line of the library, its columns, and how they are sorted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.library import EntryKind, LibraryEntry
from lora_lab.domain.modules import natural_key
from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.widgets.table import Cell, TableColumn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_lab.tui.library.digest import Digest

_NUMBER_WIDTH: Final = 7
BASE_WIDTH: Final = 12  # at most
NAME_WIDTH: Final = 15  # at least
COLUMNS: Final = (
    TableColumn("mark", "", 2, is_fixed=True),
    TableColumn("name", "name", NAME_WIDTH, is_flexible=True, is_fixed=True, keeps_end=True),
    TableColumn("base", "base", BASE_WIDTH),
    TableColumn("type", "type", 5),
    TableColumn("r", "r", 4, is_right=True),
    TableColumn("alpha", "α", 3, is_right=True),
    TableColumn("params", "params", 6, is_right=True),
    TableColumn("norm", "‖ΔW‖", _NUMBER_WIDTH, is_right=True),
    TableColumn("eff", "eff.r", 6, is_right=True),
    TableColumn("size", "size", 7, is_right=True),
    TableColumn("modified", "modified", 9, is_right=True),
)
TITLES: Final = {
    "name": "name",
    "base": "base model",
    "type": "type",
    "r": "rank",
    "alpha": "alpha",
    "params": "parameters",
    "norm": "‖ΔW‖_F",
    "eff": "effective rank",
    "size": "size",
    "modified": "modification time",
}
#: Under these names the columns are exported: as the JSON of the command line calls them.
EXPORT_NAMES: Final = {
    "name": "name",
    "base": "base_model",
    "type": "type",
    "r": "rank_max",
    "alpha": "alpha",
    "params": "parameters",
    "norm": "frobenius_norm",
    "eff": "mean_effective_rank",
    "size": "size_bytes",
    "modified": "modified_seconds",
}
#: Columns whose values come from a job.
MEASURED: Final = frozenset({"norm", "eff"})


@dataclass
class Row:
    """An entry, and what its spectrum says when there is one."""

    entry: LibraryEntry
    digest: Digest | None = None
    failure: str = ""  # why there is none
    name_key: tuple[Any, ...] = field(init=False)
    name: str = field(init=False)
    haystack: str = field(init=False)  # what a word of the filter is looked for in

    def __post_init__(self) -> None:
        entry = self.entry
        self.name = safe_text(entry.name)
        self.name_key = natural_key(entry.name)
        self.haystack = " ".join(
            filter(None, (entry.name, entry.base_model, entry.peft_type, entry.format, *entry.features))
        ).casefold()

    @property
    def is_measurable(self) -> bool:
        """Whether a spectrum can be asked for."""
        return self.entry.kind == EntryKind.ADAPTER and self.entry.error is None

    @property
    def type(self) -> str:
        """What it is, in a word."""
        if self.entry.kind == EntryKind.BASE:
            return "base"
        if "dora" in self.entry.features:
            return "DORA"
        return safe_text(self.entry.peft_type or self.entry.format or "")

    def total(self, name: str) -> float | None:
        """A number of the spectrum's totals."""
        value = self.digest.totals.get(name) if self.digest else None
        return None if value is None else float(value)

    def value(self, column: str) -> Any:
        """The column's value at full precision; None when there is none."""
        entry = self.entry
        values = {
            "name": entry.name,
            "base": entry.base_model,
            "type": self.type or None,
            "r": entry.rank_max,
            "alpha": entry.alpha,
            "params": entry.parameters,
            "size": entry.size_bytes,
            "modified": entry.modified_seconds,
        }
        if column == "norm":
            return self.total("frobenius_norm")
        if column == "eff":
            return self.total("mean_effective_rank")
        return values.get(column)

    def cell(self, column: str) -> Cell:
        """The column as shown."""
        entry = self.entry
        if column == "name":
            return Cell(self.name, "bad" if entry.error else "")
        if column == "base":
            return Cell(safe_text(short_base(entry.base_model)), "dim")
        if column == "type":
            return Cell(self.type or text.NOT_THERE, "" if self.is_measurable else "dim")
        if column in MEASURED:
            return self._measured(column)
        shown = {
            "r": self._ranks,
            "alpha": lambda: "mix" if self.has_mixed_alpha else text.compact(entry.alpha),
            "params": lambda: text.count(entry.parameters),
            "size": lambda: text.size(entry.size_bytes),
            "modified": self._age,
        }[column]()
        return Cell(shown, "dim" if shown == text.NOT_THERE or column == "modified" else "")

    @property
    def has_mixed_alpha(self) -> bool:
        """Whether modules differ in alpha."""
        return self.entry.alpha is None and self.is_measurable and self.entry.rank_max is not None

    def _ranks(self) -> str:
        low, high = self.entry.rank_min, self.entry.rank_max
        if high is None:
            return text.NOT_THERE
        return str(high) if low in (None, high) else f"{low}–{high}"

    def _age(self) -> str:
        stamp = self.entry.modified_seconds
        return text.age(None if stamp is None else max(0.0, time.time() - stamp))

    def _measured(self, column: str) -> Cell:
        if self.failure:
            return Cell("✗", "bad")
        if not self.is_measurable:
            return Cell(text.NOT_THERE, "dim")
        if self.digest is None:
            return Cell(text.PENDING, "dim")
        return Cell(text.fitted(self.value(column), _NUMBER_WIDTH if column == "norm" else _NUMBER_WIDTH - 1))


def short_base(base_model: str | None) -> str:
    """The part of a model's name that tells it apart: what stands after the last slash."""
    if not base_model:
        return text.NOT_THERE
    return base_model.rstrip("/").rpartition("/")[2] or base_model


def sort_rows(rows: Iterable[Row], column: str, *, is_descending: bool) -> list[Row]:
    """Sort by a column, then by name in natural order; rows without a value come last either way."""
    ordered = sorted(rows, key=lambda row: row.name_key)
    if column == "name":
        return ordered[::-1] if is_descending else ordered
    there = [(row.value(column), row) for row in ordered]
    with_value = [pair for pair in there if pair[0] is not None]
    with_value.sort(
        key=lambda pair: natural_key(pair[0].casefold()) if isinstance(pair[0], str) else pair[0],
        reverse=is_descending,
    )
    return [row for _, row in with_value] + [row for value, row in there if value is None]
