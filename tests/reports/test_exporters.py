"""A Report as a file keeps every digit."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from builders import factors, write_adapter

from lora_lab import LoraLabError, Session


def test_json_is_the_contracts_document(tmp_path: Path) -> None:
    """What the exporter writes is what the Report says."""
    session = Session()
    report = session.spectrum(str(write_adapter(tmp_path / "a")))
    assert json.loads(session.export(report, "json")) == json.loads(json.dumps(report.to_json()))


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    """Numbers read back are the numbers of the Report; mappings are columns, curves are lists of numbers."""
    session = Session()
    report = session.spectrum(str(write_adapter(tmp_path / "a")))
    rows = list(csv.DictReader(io.StringIO(session.export(report, "csv").decode())))
    for read, row in zip(rows, report.table("modules").rows, strict=True):
        assert read["module"] == row["module"]
        assert float(read["frobenius_norm"]) == row["frobenius_norm"]
        assert [float(value) for value in read["singular_values"].split()] == row["singular_values"]
        assert int(read["energy_rank.0.9"]) == row["energy_rank"]["0.9"]


def test_csv_is_no_formula(tmp_path: Path) -> None:
    """A module called like a spreadsheet's formula is written as text."""
    session = Session()
    report = session.inspect(str(write_adapter(tmp_path / "a", factors({"=HYPERLINK(0)": (4, 4)}))))
    (row,) = csv.DictReader(io.StringIO(session.export(report, "csv").decode()))
    assert row["module"] == "'=HYPERLINK(0)"


def test_an_unknown_exporter_is_named(tmp_path: Path) -> None:
    """With those that there are."""
    session = Session()
    with pytest.raises(LoraLabError, match="'pdf', expected one of: json, csv"):
        session.export(session.plugins(), "pdf")
