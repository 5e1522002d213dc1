"""The benchmark itself: what it promises in JSON, what it refuses, and that a wrong variant gets no time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lora_lab import Session
from lora_lab.benchmarks.clock import Clock
from lora_lab.benchmarks.latency import adapters, run, setup
from lora_lab.benchmarks.latency.adapters import HOULSBY, UNMERGED, VARIANTS
from lora_lab.benchmarks.latency.blocks import BlockShape, Stack
from lora_lab.cli.commands import program
from lora_lab.errors import CancelledError, LoraLabError, OperationError

TINY = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 8,
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def two_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many sets of weights as it takes to take turns."""
    monkeypatch.setattr(run, "sets_of_weights", lambda *_: 2)


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A model of two small layers, its configuration alone."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path / "config.json")


def test_json_is_what_the_contract_says(base: str) -> None:
    """Every variant of every cell, in order, and all that tells where and how."""
    report = Session(cache=False, device="cpu").bench_latency(base=base, grid="2x4,1x3", repeats=2, save=False)
    document = report.to_json()
    assert (document["schema"], document["command"]) == ("lora-lab/1", "bench latency")
    assert len(document["inputs"]) == 1
    rows = document["rows"]
    assert [(row["batch"], row["length"], row["variant"]) for row in rows] == [
        (batch, length, variant) for batch, length in ((2, 4), (1, 3)) for variant in VARIANTS
    ]
    for row in rows:
        assert 0 < row["low_seconds"] <= row["p50_seconds"] <= row["high_seconds"]
        assert row["overhead_low"] <= row["overhead"] <= row["overhead_high"]
        assert row["runs"] == 2
        assert (row["published_overhead"], row["published_seconds"]) == (None, None)
    assert {row["overhead"] for row in rows if row["variant"] == "base"} == {0.0}
    expected = {"layers": 2, "hidden": 16, "dtype": "bfloat16", "rank": 8, "copies": 2, "kv_heads": 2}
    assert expected.items() <= document["workload"].items()
    assert document["environment"]["device"] == "cpu"
    (chosen,) = (finding["message"] for finding in document["warnings"] if finding["code"] == "chosen")
    assert "2 of 2 layers were chosen" in chosen
    assert "grid" not in chosen  # which was given


def test_overhead_is_of_runs_of_one_round_and_lies_in_its_interval(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down on the way: ratios of medians would mix rounds, and could lie outside."""
    slower = iter(range(1, 10_000))
    monkeypatch.setattr(Clock, "seconds", lambda self, work: (work(), float(next(slower) ** 2))[1])
    report = Session(cache=False, device="cpu").bench_latency(base=base, grid="1x3", repeats=9, save=False)
    rows = report.table("rows").rows
    assert {row["overhead"] for row in rows if row["variant"] == "base"} == {0.0}
    assert any(row["overhead"] != 0.0 for row in rows)
    assert all(row["overhead_low"] <= row["overhead"] <= row["overhead_high"] for row in rows)


def test_the_papers_figures_stand_beside_its_own_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its overhead for its cells, its seconds for all of its layers."""
    for module in (run, setup):
        monkeypatch.setattr(module, "GPT2_MEDIUM", BlockShape(16, 4, 4, 4, 32, is_gated=False, has_bias=True))
    session = Session(cache=False, device="cpu")
    for layers, has_seconds in ((1, False), (24, True)):
        report = session.bench_latency(grid="1x128,1x2", layers=layers, repeats=1, save=False)
        rows = {(row["length"], row["variant"]): row for row in report.table("rows").rows}
        assert rows[128, HOULSBY]["published_overhead"] == pytest.approx(0.303, abs=5e-4)
        assert rows[128, HOULSBY]["published_seconds"] == (0.0258 if has_seconds else None)
        assert rows[2, HOULSBY]["published_overhead"] is None
        assert rows[128, UNMERGED]["published_overhead"] is None
        assert ("chosen" in {one.code for one in report.findings}) == (not layers)


def test_a_wrong_variant_gets_no_time(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others do."""
    monkeypatch.setattr(adapters, "unmerged", lambda stack, factors: adapters.twin_of(stack))
    report = Session(cache=False, device="cpu").bench_latency(base=base, grid="1x3", repeats=1, save=False)
    assert [row["variant"] for row in report.table("rows").rows] == [one for one in VARIANTS if one != UNMERGED]
    assert [one.module for one in report.findings if one.code == "wrong_result"] == [UNMERGED]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ["w_proj"]}, "'w_proj'"),
        ({"targets": ["q_proj", "q_proj"]}, "each once"),
        ({"targets": []}, "nothing"),
        ({"dtype": "int8"}, "'int8'"),
        ({"layers": 0}, "layers"),
        ({"rank": 0}, "rank"),
        ({"rank": 17}, "rank"),
        ({"bottleneck": 10**9}, "adapters need"),
        ({"grid": "1x2,3"}, "BATCHxLENGTH"),
    ],
)
def test_what_makes_no_sense_is_refused(base: str, options: dict[str, Any], said: str) -> None:
    """With one sentence, before anything is made."""
    with pytest.raises(LoraLabError, match=said):
        Session(cache=False, device="cpu").bench_latency(base=base, save=False, **options)


def test_without_room_nothing_is_made(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says how much it would take."""
    monkeypatch.setattr(setup, "available_bytes", lambda _: 1000)
    with pytest.raises(OperationError, match=r"need .* got 1"):
        Session(cache=False, device="cpu").bench_latency(base=base, grid="1x3", save=False)


def test_cancelling_ends_it(base: str) -> None:
    """Between two runs; what was ready was told."""

    class Cancelling:
        told: list[Mapping[str, Any]] = []  # noqa: RUF012 - of this one object

        def advance(self, done: int, total: int, what: str = "") -> None:
            assert done <= total

        def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
            assert table == "samples"
            self.told.extend(rows)

        def is_cancelled(self) -> bool:
            return len(self.told) > 6

    watcher = Cancelling()
    with pytest.raises(CancelledError):
        Session(cache=False, device="cpu").bench_latency(base=base, grid="1x3", repeats=9, save=False, observer=watcher)
    assert {row["id"] for row in watcher.told[:5]} == {f"{variant} 1x3" for variant in VARIANTS}


def test_the_command_measures_and_keeps(base: str) -> None:
    """One JSON document, which is in the history and can be compared with itself."""
    options = {"base": base, "grid": "1x3", "layers": "1", "repeats": "1", "rank": "2", "bottleneck": "4"}
    options |= {"targets": "q_proj, gate_proj", "dtype": "float32", "device": "cpu"}
    typed = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = CliRunner().invoke(program, ["bench", "latency", "--json", *typed])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["workload"]["bottlenecks"] == [4]
    added = {row["variant"]: row["parameters"] for row in document["rows"]}
    assert added["lora_unmerged"] == 2 * (16 + 16) + 2 * (16 + 32)
    saved = Session().history.find(document["saved"])
    assert saved["rows"] == document["rows"]
    compared = Session().bench_compare(document["saved"], document["saved"])
    assert {row["name"] for row in compared.table("rows").rows} == {f"{variant} 1 3" for variant in VARIANTS}


def test_a_stack_is_a_model_of_one_shape() -> None:
    """What is measured is as deep as it is said to be."""
    made = Stack(BlockShape(16, 4, 2, 4, 32, is_gated=True, has_bias=False), 3)
    assert len(made.blocks) == 3
    matrices = sum(one.numel() for one in made.parameters() if one.dim() == 2)
    assert matrices == 3 * made.shape.parameters
