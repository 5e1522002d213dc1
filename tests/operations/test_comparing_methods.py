"""The table of what every method would lose: its numbers are those of the receipts and of dense matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from peft_adapters import adapter as peft_adapter
from peft_adapters import change

from lora_lab import LoraLabError, Session
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.errors import CancelledError
from lora_lab.extension.registry import PluginRecord

STRENGTHS = [0.7, -0.4]


@pytest.fixture
def adapters(tmp_path: Path) -> list[str]:
    return [str(builders.write_adapter(tmp_path / name, rank=rank, seed=rank)) for name, rank in (("a", 4), ("b", 3))]


@pytest.mark.parametrize("cut", [{"rank": 3}, {"energy": 0.8}, {"parameters": 300}, {}])
def test_rows_are_the_totals_of_the_receipts(tmp_path: Path, adapters: list[str], cut: dict[str, Any]) -> None:
    """Every method that combines has the numbers that combine gives, sizes included; the others say why not."""
    session = Session(seed=2, plugins=False)
    report = session.compare_methods(adapters, strengths=STRENGTHS, settings={"density": "0.4"}, **cut)
    rows = report.table("methods").rows
    assert [row["id"] for row in rows] == list(session.registry.methods)
    for row in rows:
        declared = {parameter.id for parameter in session.registry.methods[row["id"]].parameters}
        settings = {"density": 0.4} if "density" in declared else {}
        arguments: dict[str, Any] = {"method": row["id"], "strengths": STRENGTHS, "settings": settings, **cut}
        if row["refused"]:
            with pytest.raises(LoraLabError) as refused:
                session.combine(adapters, output=tmp_path / "out", dry_run=True, **arguments)
            assert refused.value.message == row["refused"]
            continue
        alone = session.combine(adapters, output=tmp_path / "out", dry_run=True, **arguments)
        totals = next(group.values for group in alone.scalars if group.id == "totals")
        for name in ("rank_min", "rank_max", "parameters", "norm", "relative_error"):
            assert row[name] == totals[name], (row["id"], name)
        assert row["size_bytes"] == sum(one["size_bytes"] for one in alone.table("outputs").rows)
    refusing = {row["id"] for row in rows if row["refused"]}
    dense = {name for name, method in session.registry.methods.items() if not method.is_low_rank}
    assert refusing == ({"slerp"} | dense if "parameters" in cut else {"slerp"})  # one strength is negative
    assert [one.message.partition(":")[0] for one in report.findings if one.code == "refused"] == [
        row["id"] for row in rows if row["refused"]
    ]


def test_the_distance_to_the_sum_is_that_of_what_peft_loads(tmp_path: Path) -> None:
    """‖Σ wᵢΔWᵢ − ΔW‖/‖Σ wᵢΔWᵢ‖ of the merged matrices."""
    places = [peft_adapter(tmp_path / name, seed, target_modules=["q_proj", "embed"]) for seed, name in enumerate("ab")]
    parts = [change(place) for place in places]
    report = Session().compare_methods(places, strengths=[1.0, 0.5], methods=["svd", "ties", "multislerp"], rank=2)
    for row in report.table("methods").rows:
        out = tmp_path / row["id"]
        Session().combine(places, strengths=[1.0, 0.5], method=row["id"], rank=2, output=out)
        made = change(out)
        whole = {name: parts[0][name] + 0.5 * parts[1][name] for name in made}
        away = np.sqrt(sum(float((whole[name] - made[name]).square().sum()) for name in made))
        norm = np.sqrt(sum(float(tensor.square().sum()) for tensor in whole.values()))
        assert row["sum_distance"] == pytest.approx(away / norm, rel=1e-5)
    group = next(group.values for group in report.scalars if group.id == "sum")
    assert group["norm"] == pytest.approx(norm, rel=1e-6)


class Failing:
    """A plugin's method that raises what nobody foresaw."""

    id, title, summary, reference, is_low_rank = "failing", "Failing", "Fails.", "", True
    parameters = (Parameter("amount", "How much", ParameterKind.NUMBER, 1.0),)

    def combine(self, *_: object) -> Any:
        raise ZeroDivisionError("by zero")


