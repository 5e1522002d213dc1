"""Results are kept, found again and compared; what is damaged is said, and hides nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lora_lab import Session
from lora_lab.benchmarks.columns import SPREAD
from lora_lab.benchmarks.comparing import compared
from lora_lab.benchmarks.history import History, document_in
from lora_lab.benchmarks.spread import spread_of
from lora_lab.cli.commands import program
from lora_lab.domain.report import Column, ColumnKind, Report, Scalars, Table
from lora_lab.errors import CompatibilityError, FileFormatError, MissingFileError


def result(command: str, scale: float = 1.0, *, others: tuple[str, ...] = (), device: str = "cpu") -> Report:
    """A result with one row for each name."""
    rows = [
        {"id": name, **spread_of([scale * (1.0 + 0.001 * run) for run in range(10)]).to_row()}
        for name in ("fused", *others)
    ]
    table = Table("strategies", "Strategies", (Column("id", "Id", ColumnKind.TEXT), *SPREAD), tuple(rows), key="id")
    environment = Scalars("environment", "Environment", (), {"device": device, "measured_at": f"{scale}"})
    return Report(command, "A test", tables=(table,), scalars=(environment,))


def test_saved_results_are_found_by_age_id_beginning_and_file(tmp_path: Path) -> None:
    """The latest's own command decides what was before it."""
    history = History(tmp_path / "made" / "here")
    first, other, last = (
        history.save(result(f"bench {name}", scale)) for name, scale in (("swap", 1), ("nap", 2), ("swap", 3))
    )
    assert len({first.id, other.id, last.id}) == 3
    assert [entry.id for entry in history.entries("bench swap")] == sorted([first.id, last.id], reverse=True)
    assert history.find("latest")["command"] == "bench swap"
    for text in (other.id, str(other.path)):
        assert history.find(text) == result("bench nap", 2).to_json()
    assert history.report(other.id) == result("bench nap", 2)
    beginning = other.id[: other.id.index("-nap") + 2]
    assert history.find(beginning)["command"] == "bench nap"


def test_what_is_not_there_or_damaged_is_said(tmp_path: Path) -> None:
    """A damaged file is listed with the reason and hides no other."""
    history = History(tmp_path)
    with pytest.raises(MissingFileError, match="no latest result"):
        history.find("latest")
    kept = history.save(result("bench swap"))
    for name, content in (("a", "{"), ("b", "[]"), ("c", '{"schema": "x"}'), ("d", "[" * 100_000)):
        (tmp_path / f"{name}.json").write_text(content)
    entries = {entry.id: entry.error for entry in history.entries()}
    assert entries.pop(kept.id) is None
    assert all(entries.values())
    assert history.find("latest")["command"] == "bench swap"
    with pytest.raises(FileFormatError, match="no result of a benchmark"):
        history.find("a")
    with pytest.raises(MissingFileError, match="There is no result"):
        history.find("nowhere")
    with pytest.raises(FileFormatError, match="Damaged"):
        history.report("d")


def test_a_printed_document_is_as_good_as_a_saved_one(tmp_path: Path) -> None:
    """What --json printed can be compared."""
    file = tmp_path / "printed.json"
    file.write_text(json.dumps(result("bench swap").to_json()))
    assert document_in(file) == result("bench swap").to_json()


def test_a_difference_counts_when_it_is_sure_and_large_enough() -> None:
    """Intervals that meet, and changes below two in a hundred, are the same."""
    once = result("bench swap", others=("reload",)).to_json()
    verdicts = {}
    for scale in (0.5, 1.0, 1.01, 2.0):
        report = compared(once, result("bench swap", scale, others=("undo",)).to_json())
        rows = {row["name"]: row for row in report.table("rows").rows}
        verdicts[scale] = rows["fused"]["verdict"]
        assert rows["fused"]["ratio"] == pytest.approx(scale)
        assert rows["reload"]["verdict"] == "only before"
        assert rows["undo"]["verdict"] == "only after"
    assert verdicts == {0.5: "faster", 1.0: "same", 1.01: "same", 2.0: "slower"}


def test_another_environment_is_told_and_another_benchmark_refused() -> None:
    """When it was measured is no difference; on what is one."""
    here, there = (result("bench swap", device=device).to_json() for device in ("cpu", "cuda:0"))
    report = compared(here, there)
    assert [row["key"] for row in report.table("differences").rows] == ["device"]
    assert "cpu → cuda:0" in report.findings[0].message
    assert compared(here, here).findings == ()
    with pytest.raises(CompatibilityError, match="two of one benchmark"):
        compared(here, result("bench nap").to_json())


def test_a_setting_that_is_said_twice_is_one_difference() -> None:
    """The rank was asked for, and it is of the workload."""
    before, after = (
        {"command": "bench latency", "parameters": {"rank": rank}, "workload": {"rank": rank}} for rank in (8, 4)
    )
    report = compared(before, after)
    assert [dict(row) for row in report.table("differences").rows] == [{"key": "rank", "before": 8, "after": 4}]
    assert report.findings[0].message.count("rank") == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"strategies": [{"id": "fused", "p50_seconds": "1"}]},
        {"strategies": [{"id": "fused", "p50_seconds": True}]},
        {"strategies": [{"id": "fused", "p50_seconds": 1.0, "low_seconds": "x", "high_seconds": []}]},
        {"strategies": [{"id": ["fused"], "p50_seconds": 1e999}]},
        {"environment": ["cpu"], "parameters": 3, "workload": "none"},
        {"environment": {"device": {"a": 1}}},
        {"command": "bench swap", "strategies": None},
    ],
)
def test_a_document_that_anyone_may_have_written_is_compared_as_far_as_it_goes(damage: dict[str, object]) -> None:
    """What is no number is no time, and what is no group has no settings."""
    sound = result("bench swap").to_json()
    for one, other in ((sound, {**sound, **damage}), ({**sound, **damage}, sound)):
        for row in compared(one, other).table("rows").rows:
            assert row["verdict"] in ("same", "faster", "slower", "only before", "only after")


def test_the_command_line_lists_shows_and_compares() -> None:
    """The session's own history, through both commands."""
    runner = CliRunner()
    session = Session()
    empty = runner.invoke(program, ["bench", "history"])
    assert (empty.exit_code, "Nothing was measured yet" in empty.stderr) == (0, True)
    kept = [session._kept(result("bench swap", scale), save=True) for scale in (1.0, 2.0)]
    ids = [report.to_json()["saved"] for report in kept]
    listed = json.loads(runner.invoke(program, ["bench", "history", "--json"]).stdout)
    assert [row["id"] for row in listed["results"]] == sorted(ids, reverse=True)
    shown = json.loads(runner.invoke(program, ["bench", "history", ids[0], "--json"]).stdout)
    assert shown == result("bench swap").to_json()
    Session().history.entries()[0].path.with_name("damaged.json").write_text("{")
    assert "'damaged'" in runner.invoke(program, ["bench", "history"]).stderr
    done = runner.invoke(program, ["bench", "compare"])
    assert "slower" in done.stdout
    assert done.exit_code == 0
