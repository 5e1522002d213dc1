"""The modules that two adapters share, by how much their subspaces overlap."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final

from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.detail.outline import Outline, short_labels
from lora_lab.tui.widgets.table import Cell, LabTable, TableColumn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.binding import BindingType

_BAR, _LONG_BAR = 3, 8
_WIDE: Final = 34  # cells, from which on there is room for the long bar
_VALUE: Final = 6
_LEAST_NAME: Final = 8
_COLUMN_KEYS: Final = ("table.left", "table.right")  # there is nothing to choose a column for


class Order(StrEnum):
    """The quantity that modules are sorted by, largest first; natural is by name."""

    PHI = "phi_full"
    NATURAL = "natural"
    COSINE = "cosine"
    OVER_RANDOM = "over_random"

    @property
    def next(self) -> Order:
        """The one after it, round and round."""
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]

    def quantity(self, row: Mapping[str, Any]) -> float | None:
        """The quantity of one row; None where it is undefined."""
        if self is Order.OVER_RANDOM:
            phi, chance = row.get("phi_full"), row.get("phi_full_random")
            return phi / chance if phi is not None and chance else None
        found: float | None = row.get("cosine" if self is Order.COSINE else "phi_full")
        return found


#: Title of the column, and the words under the list.
TITLES: Final = {
    Order.PHI: ("φ", "by φ"),
    Order.NATURAL: ("φ", "natural order"),
    Order.COSINE: ("cos", "by cosine of ΔW"),
    Order.OVER_RANDOM: ("×rand", "by φ over random"),
}


class ModuleList(LabTable, inherit_bindings=False):
    """Modules, each with a bar and a number."""

    HELP_TITLE = "Modules"
    HELP = "φ of all directions of A and all of B: 1 when one subspace holds the other, 0 when they share nothing."
    BINDINGS: ClassVar[list[BindingType]] = [
        binding for binding in LabTable.BINDINGS if getattr(binding, "id", "") not in _COLUMN_KEYS
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(_columns(Order.PHI, _BAR), self._shown_cell, id=id)
        self.rows: Mapping[str, Mapping[str, Any]] = {}
        self.order = Order.PHI
        self.filter = ""
        self._outline = Outline(())
        self._labels: dict[str, str] = {}
        self._largest = 1.0
        self.has_own_scale = False  # bars up to the largest value instead of 1

    @property
    def _bar(self) -> int:
        return _LONG_BAR if self.size.width >= _WIDE else _BAR

    def on_resize(self) -> None:
        """Take the bar that there is room for."""
        self.columns = _columns(self.order, self._bar)
        super().on_resize()

    @property
    def modules(self) -> tuple[str, ...]:
        """All of them, as they came."""
        return self._outline.modules

    def show_rows(
        self, rows: Mapping[str, Mapping[str, Any]], *, cursor: str | None = None, stays_on_top: bool = False
    ) -> None:
        """Show these rows; while they arrive a cursor on the first line may stay on the first line."""
        self.rows = rows
        if tuple(rows) != self._outline.modules:
            self._outline = Outline(tuple(rows))
            shorts = short_labels(self._outline.modules)
            self._labels = {module: safe_text(label) for module, label in zip(rows, shorts, strict=True)}
        self.lay_out(cursor=cursor, stays_on_top=stays_on_top and self.cursor == 0)

    def lay_out(self, *, cursor: str | None = None, stays_on_top: bool = False) -> None:
        """Filter and sort; the cursor stays on its row unless another one is named."""
        self._outline.filter = self.filter
        shown = self._outline.shown_modules()
        if self.order is not Order.NATURAL:
            values = {module: self.order.quantity(self.rows[module]) for module in shown}
            shown.sort(key=lambda module: _descending(values[module]))
        known = [value for value in map(self.order.quantity, self.rows.values()) if value is not None]
        is_own = self.has_own_scale or self.order is Order.OVER_RANDOM
        self._largest = max(map(abs, known), default=1.0) if is_own else 1.0
        self.columns = _columns(self.order, self._bar)
        self.set_rows(shown, cursor=shown[0] if stays_on_top and shown else cursor)

    def _shown_cell(self, key: str, column: str) -> Cell:
        if column == "module":
            return Cell(self._labels.get(key, ""))
        value = self.order.quantity(self.rows[key])
        if value is None or not math.isfinite(value):
            return Cell(text.NOT_THERE if column == "value" else "", "dim")
        if column == "bar":
            return Cell(text.bar(abs(value) / self._largest if self._largest else 0.0, self._bar), "a")
        return Cell(text.fitted(value, _VALUE))


def _descending(value: float | None) -> tuple[bool, float]:
    """Sort key: largest first, undefined last."""
    return (value is None, -(value or 0.0))


def _columns(order: Order, bar: int) -> tuple[TableColumn, ...]:
    return (
        TableColumn("module", "module", _LEAST_NAME, is_flexible=True, is_fixed=True, keeps_end=True),
        TableColumn("bar", "", bar),
        TableColumn("value", TITLES[order][0], _VALUE, is_right=True),
    )
