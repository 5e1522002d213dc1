"""Strategies of plugins that fail wherever they are asked something: the others are measured all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_lab import Session
from lora_lab.benchmarks import plugin as built_in
from lora_lab.benchmarks.catalogue import BUILT_IN
from lora_lab.benchmarks.swapping import run
from lora_lab.domain.report import Report
from lora_lab.errors import OperationError
from lora_lab.extension.contracts import Swapper, SwapScene
from lora_lab.extension.hooks import hookimpl
from lora_lab.extension.registry import load_registry
from lora_lab.formats import plugin as formats


class Outsider:
    """The strategy `from_copy` with something else done about one of its members."""

    id, title, summary, is_exact = "outside", "Outside", "It comes from somewhere else.", True

    def __init__(self, change: Callable[[Any, SwapScene], type]) -> None:
        self.change = change

    def prepare(self, scene: SwapScene, first: int) -> Swapper:
        swapper = BUILT_IN[3].prepare(scene, first)
        swapper.__class__ = self.change(type(swapper), scene)
        return swapper


def measured(samples: Path, change: Callable[[Any, SwapScene], type], **more: Any) -> Report:
    """A result of the outsider beside `fused`."""
    outsider = SimpleNamespace(lora_lab_swap_strategies=hookimpl(lambda: [Outsider(change)]))
    outsider.lora_lab_swap_strategies.__name__ = "lora_lab_swap_strategies"
    registry = load_registry({"formats": formats, "benchmarks": built_in, "outsider": outsider}, load_plugins=False)
    registry.plugins[2].origin = "outsider 1.0"
    session = Session(cache=False)
    session.registry = registry
    adapters = [str(samples / name) for name in ("banking77-r8-seed0", "snips-r8")]
    options = {"repeats": 2, "batches": [1], "modules": ["*v_proj"], "save": False, **more}
    options = {"strategies": ["outside", "fused"], **options}
    return session.bench_swap(adapters, base=str(samples / "base"), **options)


def failing(name: str, fault: Exception) -> Callable[[Any, SwapScene], type]:
    """A member that raises, whether it is called or looked at."""

    def raises(*_: Any) -> None:
        raise fault

    is_asked = name in ("kept_bytes", "notes")
    return lambda kind, scene: type("Failing", (kind,), {name: property(raises) if is_asked else raises})


@pytest.mark.parametrize("name", ["swap", "restore", "beside", "moved_bytes", "kept_bytes"])
@pytest.mark.parametrize("fault", [ZeroDivisionError("no"), OperationError("The outsider's disk is full.")], ids=str)
def test_a_plugin_that_fails_somewhere_takes_nobody_along(samples: Path, name: str, fault: Exception) -> None:
    """It has no row, and the result says why."""
    report = measured(samples, failing(name, fault))
    assert [row["id"] for row in report.table("strategies").rows] == ["fused"]
    (said,) = (finding.message for finding in report.findings if finding.code == "plugin_failed")
    assert str(fault).split(".")[0] in said


def test_a_run_in_which_nothing_got_a_time_failed(samples: Path) -> None:
    """Exit code 3, not a table without rows."""
    with pytest.raises(OperationError, match=r"No strategy got a time: .*ZeroDivisionError"):
        measured(samples, failing("swap", ZeroDivisionError()), strategies=["outside"])


@pytest.mark.parametrize("beside", [3, (None,), ("lora_A",)])
def test_what_is_no_factor_beside_a_weight_is_a_fault_of_the_plugin(samples: Path, beside: object) -> None:
    """Before anything is compared with it."""
    report = measured(samples, lambda kind, scene: type("Odd", (kind,), {"beside": lambda self, module: beside}))
    assert [row["id"] for row in report.table("strategies").rows] == ["fused"]
    assert "outside" in next(finding.message for finding in report.findings if finding.code == "plugin_failed")


def test_what_is_wrong_where_nobody_looked_at_first_gets_no_time(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that the first look leaves out are looked at after the last swap."""
    first_looks: list[int] = []
    looked = run.judged

    def judged(works: Any, adapter: int | None, observer: Any, *, every: int = 1) -> Any:
        found = looked(works, adapter, observer, every=every)
        if every > 1 and "outside" in found:  # as if its wrong element lay in a block that is left out
            first_looks.append(every)
            found["outside"].error_square, found["outside"].differing = 0.0, 0
        return found

    def change(kind: Any, scene: SwapScene) -> type:
        def swap(self: Any, old: int, new: int) -> None:
            kind.swap(self, old, new)
            scene.modules[0].weight[-1, -1] = 1e4

        return type("Wrong", (kind,), {"swap": swap})

    monkeypatch.setattr(run, "judged", judged)
    report = measured(samples, change)
    assert first_looks
    assert [row["id"] for row in report.table("strategies").rows] == ["fused"]
    told = {finding.code: finding.message for finding in report.findings}
    assert "'outside' got no time" in told["wrong_result"]
    assert {row["strategy"] for row in report.table("break_even").rows} == {"fused"}


def test_drift_is_of_as_many_swaps_as_there_were_rounds(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sets of weights took turns in them."""
    monkeypatch.setattr(run, "sets_of_weights", lambda *_: 3)
    report = measured(samples, lambda kind, scene: kind, repeats=4)
    assert {row["swaps"] for row in report.table("strategies").rows} == {5}


def test_a_cache_that_may_hold_the_weights_is_told(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even the most sets that are made are more than it."""
    from lora_lab.benchmarks import copying

    monkeypatch.setattr(run, "sets_of_weights", lambda *_: 1)
    for size, is_told in ((1 << 24, True), (1 << 10, False)):
        monkeypatch.setattr(copying, "cache_bytes", lambda device, size=size: size)
        report = measured(samples, lambda kind, scene: kind, repeats=1)
        assert ("in_cache" in {finding.code for finding in report.findings}) == is_told


def test_an_unmerged_step_of_dora_scales_its_outputs() -> None:
    """With gains that a server keeps: m/‖W + ΔW‖ for every output."""
    from lora_lab.benchmarks.swapping.forward import _Layer

    draw = torch.Generator().manual_seed(0)
    weight, A, B, x = (torch.randn(size, generator=draw) for size in ((5, 4), (2, 4), (5, 2), (3, 4)))
    gain = torch.rand(5, generator=draw)
    found = _Layer(weight, ((A, B, gain),)).unmerged(x)
    assert torch.allclose(found, gain * (x @ (weight + B @ A).T), atol=1e-5)
