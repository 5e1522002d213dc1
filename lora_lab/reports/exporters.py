"""The built-in exporters: the Report as JSON and as CSV, with every digit."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.domain.report import Report, Table


class JsonExporter:
    """The one document that ``--json`` prints."""

    id = "json"
    title = "JSON"
    suffix = ".json"

    def export(self, report: Report) -> bytes:
        """The contract's document, UTF-8, numbers in full precision, undefined ones null."""
        document = report.to_json()
        text = json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            return text.encode()
        except UnicodeEncodeError:  # the name of a file is no text in UTF-8: in escapes it is
            return (json.dumps(document, allow_nan=False) + "\n").encode()


class CsvExporter:
    """The largest table, one line for each row."""

    id = "csv"
    title = "CSV"
    suffix = ".csv"

    def export(self, report: Report) -> bytes:
        """RFC 4180, UTF-8: a mapping has a column for each key, a curve is its numbers separated by spaces.

        A value that a spreadsheet would take for a formula is preceded by an apostrophe.
        """
        table = max(report.tables, key=lambda table: len(table.rows), default=None)
        text = io.StringIO()
        if table is not None:
            rows = [_flat(row) for row in table.rows]
            names = list(dict.fromkeys(name for row in rows for name in row)) or _names(table)
            writer = csv.DictWriter(text, names, restval="", lineterminator="\r\n")
            writer.writeheader()
            writer.writerows(rows)
        return text.getvalue().encode(errors="backslashreplace")  # a file's name may be no UTF-8


def _names(table: Table) -> list[str]:
    return [column.id for column in table.columns]


def _flat(row: Mapping[str, Any]) -> dict[str, str]:
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            cells.update((f"{name}.{key}", _cell(item)) for key, item in value.items())
        else:
            cells[name] = _cell(value)
    return cells


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return " ".join(_cell(item) for item in value)
    if isinstance(value, float):
        return repr(value)
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in "=+-@\t\r" and text else text
