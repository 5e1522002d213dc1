"""A whole Report as JSON and back: what a child process sends and a cache keeps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lora_lab.domain.report import Column, ColumnKind, Finding, InputRecord, PartialRead, Report, Scalars, Table


def report_to_wire(report: Report) -> dict[str, Any]:
    """Everything a Report holds, columns included, as JSON can hold it."""
    return asdict(report)


def report_from_wire(document: dict[str, Any]) -> Report:
    """The Report that :func:`report_to_wire` was given."""
    return Report(
        command=document["command"],
        title=document["title"],
        tables=tuple(
            Table(table["id"], table["title"], _columns(table["columns"]), tuple(table["rows"]), table["key"])
            for table in document["tables"]
        ),
        scalars=tuple(
            Scalars(group["id"], group["title"], _columns(group["columns"]), group["values"])
            for group in document["scalars"]
        ),
        findings=tuple(Finding(**finding) for finding in document["findings"]),
        inputs=tuple(_input(record) for record in document["inputs"]),
        parameters=document["parameters"],
        verdict=document["verdict"],
    )


def _input(document: dict[str, Any]) -> InputRecord:
    partial = document.get("partial")
    return InputRecord(**{**document, "partial": None if partial is None else PartialRead(**partial)})


def _columns(documents: list[dict[str, Any]]) -> tuple[Column, ...]:
    return tuple(Column(**{**document, "kind": ColumnKind(document["kind"])}) for document in documents)
