"""Modules as a grid of layers and projections, and every number that Reports hold of them. No widget, no terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_lab.domain.modules import layer_of, natural_key, projection_of
from lora_lab.domain.report import ColumnKind
from lora_lab.tui.detail.tables import Field, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.domain.report import Table

_NUMBERS: Final = (
    ColumnKind.NUMBER,
    ColumnKind.INTEGER,
    ColumnKind.BYTES,
    ColumnKind.MAPPING,
    ColumnKind.RECORDS,
)


class Metric(NamedTuple):
    """One number of every module: a column of a table, and whose table it is."""

    source: str  # id of the analysis
    source_title: str
    field: Field
    rows: Mapping[str, Mapping[str, Any]]

    @property
    def id(self) -> str:
        """What it is remembered by."""
        return f"{self.source}.{self.field.id}"

    @property
    def title(self) -> str:
        """Column title and what it is a column of."""
        return f"{self.field.title} · {self.source_title}"

    def value(self, module: str) -> float | None:
        """The number of `module`; None when it is undefined, or not known yet."""
        row = self.rows.get(module)
        value = None if row is None else self.field.value(row)
        if isinstance(value, list | tuple):
            return len(value)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def metrics_of(source: str, source_title: str, table: Table) -> list[Metric]:
    """Every column of numbers of a table about modules."""
    if table.key != "module":
        return []
    rows = {str(row.get("module")): row for row in table.rows}
    return [Metric(source, source_title, field, rows) for field in fields_of(table) if field.column.kind in _NUMBERS]


class Grid(NamedTuple):
    """Layers downwards, projections across; ``modules`` has None where a layer lacks a projection."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    modules: tuple[tuple[str | None, ...], ...]
    outside: tuple[str, ...]  # modules without a layer's number

    def place_of(self, module: str) -> tuple[int, int] | None:
        """Row and column of `module`, from 0."""
        for row, members in enumerate(self.modules):
            if module in members:
                return (row, members.index(module))
        return None

    def values(self, metric: Metric) -> list[list[float | None]]:
        """The matrix to draw."""
        return [[None if module is None else metric.value(module) for module in members] for members in self.modules]


def grid_of(modules: Sequence[str]) -> Grid:
    """Arrange modules by the number of their layer and by what follows it.

    Where a model numbers blocks inside its layers, each block is a row if that leaves fewer cells empty.

    Examples
    --------
    >>> grid = grid_of(["h.0.attn.q", "h.0.attn.v", "h.1.attn.q", "head"])
    >>> grid.rows, grid.columns, grid.modules[1], grid.outside
    (('L0', 'L1'), ('q', 'v'), ('h.1.attn.q', None), ('head',))
    """
    inside = [module for module in modules if layer_of(module) is not None]
    outside = tuple(sorted((module for module in modules if layer_of(module) is None), key=natural_key))
    by_layer, by_block = (_arranged(inside, outside, is_by_block=choice) for choice in (False, True))
    return by_block if _cells(by_block) < _cells(by_layer) else by_layer


def _cells(grid: Grid) -> int:
    return len(grid.rows) * len(grid.columns)


def _arranged(modules: Sequence[str], outside: tuple[str, ...], *, is_by_block: bool) -> Grid:
    cells: dict[tuple[tuple[str, str], str], str] = {}
    for module in modules:
        stem, layer, inside = _split(module, is_by_block=is_by_block)
        cells[(stem, layer), inside] = module
    layers = list(dict.fromkeys(layer for layer, _ in cells))
    stems = list(dict.fromkeys(stem for stem, _ in layers))
    layers.sort(key=lambda layer: (stems.index(layer[0]), natural_key(layer[1])))
    paths = list(dict.fromkeys(inside for _, inside in cells))
    return Grid(
        tuple(_row_names(layers, stems)),
        tuple(_bare([_short(path, paths) for path in paths])),
        tuple(tuple(cells.get((layer, path)) for path in paths) for layer in layers),
        outside,
    )


def _split(module: str, *, is_by_block: bool) -> tuple[str, str, str]:
    """What stands before the layer's number, the layer, and what follows it.

    With blocks the layer goes on to the last number: ``stages.0.blocks.1.mlp.fc1`` is block ``0.blocks.1``.
    """
    parts = module.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isascii() and part.isdigit()]
    first, last = numbers[0], numbers[-1] if is_by_block else numbers[0]
    return ".".join(parts[:first]), ".".join(parts[first : last + 1]), ".".join(parts[last + 1 :])


def _row_names(layers: Sequence[tuple[str, str]], stems: Sequence[str]) -> list[str]:
    """``L3``, ``L2.8`` for block 8 of layer 2, or with the stem where there are several."""
    numbers = [".".join(part for part in layer.split(".") if part.isdigit()) for _, layer in layers]
    if len(stems) == 1:
        names = [f"L{number}" for number in numbers]
    else:
        names = [f"{_short(stem, stems)} {number}" for (stem, _), number in zip(layers, numbers, strict=True)]
    return names if len(set(names)) == len(names) else [f"{stem}.{layer}" for stem, layer in layers]


def _short(path: str, paths: Iterable[str]) -> str:
    """As many parts from the end of `path` as tell it from the other paths; whole when none do."""
    if not path:
        return "·"
    others = [other for other in paths if other != path]
    name = projection_of(path)
    if all(projection_of(other) != name for other in others):
        return name
    parts = path.split(".")
    for count in range(2, len(parts)):
        ending = ".".join(parts[-count:])
        if not any(other == ending or other.endswith(f".{ending}") for other in others):
            return ending
    return path


def _bare(names: Sequence[str]) -> list[str]:
    """Names without the ending that all of them share, such as ``_proj``."""
    endings = {name.rpartition("_")[2] for name in names if "_" in name}
    if len(names) < 2 or len(endings) != 1 or not all("_" in name for name in names):
        return list(names)
    return [name.rpartition("_")[0] for name in names]