class Shapeless(Failing):
    """A plugin's method that gives factors of another shape."""

    id = "shapeless"

    def combine(self, factors: Any, *_: object) -> Any:
        from lora_lab.extension.contracts import Combination, Factors

        return Combination(Factors(factors[0].lora_A[:, 1:], factors[0].lora_B, 1.0), 1.0)


def test_one_failing_method_takes_none_of_the_others_down(adapters: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(plugins=False)
    known = {**session.registry.methods, "failing": Failing(), "shapeless": Shapeless()}
    monkeypatch.setattr(session.registry, "methods", known)
    record = PluginRecord("strange", "strange 1.0", "strange", "1.0")
    monkeypatch.setattr(type(session.registry), "plugin_of", lambda *_: record)
    rows = {row["id"]: row for row in session.compare_methods(adapters, rank=2).table("methods").rows}
    assert "'failing' of the plugin 'strange' failed: ZeroDivisionError: by zero" in rows["failing"]["refused"]
    assert "expected (24, r) and (r, 16)" in rows["shapeless"]["refused"]
    assert rows["failing"]["rank_max"] is None
    assert rows["ties"]["rank_max"] == 2


def test_settings_reach_whom_they_name(adapters: list[str]) -> None:
    """A plain name is for all that have it, METHOD.NAME for one; a name that none has is refused."""
    how: dict[str, Any] = {"methods": ["ties", "magnitude_prune", "svd"], "rank": 2}
    settings = {"density": 0.2, "ties.density": 0.9, "ties.majority": "frequency"}
    rows = Session().compare_methods(adapters, settings=settings, **how).table("methods").rows
    assert [row["settings"].get("density") for row in rows] == [0.9, 0.2, None]
    assert rows[0]["settings"]["majority"] == "frequency"
    with pytest.raises(LoraLabError, match="No method has a parameter 'densty'"):
        Session().compare_methods(adapters, settings={"densty": 1}, **how)
    with pytest.raises(LoraLabError, match="no method 'tie'"):
        Session().compare_methods(adapters, methods=["tie"])
    with pytest.raises(LoraLabError, match="Got 1 strengths"):
        Session().compare_methods(adapters, strengths=[1.0])


class Watching:
    """Notes what it is told, and cancels after some units."""

    def __init__(self, units: int) -> None:
        self.units, self.told, self.ready = units, [(0, 0)], 0

    def advance(self, done: int, total: int, what: str = "") -> None:
        assert what
        self.told.append((done, total))

    def rows(self, table: str, rows: Any) -> None:
        assert table == "methods"
        self.ready += len(rows)

    def is_cancelled(self) -> bool:
        return len(self.told) > self.units


def test_progress_rows_and_cancelling(adapters: list[str]) -> None:
    """Counts never go back, rows come as they are ready, and a cancellation ends it in the middle of a method."""
    watcher = Watching(10**6)
    Session(plugins=False).compare_methods(adapters, rank=2, observer=watcher)
    counts = [done for done, _ in watcher.told]
    assert counts == sorted(counts)
    assert watcher.told[-1][0] == watcher.told[-1][1] == 3 * len(Session(plugins=False).registry.methods)
    assert watcher.ready == len(Session(plugins=False).registry.methods)
    early = Watching(7)
    with pytest.raises(CancelledError):
        Session().compare_methods(adapters, rank=2, observer=early)
    assert early.ready == 2


def test_heads_that_clash_do_not_stop_the_table(tmp_path: Path) -> None:
    """Whose is taken is asked when it is written; here a warning says that it is open."""
    both: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}
    places = [peft_adapter(tmp_path / name, seed, **both) for seed, name in enumerate("ab")]
    report = Session().compare_methods(places, rank=2, methods=["svd"])
    assert [finding.code for finding in report.findings] == ["saved_modules_undecided"]
    with_head = Session().compare_methods(places, rank=2, methods=["svd"], saved_modules_from="a")
    size, larger = (one.table("methods").rows[0]["size_bytes"] for one in (report, with_head))
    assert larger > size + 2 * 4 * 12 * 3
