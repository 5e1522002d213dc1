"""One page about adapters that needs nothing but itself: no network, no script, readable in the dark and on paper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain import figures
from lora_lab.domain.folding import folded
from lora_lab.domain.report import ColumnKind
from lora_lab.reports.canvas import as_svg
from lora_lab.reports.figures import leading_modules
from lora_lab.safetext import safe_text
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lora_lab.domain.report import Column, Report, Table
    from lora_lab.reports.figures import Drawn

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_DRAWN: Final = (ColumnKind.CURVE, ColumnKind.HEATMAP, ColumnKind.RECORDS)
_TEXTS: Final = (ColumnKind.TEXT, ColumnKind.LIST, ColumnKind.VALUE)
_UNBOUNDED: Final = 10_000
_OPEN_ROWS: Final = 12  # a longer table is folded


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: what was looked at, as a Report, and the figures drawn from it.

    ``missing`` says why there is nothing.
    """

    id: str
    title: str
    about: str
    reports: tuple[Report, ...] = ()
    drawn: tuple[Drawn, ...] = ()
    missing: str = ""


def page(title: str, sections: Sequence[Section]) -> bytes:
    """Write the page, UTF-8; the same sections give the same bytes."""
    body = "\n".join([*_head(title, sections), *(line for section in sections for line in _section(section))])
    style = files("lora_lab.reports").joinpath("page.css").read_text(encoding="utf-8")
    document = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    return document.encode()


def _head(title: str, sections: Sequence[Section]) -> Iterator[str]:
    yield f"<header>\n<h1>{_text(title)}</h1>\n<p class=soft>lora-lab {__version__}</p>\n</header>"
    links = "".join(f'<li><a href="#{section.id}">{_text(section.title)}</a></li>' for section in sections)
    yield f"<nav aria-label=Contents><ul>{links}</ul></nav>"
    yield from _inputs(report for section in sections for report in section.reports)


def _inputs(reports: Iterable[Report]) -> Iterator[str]:
    seen: dict[str, Any] = {}
    for report in reports:
        for record in report.inputs:
            seen.setdefault(record.locator, record)
    if not seen:
        return
    yield "<details><summary>What was read</summary><dl>"
    for locator, record in seen.items():
        hashes = "<br>".join(f"<code>{_text(digest)}</code> {_text(name)}" for name, digest in record.sha256.items())
        yield f"<dt>{_text(locator)}</dt><dd>{hashes}</dd>"
    yield "</dl></details>"


def _section(section: Section) -> Iterator[str]:
    yield f'<section id="{section.id}">\n<h2>{_text(section.title)}</h2>\n<p>{_text(section.about)}</p>'
    if section.missing:
        yield f"<ul class=warnings><li>{_text(section.missing)}</li></ul>"
    for drawn in section.drawn:
        label = escape(safe_text(drawn.title), quote=True)
        yield f"<figure>\n{as_svg(drawn.figure, label)}\n<figcaption>{_text(drawn.caption)}</figcaption>\n</figure>"
    for report in section.reports:
        yield from _report(report, has_many=len(section.reports) > 1)
    yield "</section>"


def _report(report: Report, *, has_many: bool) -> Iterator[str]:
    if has_many:
        yield f"<h3>{_text(report.title)}</h3>"
    facts = [
        f"<dt>{_text(column.heading)}</dt><dd>{_cell(column, group.values.get(column.id)) or 'none'}</dd>"
        for group in report.scalars
        for column in group.columns
        if column.kind not in _DRAWN
    ]
    if facts:
        yield f"<dl>{''.join(facts)}</dl>"
    if report.findings:
        items = "".join(
            f"<li>{_text(finding.message)}{f' And {more} more like this.' if more else ''}</li>"
            for finding, more in folded(report.findings)
        )
        yield f"<ul class=warnings>{items}</ul>"
    if report.command == "amplify":
        yield from _table_seven(report)
    for table in report.tables:
        if table.rows:
            yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    columns = [
        column
        for column in table.columns
        if column.kind not in _DRAWN
        and (column.id == table.key or any(row.get(column.id) is not None for row in table.rows))
    ]
    heads = []
    for column in columns:
        keys = _keys(table, column)
        for key in keys or [""]:
            shown = f"{column.title} {key}" if key else column.heading
            kind = " class=text" if column.kind in _TEXTS else ""
            heads.append(
                f'<th scope=col{kind} title="{escape(safe_text(column.formula), quote=True)}">{_text(shown)}</th>'
            )
    lines = []
    for row in table.rows:
        cells = "".join(_cells(column, row, _keys(table, column)) for column in columns)
        lines.append(f"<tr>{cells}</tr>")
    whole = (
        f"<div class=scroll><table><caption>{_text(table.title)}</caption><thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    if len(table.rows) > _OPEN_ROWS:
        yield f"<details><summary>{_text(table.title)}, {len(table.rows)} rows</summary>{whole}</details>"
    else:
        yield whole


def _keys(table: Table, column: Column) -> list[str]:
    if column.kind is not ColumnKind.MAPPING:
        return []
    return list(dict.fromkeys(key for row in table.rows for key in (row.get(column.id) or {})))


def _cells(column: Column, row: Mapping[str, Any], keys: Sequence[str]) -> str:
    if column.kind is ColumnKind.MAPPING:
        values = row.get(column.id) or {}
        return "".join(f"<td>{_number(values.get(key))}</td>" for key in keys)
    kind = " class=text" if column.kind in _TEXTS else ""
    return f"<td{kind}>{_cell(column, row.get(column.id))}</td>"


def _table_seven(report: Report) -> Iterator[str]:
    """The paper's table 7 for the modules that it shows, in its own arrangement."""
    rows = {row["module"]: row for row in report.table("modules").rows if row["amplification"] is not None}
    for module in leading_modules(list(rows)):
        row = rows[module]
        projected = row["projected"]
        cells = "".join(f"<td>{_number(projected.get(of))}</td>" for of in ("delta", "base", "random"))
        yield (
            f"<div class=scroll><table><caption>‖UᵀWV‖_F of {_text(module)}, with U, V the first {row['rank']} "
            "singular directions of each; after table 7 of arXiv 2106.09685</caption>"
            "<thead><tr><th scope=col></th><th scope=col>ΔW</th><th scope=col>W</th><th scope=col>random</th>"
            "<th scope=col>‖W‖_F</th><th scope=col>‖ΔW‖_F</th><th scope=col>amplification</th></tr></thead>"
            f"<tbody><tr><td>r = {row['rank']}</td>{cells}<td>{_number(row['base_norm'])}</td>"
            f"<td>{_number(row['delta_norm'])}</td><td>{_number(row['amplification'])}</td></tr></tbody></table></div>"
        )


def _cell(column: Column, value: Any) -> str:
    """One value as text that HTML does not obey."""
    if value is None:
        return figures.NOT_THERE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column.kind is ColumnKind.BYTES:
        return figures.size(value)
    if column.kind is ColumnKind.SHAPE:
        return "×".join(str(side) for side in value)
    if column.kind is ColumnKind.LIST:
        return _text(", ".join(str(item) for item in value))
    if column.kind is ColumnKind.VALUE and not isinstance(value, str | int | float):
        return _text(json.dumps(value, ensure_ascii=False))
    return _number(value) if isinstance(value, int | float) else _text(value)


def _number(value: float | None) -> str:
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")
    if value is not None and value.is_integer() and abs(value) < _UNBOUNDED:
        return f"{value:.0f}"
    return figures.number(value)


def _text(text: object) -> str:
    return escape(safe_text(text))
