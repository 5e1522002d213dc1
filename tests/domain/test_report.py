"""A Report is one document with full precision."""

from __future__ import annotations

import json

import pytest

from lora_lab.domain.parameters import Parameter, ParameterKind, parse_parameters
from lora_lab.domain.report import Column, Finding, InputRecord, Report, Scalars, Table
from lora_lab.errors import LoraLabError


def make_report() -> Report:
    return Report(
        command="spectrum",
        title="t",
        tables=(
            Table("modules", "Modules", (Column("module", "Module"),), ({"module": "a", "x": 0.1 + 0.2, "y": None},)),
        ),
        scalars=(Scalars("", "", (), {"format": "peft"}), Scalars("totals", "", (), {"modules": 1})),
        findings=(Finding("zero_delta", "It is zero.", "a"), Finding("note", "n")),
        inputs=(InputRecord("./a", "/a", {"f": "00"}),),
    )


def test_document_has_the_common_fields() -> None:
    """Schema, command, inputs and warnings are always there; tables and scalars follow under their ids."""
    document = json.loads(json.dumps(make_report().to_json(), allow_nan=False))
    assert document["schema"] == "lora-lab/1"
    assert document["command"] == "spectrum"
    assert document["inputs"] == [{"locator": "./a", "path": "/a", "sha256": {"f": "00"}}]
    assert document["warnings"] == [
        {"code": "zero_delta", "message": "It is zero.", "module": "a"},
        {"code": "note", "message": "n"},
    ]
    assert document["modules"] == [{"module": "a", "x": 0.1 + 0.2, "y": None}]
    assert (document["format"], document["totals"]) == ("peft", {"modules": 1})


def test_tables_are_found_by_id() -> None:
    """Asking for a table gives that table."""
    assert make_report().table("modules").rows[0]["module"] == "a"


DECLARED = (
    Parameter("n", "N", ParameterKind.INTEGER, 3, minimum=1, maximum=9),
    Parameter("x", "X", ParameterKind.NUMBER, 0.5, minimum=0),
    Parameter("on", "On", ParameterKind.BOOLEAN, default=False),
    Parameter("c", "C", ParameterKind.CHOICE, "a", choices=("a", "b")),
    Parameter("t", "T", ParameterKind.TEXT, ""),
)


def test_parameters_are_read_and_defaulted() -> None:
    """Given values are converted, the rest keep their defaults."""
    assert parse_parameters(DECLARED, {"n": "4", "on": "yes", "c": "b"}) == {
        "n": 4,
        "x": 0.5,
        "on": True,
        "c": "b",
        "t": "",
    }


@pytest.mark.parametrize(
    "given", [{"n": "0"}, {"n": "10"}, {"n": "1.5"}, {"x": "nan"}, {"x": "-1"}, {"on": "maybe"}, {"c": "z"}, {"q": "1"}]
)
def test_bad_parameters_are_named(given: dict[str, str]) -> None:
    """A value that does not fit is refused in a sentence that names the parameter."""
    with pytest.raises(LoraLabError, match=next(iter(given))):
        parse_parameters(DECLARED, given)


def test_repeatable_parameters() -> None:
    """A repeated parameter is a tuple in the order given; any other is given once; None is not given."""
    several = Parameter("rank", "Rank", ParameterKind.INTEGER, None, minimum=1, is_repeatable=True)
    single = Parameter("top", "Top", ParameterKind.INTEGER, None, minimum=1)
    assert parse_parameters((several, single), {}) == {"rank": (), "top": None}
    assert parse_parameters((several, single), {"rank": ["8", "4"], "top": ["3"]}) == {"rank": (8, 4), "top": 3}
    assert parse_parameters((several, single), {"rank": 8, "top": None}) == {"rank": (8,), "top": None}
    with pytest.raises(LoraLabError, match="top was given 2 times"):
        parse_parameters((single,), {"top": ["3", "4"]})
    with pytest.raises(LoraLabError, match="rank is '0', expected a finite integer from 1"):
        parse_parameters((several,), {"rank": ["8", "0"]})
