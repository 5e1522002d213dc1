"""The benchmark itself: what it promises in JSON, and what it does with strategies that do not keep their promise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lora_lab import Session
from lora_lab.benchmarks import plugin as built_in
from lora_lab.benchmarks.catalogue import BUILT_IN
from lora_lab.benchmarks.spread import spread_of
from lora_lab.benchmarks.swapping import forward, run
from lora_lab.benchmarks.swapping.forward import tokens_until
from lora_lab.benchmarks.swapping.workload import Workload
from lora_lab.cli.commands import program
from lora_lab.domain.report import Table
from lora_lab.errors import CancelledError
from lora_lab.extension.contracts import Swapper, SwapScene
from lora_lab.extension.hooks import hookimpl
from lora_lab.extension.registry import load_registry
from lora_lab.formats import plugin as formats
from lora_lab.formats.factors import FactorReader

ADAPTERS = ("banking77-r8-seed0", "snips-r8")
REPEATS = 2


def arguments(samples: Path) -> tuple[list[str], str]:
    """Two adapters and their base."""
    return [str(samples / name) for name in ADAPTERS], str(samples / "base")


@pytest.fixture
def workload(samples: Path) -> Iterator[Workload]:
    """The first module of all."""
    session = Session(cache=False)
    adapters, base = arguments(samples)
    opened = [session.adapter(one) for one in adapters]
    with Workload(opened, session.base(base), FactorReader(), ["*.0.self_attn.v_proj"]) as made:
        yield made


@pytest.fixture(scope="module")
def document(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """One result of all strategies."""
    adapters, base = arguments(samples)
    return Session(cache=False).bench_swap(adapters, base=base, repeats=REPEATS, batches=[1, 4], save=False).to_json()


def test_json_is_what_the_contract_says(document: Mapping[str, Any]) -> None:
    """Every field, every strategy, sensible numbers."""
    assert (document["schema"], document["command"]) == ("lora-lab/1", "bench swap")
    assert len(document["inputs"]) == 3
    assert document["limits"]["copy_bandwidth_bytes_per_second"] > 0
    rows = {row["id"]: row for row in document["strategies"]}
    assert list(rows) == [one.id for one in BUILT_IN]
    for name, row in rows.items():
        assert 0 < row["low_seconds"] <= row["p50_seconds"] <= row["p95_seconds"]
        assert row["bytes_moved"] > 0
        assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] >= document["workload"]["weight_bytes"]
        speed = row["bytes_moved"] / row["p50_seconds"]
        share = speed / document["limits"]["copy_bandwidth_bytes_per_second"]
        assert row["fraction_of_copy_bandwidth"] == pytest.approx(share, rel=1e-6)
        assert row["runs"] == REPEATS
        is_exact = name not in ("fused", "unmerge_merge")
        assert (row["bit_exact"], row["restores_bit_exact"]) == (is_exact, is_exact)
        assert (row["relative_drift"] == 0.0) == is_exact
    assert "is_merged" not in rows["fused"]
    assert document["run"]["overhead"] > 0


def test_merging_pays_off_after_swap_over_saving(document: Mapping[str, Any]) -> None:
    """Of every strategy that merges, for every batch; undefined where nothing is saved for certain."""
    swaps = {row["id"]: row["p50_seconds"] for row in document["strategies"]}
    rows = document["break_even"]
    assert {(row["strategy"], row["batch"]) for row in rows} == {
        (name, batch) for name in swaps if name != "hotswap" for batch in (1, 4)
    }
    for row in rows:
        assert row["swap_seconds"] == swaps[row["strategy"]]
        if row["saving_low_seconds_per_token"] > 0:
            assert row["tokens"] == pytest.approx(row["swap_seconds"] / row["saving_seconds_per_token"])
        else:
            assert row["tokens"] is None
    assert tokens_until(3.0, spread_of([-0.1, 0.3, 0.3]), 1) is None


def test_where_merging_may_save_nothing_is_told() -> None:
    """By the batch, once for all strategies."""
    rows = tuple(
        {"strategy": name, "batch": b, "tokens": tokens} for b, tokens in ((1, None), (8, 3.0)) for name in "ab"
    )
    (finding,) = forward.break_even_findings(Table("break_even", "", (), rows))
    assert "steps of 1 merged" in finding.message
    assert forward.break_even_findings(Table("break_even", "", (), rows[2:])) == ()


def test_steps_of_tokens_take_other_weights_each_time(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one round as well: the weights of small layers would else wait in a cache for all but the first."""
    scenes = [workload.scene("cpu") for _ in range(3)]
    places = {id(scene.modules[0].weight): number for number, scene in enumerate(scenes)}
    seen: list[int] = []

    def noted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.extend([places[id(weight)]] if id(weight) in places else [])
        return x @ weight.T

    monkeypatch.setattr(forward, "linear", noted)
    contestants, _ = forward.forward_contestants(workload, scenes, 1, [1, 4], seed=0)
    assert [one.id for one in contestants] == ["merged 1", "unmerged 1", "merged 4", "unmerged 4"]
    for number in range(3):
        for contestant in contestants:
            contestant.work(number)
    assert seen == [number % 3 for number in range(12)]


