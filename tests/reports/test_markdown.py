"""Markdown that shows what the report says, and obeys nothing that a file said."""

from __future__ import annotations

from lora_lab import Session
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.reports.markdown import MarkdownExporter


def test_tables_and_scalars_as_a_person_reads_them() -> None:
    """Units in the heading, dashes for what is not known, columns that say nothing left out."""
    columns = (
        Column("id", "Strategy", ColumnKind.TEXT),
        Column("seconds", "p50", unit="s"),
        Column("moved", "Moved", ColumnKind.BYTES, unit="bytes"),
        Column("exact", "Exact", ColumnKind.VALUE),
        Column("empty", "Empty"),
        Column("curve", "Curve", ColumnKind.CURVE),
    )
    rows = (
        {"id": "fused", "seconds": 0.123456, "moved": 2_000_000, "exact": False, "curve": [1.0]},
        {"id": "undo", "seconds": None, "moved": None, "exact": True},
    )
    scalars = Scalars("environment", "Environment", (Column("device", "Device", ColumnKind.TEXT),), {"device": "cpu"})
    report = Report("bench swap", "Swaps", (Table("s", "Strategies", columns, rows, "id"),), (scalars,))
    assert MarkdownExporter().export(report).decode() == (
        "# Swaps\n\n`lora-lab bench swap`\n\n## Strategies\n\n"
        "| Strategy | p50 (s) | Moved | Exact |\n|---|--:|--:|---|\n"
        "| fused | 0.1235 | 2.00 MB | no |\n| undo | — | — | yes |\n\n"
        "## Environment\n\n|  |  |\n|---|---|\n| Device | cpu |\n"
    )


def test_text_of_files_stays_text() -> None:
    """Neither markup, nor HTML, nor another cell, nor another line; names keep their underscores."""
    nasty = "a|b <img src=x> [l](u) *x* `c`\n# q_proj \x1b[31m"
    table = Table("s", nasty, (Column("id", "Name", ColumnKind.TEXT),), ({"id": nasty},), "id")
    report = Report("inspect", nasty, (table,), findings=(Finding("odd", nasty),))
    text = MarkdownExporter().export(report).decode()
    assert "\x1b" not in text
    assert "q_proj" in text
    assert [line[0] for line in text.splitlines() if line] == ["#", "`", "*", "#", "|", "|", "|"]
    for wild in ("<", "[l]", " *x*", "a|b"):
        assert wild not in text.replace(f"\\{wild.strip()[0]}", "")


def test_it_is_one_of_the_exporters() -> None:
    """By the id that ``--format`` takes."""
    report = Report("ls", "Library")
    assert Session(cache=False).export(report, "markdown") == b"# Library\n\n`lora-lab ls`\n"
