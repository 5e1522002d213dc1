"""The commands made from declarations: the library's numbers, the contract's fields, and what a check's no means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import factors, write_adapter, write_base

from lora_lab import Session
from lora_lab.cli import run

# What the contract promises beyond the common fields: at the top level, and in every row of a table.
PROMISED: dict[str, tuple[set[str], dict[str, set[str]]]] = {
    "overlap": (
        {"side", "only_in_a", "only_in_b", "modules"},
        {
            "modules": {
                "module",
                "phi",
                "phi_random",
                "principal_angles_radians",
                "grassmann_distance",
                "projection_distance",
                "cosine",
            }
        },
    ),
    "amplify": ({"modules"}, {"modules": {"module", "rank", "delta_norm", "base_norm", "projected", "amplification"}}),
    "intruders": ({"modules"}, {"modules": {"module", "intruders"}}),
    "interference": ({"modules", "pairs"}, {"pairs": {"a", "b", "cosine"}}),
    "health": ({"modules"}, {"modules": {"module", "findings", "suggested_rank", "relative_error"}}),
    "diff": (
        {"modules", "config", "identical"},
        {
            "modules": {
                "module",
                "in",
                "shape_a",
                "shape_b",
                "rank_a",
                "rank_b",
                "difference_norm",
                "relative_difference",
                "cosine",
                "phi",
            }
        },
    ),
    "budget": (
        {"rows"},
        {
            "rows": {
                "targets",
                "rank",
                "parameters",
                "share",
                "bytes",
                "compression",
                "bytes_for_tasks",
                "training_bytes",
            }
        },
    ),
    "intrinsic": (
        {"modules"},
        {"modules": {"module", "shape", "singular_values", "energy_rank", "reconstruction"}},
    ),
    "check": ({"ok", "matched", "prefix", "unmatched", "shape_mismatch", "dead"}, {}),
}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "one", seed=1)
    write_adapter(tmp_path / "two", seed=2, rank=3, lora_alpha=4, r=3)
    write_base(tmp_path / "base")
    write_base(tmp_path / "tuned", seed=5)
    return tmp_path


def arguments(id: str, library: Path) -> list[str]:
    one, two, base, tuned = (str(library / name) for name in ("one", "two", "base", "tuned"))
    return {
        "overlap": [one, two],
        "interference": [one, two],
        "diff": [one, two],
        "amplify": [one, "--base", base],
        "intruders": [one, "--base", base],
        "check": [one, "--base", base],
        "health": [one],
        "budget": [base, "--rank", "4"],
        "intrinsic": [base, tuned],
    }[id]


def cli(*words: str) -> int:
    return run(list(words), open_application=lambda *_: 0)


@pytest.mark.parametrize("id", PROMISED)
def test_one_document_with_the_promised_fields(id: str, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Common fields, the command's own, and in every row what the contract names."""
    assert cli(id, *arguments(id, library), "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    top, rows = PROMISED[id]
    assert {"schema", "command", "inputs", "warnings"} | top <= document.keys()
    assert document["command"] == id
    assert all(record["sha256"] for record in document["inputs"])
    for table, fields in rows.items():
        assert document[table]
        for row in document[table]:
            assert fields <= row.keys()


@pytest.mark.parametrize("id", PROMISED)
def test_a_person_sees_a_table(id: str, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json there is text, nothing of Python's own in it, and no line is empty of sense."""
    assert cli(id, *arguments(id, library)) == 0
    printed = capsys.readouterr().out
    assert printed.strip()
    for odd in ("None", "nan", "{'", "[["):
        assert odd not in printed


def test_the_same_numbers_as_the_library(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints what Session.analyze computes, digit for digit; --module restricts it."""
    assert cli("overlap", *arguments("overlap", library), "--side", "left", "--module", "v_proj", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    report = Session(cache=False).analyze(
        "overlap", arguments("overlap", library), parameters={"side": "left"}, modules=["v_proj"]
    )
    assert document["modules"] == report.to_json()["modules"]
    assert [row["module"] for row in document["modules"]] == ["model.layers.2.self_attn.v_proj"]
    assert document["parameters"]["side"] == "left"


def test_what_a_no_means(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """check: exit 1 when something does not land. diff: only when asked, and 0 for the same."""
    lost = {name.replace("q_proj", "q_prof"): tensor for name, tensor in factors().items()}
    write_adapter(tmp_path / "lost", lost)
    base = str(library / "base")
    assert cli("check", str(tmp_path / "lost"), "--base", base, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["unmatched"][0]["suggestions"][0] == "model.layers.2.self_attn.q_proj"
    assert cli("analyze", "check", str(tmp_path / "lost"), "--base", base) == 1
    both = arguments("diff", library)
    assert cli("diff", *both) == 0
    assert cli("diff", *both, "--exit-code") == 1
    assert cli("diff", both[0], both[0], "--exit-code") == 0


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["overlap", "one"], "got one input, expected 2"),
        (["overlap", "one", "two", "--side", "middle"], "expected one of right, left, A, B"),
        (["amplify", "one"], "needs the base model"),
        (["amplify", "one", "--base", "base", "--rank", "x"], "The parameter rank is 'x'"),
        (["budget"], "There is no model to take shapes from"),
        (["budget", "--matrix", "1x2"], "expected COUNTxOUTxIN"),
        (["intrinsic", "base", "one"], "expected"),
        (["diff", "one", "base"], "expected"),
        (["check", "nothing", "--base", "base"], "does not exist"),
    ],
)
def test_wrong_usage(
    words: list[str],
    fragment: str,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 2, one sentence and at most one next step, nothing on stdout."""
    monkeypatch.chdir(library)
    assert cli(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert fragment in printed.err
    assert len(printed.err.splitlines()) <= 2


def test_the_grid_of_one_module_is_printed(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A single module's φ stands below its row; its random twin is left to JSON."""
    assert cli("overlap", *arguments("overlap", library), "--module", "v_proj") == 0
    printed = capsys.readouterr().out
    assert printed.count("rows i of A, columns j of B") == 1