def test_what_is_named_twice_is_measured_once(samples: Path) -> None:
    """A strategy, and a batch: two of one name would take each other's turns."""
    adapters, base = arguments(samples)
    report = Session(cache=False).bench_swap(
        adapters, base=base, strategies=["fused", "fused"], repeats=1, batches=[2, 2], modules=["*v_proj"], save=False
    )
    assert [row["id"] for row in report.table("strategies").rows] == ["fused"]
    assert [row["batch"] for row in report.table("break_even").rows] == [2]
    assert "few_runs" in {finding.code for finding in report.findings}


class _Broken:
    """A strategy that is wrong in a way of its own."""

    title, summary, is_exact = "Broken", "It breaks.", True

    def __init__(self, id: str) -> None:
        self.id = id

    def prepare(self, scene: SwapScene, first: int) -> Swapper:
        if self.id == "raises":
            raise ZeroDivisionError
        swapper = BUILT_IN[3].prepare(scene, first)
        kept = swapper.swap

        def swap(old: int, new: int) -> None:
            if self.id == "fails":
                raise ZeroDivisionError
            kept(old, new)
            scene.modules[0].weight[0, 0] += 1.0 if self.id == "wrong" else 0.0

        swapper.swap = swap  # type: ignore[method-assign]
        return swapper


def test_strategies_that_break_take_nobody_along(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong result gets no time, a fault is told under the plugin's name, and the others are measured."""
    names = ("wrong", "raises", "fails")
    outsider = SimpleNamespace(lora_lab_swap_strategies=hookimpl(lambda: [_Broken(name) for name in names]))
    outsider.lora_lab_swap_strategies.__name__ = "lora_lab_swap_strategies"
    registry = load_registry({"formats": formats, "benchmarks": built_in, "outsider": outsider}, load_plugins=False)
    registry.plugins[2].origin = "outsider 1.0"
    session = Session(cache=False)
    session.registry = registry
    adapters, base = arguments(samples)
    report = session.bench_swap(
        adapters, base=base, strategies=[*names, "fused"], repeats=1, batches=[1], modules=["*v_proj"], save=False
    )
    assert [row["id"] for row in report.table("strategies").rows] == ["fused"]
    told = {finding.code: finding.message for finding in report.findings}
    assert "'wrong' got no time" in told["wrong_result"] or "'wrong' promises every bit" in told["not_exact"]
    assert "'raises'" in told["not_usable"]
    assert "outsider" in told["plugin_failed"]


def test_without_room_for_all_they_take_turns_in_groups(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group beside a copy, and the result says so."""
    asked: list[bool] = []

    def has_room(_: Any) -> bool:
        asked.append(True)
        return len(asked) % 3 != 0

    monkeypatch.setattr(run, "_has_room", has_room)
    monkeypatch.setattr(run, "_require_room", lambda _: None)
    adapters, base = arguments(samples)
    report = Session(cache=False).bench_swap(
        adapters, base=base, repeats=1, batches=[1], modules=["*v_proj"], save=False
    )
    assert [row["id"] for row in report.table("strategies").rows] == [one.id for one in BUILT_IN]
    assert "not_interleaved" in {finding.code for finding in report.findings}


def test_cancelling_ends_it(samples: Path) -> None:
    """Between two runs."""

    class Cancelling:
        runs = 0

        def advance(self, done: int, total: int, what: str = "") -> None:
            self.runs += 1

        def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None: ...

        def is_cancelled(self) -> bool:
            return self.runs > 12

    adapters, base = arguments(samples)
    with pytest.raises(CancelledError):
        Session(cache=False).bench_swap(adapters, base=base, save=False, observer=Cancelling())


def test_the_command_keeps_its_result_unless_told_not_to(samples: Path) -> None:
    """And refuses what does not fit with one sentence and exit code 2."""
    adapters, base = arguments(samples)
    runner = CliRunner()
    small = ["bench", "swap", "--base", base, "--repeats", "1", "--batch", "1", "--module", "*v_proj", "--json"]
    for more, count in ([], 1), (["--no-save"], 1):
        done = runner.invoke(program, [*small, *adapters, "--strategies", "fused,hotswap", *more])
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert [row["id"] for row in found["strategies"]] == ["fused", "hotswap"]
        assert ("saved" in found) == (not more)
        assert len(Session().history.entries()) == count
    for wrong in ([*adapters, "--strategies", "nothing"], adapters[:1], [*adapters, "--device", "abacus"]):
        with pytest.raises(Exception, match=r"nothing|expected two|abacus"):
            program.main([*small, *wrong], standalone_mode=False)


def test_a_person_sees_what_the_numbers_are_in(samples: Path) -> None:
    """Seconds say that they are; bytes do in every number."""
    adapters, base = arguments(samples)
    asked = ["bench", "swap", "--base", base, *adapters, "--strategies", "fused", "--module", "*v_proj"]
    shown = CliRunner().invoke(program, [*asked, "--repeats", "1", "--batch", "1", "--no-save"]).stdout
    assert "p50 (s)" in shown
    assert "Whole run (s)" in shown
    assert "Bytes moved (" not in shown


def test_strategies_are_listed(samples: Path) -> None:
    """With their owner and whether they are exact."""
    listed = json.loads(CliRunner().invoke(program, ["strategies", "--json"]).stdout)["strategies"]
    assert {row["id"]: row["is_exact"] for row in listed} == {one.id: one.is_exact for one in BUILT_IN}
    assert {row["plugin"] for row in listed} == {"benchmarks"}
