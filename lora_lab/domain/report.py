"""What every analysis returns: named scalars and tables, each number with its unit, formula and source.

A column may hold a vector (a curve of that row) or a matrix (a heatmap of that row); declaring it so is all that a
command line, a terminal screen and a page need to draw it. Nothing here knows who shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA: Final = "lora-lab/1"


class ColumnKind(StrEnum):
    """What a column's cells are; ``None`` is an undefined number in any of them."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BYTES = "bytes"
    SHAPE = "shape"  # list of integers
    LIST = "list"  # list of texts
    MAPPING = "mapping"  # text to number, shown as sub-columns
    CURVE = "curve"  # list of numbers, drawn over their index from 1
    HEATMAP = "heatmap"  # list of lists of numbers
    RECORDS = "records"  # list of mappings, shown as how many there are
    VALUE = "value"  # whatever JSON has: a setting, yes or no


@dataclass(frozen=True, slots=True)
class Column:
    """One quantity: its name in JSON, its title on screen, unit, formula and source."""

    id: str
    title: str
    kind: ColumnKind = ColumnKind.NUMBER
    unit: str = ""
    formula: str = ""
    reference: str = ""
    index_title: str = ""  # of a curve's horizontal axis, or "rows, columns" of a heatmap
    is_logarithmic: bool = False  # how a curve is best read
    is_marker: bool = False  # a NUMBER to be drawn as a level across the row's curves (an edge, a threshold)
    is_wide: bool = False  # left out where room is short, and of scalars for a person
    low: float | None = None  # ends of the quantity's range, where it has any: the scale of a heatmap's colours
    high: float | None = None

    @property
    def heading(self) -> str:
        """The title, with the unit where numbers are shown without one and the title does not end in it.

        Examples
        --------
        >>> Column("p50_seconds", "p50", unit="s").heading, Column("p50_milliseconds", "p50 ms", unit="ms").heading
        ('p50 (s)', 'p50 ms')
        >>> Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes").heading
        'Size'
        """
        if self.unit in ("", "bytes") or self.kind is ColumnKind.BYTES:
            return self.title
        last = self.title.rpartition(" ")[2].lower()
        return self.title if last in (self.unit, "seconds") else f"{self.title} ({self.unit})"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one kind; ``key`` names the column that tells them apart."""

    id: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    key: str = "module"


@dataclass(frozen=True, slots=True)
class Scalars:
    """Numbers about the whole; an empty ``id`` puts them at the top level of the JSON."""

    id: str
    title: str
    columns: tuple[Column, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a person should know: a stable code, a sentence, and the module it is about."""

    code: str
    message: str
    module: str | None = None

    def to_json(self) -> dict[str, str]:
        """The contract's ``{"code", "message", "module"?}``."""
        shown = {"code": self.code, "message": self.message}
        return shown if self.module is None else {**shown, "module": self.module}


@dataclass(frozen=True, slots=True)
class PartialRead:
    """What was moved to read parts of files that are elsewhere.

    etags : file name to what its store calls the whole content
    """

    etags: Mapping[str, str]
    fetched_bytes: int
    requests: int

    def to_json(self) -> dict[str, Any]:
        """Contract form."""
        return {"etags": dict(self.etags), "fetched_bytes": self.fetched_bytes, "requests": self.requests}


@dataclass(frozen=True, slots=True)
class InputRecord:
    """What was read: as typed, where it was, and the sha256 of the bytes."""

    locator: str
    path: str
    sha256: Mapping[str, str] = field(default_factory=dict)  # file name to digest
    revision: str | None = None
    partial: PartialRead | None = None  # None: all of it was on this machine

    def to_json(self) -> dict[str, Any]:
        """Contract form."""
        shown: dict[str, Any] = {"locator": self.locator, "path": self.path, "sha256": dict(self.sha256)}
        if self.revision is not None:
            shown["revision"] = self.revision
        if self.partial is not None:
            shown["partial"] = self.partial.to_json()
        return shown


@dataclass(frozen=True, slots=True)
class Report:
    """The result of looking: complete, and the same for every reader.

    ``verdict`` is what a check says; None for what is no check.
    """

    command: str
    title: str
    tables: tuple[Table, ...] = ()
    scalars: tuple[Scalars, ...] = ()
    findings: tuple[Finding, ...] = ()
    inputs: tuple[InputRecord, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    verdict: bool | None = None

    def table(self, id: str) -> Table:  # noqa: A002 - the field's own name
        """The table called `id`."""
        return next(table for table in self.tables if table.id == id)

    def to_json(self) -> dict[str, Any]:
        """One document as the contract promises it; numbers keep full precision, undefined ones are None."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "command": self.command,
            "inputs": [record.to_json() for record in self.inputs],
            "warnings": [finding.to_json() for finding in self.findings],
        }
        if self.parameters:
            document["parameters"] = dict(self.parameters)
        for group in self.scalars:
            if group.id:
                document[group.id] = dict(group.values)
            else:
                document.update(group.values)
        for table in self.tables:
            document[table.id] = [dict(row) for row in table.rows]
        return document
