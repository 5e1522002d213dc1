"""A Report as Markdown, for an issue, a pull request or a README."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain import figures
from lora_lab.domain.report import ColumnKind
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.report import Column, Report, Scalars, Table

_DRAWN: Final = (ColumnKind.CURVE, ColumnKind.HEATMAP)
_RIGHT: Final = (ColumnKind.INTEGER, ColumnKind.NUMBER, ColumnKind.BYTES, ColumnKind.MAPPING)
# What Markdown or HTML would take for more than itself; underscores inside of words are left alone by both.
_SPECIAL: Final = re.compile(r"([\\`*\[\]<>|#~]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z]))")


class MarkdownExporter:
    """Headings, warnings and tables, in the digits that the screen shows."""

    id = "markdown"
    title = "Markdown"
    suffix = ".md"

    def export(self, report: Report) -> bytes:
        """UTF-8, tables as of GitHub; curves and matrices are left to other formats."""
        lines = [f"# {_text(report.title or report.command)}", "", f"`lora-lab {_code(report.command)}`"]
        if report.findings:
            lines += ["", *(f"* ⚠ {_text(finding.message)}" for finding in report.findings)]
        for table in report.tables:
            if table.rows:
                lines += ["", f"## {_text(table.title)}", "", *_table(table)]
        for group in report.scalars:
            rows = list(_scalars(group))
            if rows:
                lines += ["", f"## {_text(group.title)}", "", *_lines(["", ""], [False, False], rows)]
        return ("\n".join(lines) + "\n").encode(errors="backslashreplace")


def _scalars(group: Scalars) -> Iterator[list[str]]:
    for column in group.columns:
        if column.kind not in _DRAWN and column.id in group.values:
            yield [_heading(column), _cell(column, group.values[column.id])]


def _table(table: Table) -> Iterator[str]:
    columns = [column for column in table.columns if column.kind not in _DRAWN]
    said = [
        column
        for column in columns
        if column.id == table.key or any(row.get(column.id) not in (None, "", [], ()) for row in table.rows)
    ]
    rows = [[_cell(column, row.get(column.id)) for column in said] for row in table.rows]
    yield from _lines([_heading(column) for column in said], [column.kind in _RIGHT for column in said], rows)


def _lines(titles: Sequence[str], is_right: Sequence[bool], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'|'.join('--:' if right else '---' for right in is_right)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _heading(column: Column) -> str:
    return _text(column.heading)


def _cell(column: Column, value: Any) -> str:
    """One value on one line."""
    if value is None:
        return figures.NOT_THERE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column.kind is ColumnKind.BYTES and isinstance(value, int):
        return figures.size(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, float):
        return figures.number(value)
    if isinstance(value, dict):
        return ", ".join(f"{_text(key)} {_cell(column, item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        if any(isinstance(item, dict) for item in value):
            return _text(json.dumps(value, ensure_ascii=False, default=str))
        return ("×" if column.kind is ColumnKind.SHAPE else ", ").join(_cell(column, item) for item in value)
    return _text(value)


def _text(value: object) -> str:
    """Text that stands for itself, on one line."""
    return _SPECIAL.sub(r"\\\1", safe_text(value))


def _code(value: object) -> str:
    return safe_text(value).replace("`", "'")
