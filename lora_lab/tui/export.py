"""Copying and exporting what is on screen."""

from __future__ import annotations

import csv
import io
import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.domain.report import Report


class Copied(NamedTuple):
    """What ``y`` copies: the name for the toast, and tab-separated text."""

    what: str
    tsv: str


class ExportDocument(NamedTuple):
    """What ``x`` writes: a name for the file, column ids, and rows of values at full precision.

    report : the whole of which these are rows, where that is worth a file
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    report: Report | None = None


class ExportFormat(StrEnum):
    """How a document is written."""

    MARKDOWN = "md"  # the whole report
    WHOLE = "whole"  # the whole report as its JSON document
    CSV = "csv"
    JSON = "json"
    SVG = "svg"  # the screen as it stands


def as_tsv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write rows as tab-separated text with a header line; a tab or line break inside a cell becomes a space."""
    lines = ["\t".join(_cell(value) for value in row) for row in (columns, *rows)]
    return "\n".join(lines)


def as_csv(document: ExportDocument) -> str:
    """Write the rows as comma-separated values (RFC 4180); an undefined number is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(document.columns)
    writer.writerows([_flat(value) for value in row] for row in document.rows)
    return text.getvalue()


def as_json(document: ExportDocument) -> str:
    """Write the rows as a list of objects; numbers keep full precision."""
    rows = [dict(zip(document.columns, row, strict=True)) for row in document.rows]
    return json.dumps(rows, ensure_ascii=False, indent=2, default=str) + "\n"


def suggested_path(document: ExportDocument, form: ExportFormat) -> Path:
    """A name for the file that no file has yet, in the working directory."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", document.name).strip("-.")[:80] or "lora-lab"
    ending = "json" if form is ExportFormat.WHOLE else form
    path = Path(f"{stem}.{ending}")
    number = 2
    while path.exists():
        path = Path(f"{stem}-{number}.{ending}")
        number += 1
    return path


def _flat(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, default=str)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = repr(value) if isinstance(value, float) else str(_flat(value))
    return re.sub(r"[\t\r\n]+", " ", text)
