"""Adapters whose change is known with their base alone, combined: PEFT's own merge of each is the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from peft_adapters import EPS, adapter, change, network
from safetensors.torch import load_file, save_file

from lora_lab import LoraLabError, Session
from lora_lab.cli import run as run_program

pytestmark = pytest.mark.filterwarnings("ignore")
STRENGTHS = [0.8, -0.5]


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write_base(tmp_path / "base", network().state_dict())


def write_base(folder: Path, state: dict[str, torch.Tensor]) -> str:
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "test"}))
    return str(folder)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "both": (
        {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "use_dora": True, "r": 2},
    ),
    "beside a plain one": (
        {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True},
        {"target_modules": ["q_proj", "classifier"]},
    ),
    "embedding": (
        {"target_modules": ["embed"], "use_dora": True},
        {"target_modules": ["embed"], "r": 2},
    ),
    "convolutions": (
        {"target_modules": ["conv", "line"], "use_dora": True},
        {"target_modules": ["conv"], "use_dora": True},
    ),
    "fan_in_fan_out": (
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    ),
}


@pytest.mark.parametrize(("case", "method"), [*((case, "linear") for case in CASES), ("both", "svd"), ("both", "cat")])
def test_the_true_change_is_summed(tmp_path: Path, base: str, case: str, method: str) -> None:
    """At full rank W′ − W itself, as PEFT merges it; at a lower one the best there is, and the error is told."""
    places = [adapter(tmp_path / f"in{place}", place, **settings) for place, settings in enumerate(CASES[case])]
    parts = [change(place) for place in places]
    whole = {name: 0.8 * parts[0][name] - 0.5 * parts[1][name] for name in parts[0]}
    how: dict[str, Any] = {"strengths": STRENGTHS, "method": method, "base": base}
    for rank in (40, 3):
        out = tmp_path / f"out{rank}"
        report = Session(cache=False).combine(places, output=out, rank=rank, **how)
        found = change(out)
        rows = {f"{row['module']}.weight": row for row in report.table("modules").rows}
        for name, tensor in found.items():
            size = sum(float(part[name].norm()) for part in parts)
            if name not in rows:
                assert float((tensor - whole[name]).norm()) == 0.0
                continue
            away = float((tensor - whole[name]).norm())
            optimum = float(torch.linalg.svdvals(whole[name].flatten(1))[rank:].norm())
            assert away <= 1.01 * optimum + 8 * EPS * size, name
            norm = float(whole[name].norm())
            assert rows[name]["norm"] == pytest.approx(norm, rel=1e-6)
            assert rows[name]["relative_error"] == pytest.approx(away / norm, rel=1e-3, abs=8 * EPS)
    assert "true_change" in {finding.code for finding in report.findings}
    said = json.loads((out / "adapter_config.json").read_text())
    assert said["use_dora"] is False
    assert Session(cache=False).replay(out, output=tmp_path / "again").verdict is True


@pytest.mark.parametrize("targets", ["q_proj", "c_attn"])
@pytest.mark.parametrize(
    "method", [name for name in Session(plugins=False).registry.methods if name not in ("linear", "svd", "cat")]
)
def test_every_method_takes_it(tmp_path: Path, base: str, method: str, targets: str) -> None:
    """At full rank ΔW has the norm that the receipt states; of those on entries PEFT's own give the same matrix."""
    places = [
        adapter(tmp_path / name, place, target_modules=[targets], fan_in_fan_out=targets == "c_attn", use_dora=is_dora)
        for place, (name, is_dora) in enumerate((("a", True), ("b", False)))
    ]
    parts = [change(place) for place in places]
    out = tmp_path / "out"
    settings = {"density": 0.3} if method in ("ties", "magnitude_prune") else {}
    report = Session(cache=False).combine(
        places, strengths=[0.8, 0.5], method=method, settings=settings, base=base, rank=40, output=out
    )
    found = change(out)
    for row in report.table("modules").rows:
        name = f"{row['module']}.weight"
        assert float(found[name].norm()) == pytest.approx(row["norm"], rel=1e-5)
        assert row["relative_error"] < 1e-6
        if settings:
            dense = getattr(merge_utils, method)([part[name].float() for part in parts], torch.tensor([0.8, 0.5]), 0.3)
            torch.testing.assert_close(found[name], dense.double(), rtol=1e-4, atol=1e-5 * float(dense.abs().max()))


def test_dora_becomes_a_plain_adapter(tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    """resize --base: by rank or by error; without the base, and by number of parameters, it is refused by name."""
    place = adapter(tmp_path / "a", 0, target_modules=["q_proj"], use_dora=True)
    report = Session(cache=False).resize(place, error=0.2, base=base, output=tmp_path / "plain")
    before, after = change(place), change(tmp_path / "plain")
    for row in report.table("modules").rows:
        name = f"{row['module']}.weight"
        error = float((after[name] - before[name]).norm() / before[name].norm())
        assert error <= 0.2 * (1 + 1e-6)
        assert error == pytest.approx(row["relative_error"], rel=1e-4)
    session = Session(cache=False)
    with pytest.raises(LoraLabError, match="DoRA") as refused:
        session.resize(place, rank=2, output=tmp_path / "no")
    assert "--base" in refused.value.hint
    with pytest.raises(LoraLabError, match="number of parameters cannot be divided"):
        session.resize(place, parameters=100, base=base, output=tmp_path / "no")
    with pytest.raises(LoraLabError, match="cat stacks factors"):
        session.combine([place], method="cat", base=base, output=tmp_path / "no")
    with pytest.raises(LoraLabError, match="no core"):
        session.combine([place], method="ties", settings={"space": "core"}, base=base, output=tmp_path / "no")
    plain = adapter(tmp_path / "b", 1, target_modules=["q_proj"])
    unused = session.combine([plain], base=base, output=tmp_path / "fine")
    assert [finding.code for finding in unused.findings] == ["base_unused"]

    def run(*arguments: str) -> int:
        return run_program([*arguments], open_application=lambda *_: 0)

    assert run("combine", place, plain, "--base", base, "--rank", "4", "-o", str(tmp_path / "cli"), "--json") == 0
    assert {one["code"] for one in json.loads(capsys.readouterr().out)["warnings"]} == {"true_change"}
    assert run("combine", place, plain, "--sweep", "1,1", "--base", base, "--rank", "4", "-o", str(tmp_path / "s")) == 0
    one, two = (tmp_path / name / "adapter_model.safetensors" for name in ("cli", "s-1-1"))
    assert one.read_bytes() == two.read_bytes()
    assert run("combine", place, "-o", str(tmp_path / "no")) == 2


def test_a_base_that_does_not_fit(tmp_path: Path, base: str) -> None:
    place = adapter(tmp_path / "a", 0, target_modules=["q_proj"], use_dora=True)
    tensors = {name: one for name, one in load_file(Path(base) / "model.safetensors").items() if "10.q" not in name}
    other = write_base(tmp_path / "other", tensors)
    session = Session(cache=False)
    with pytest.raises(LoraLabError, match=r"'other' has no weight of its shape for 'layers\.10\.q_proj' of 'a'"):
        session.combine([place], base=other, output=tmp_path / "no")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "test"}')
    with pytest.raises(LoraLabError, match="without weights"):
        session.combine([place], base=str(tmp_path / "empty"), output=tmp_path / "no")
    broken = load_file(Path(base) / "model.safetensors")
    broken["layers.2.q_proj.weight"][3, 4] = torch.nan
    with pytest.raises(LoraLabError, match=r"layers\.2\.q_proj.*NaN"):
        session.combine([place], base=write_base(tmp_path / "broken", broken), output=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_table_of_methods_with_a_base(tmp_path: Path, base: str) -> None:
    """Distances are from the true sum."""
    places = [
        adapter(tmp_path / "a", 0, target_modules=["q_proj"], use_dora=True),
        adapter(tmp_path / "b", 1, target_modules=["q_proj"]),
    ]
    parts = [change(place) for place in places]
    report = Session(cache=False).compare_methods(places, base=base, rank=3, methods=["svd", "ties", "cat"])
    rows = {row["id"]: row for row in report.table("methods").rows}
    whole = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    norm = sum(float(tensor.square().sum()) for tensor in whole.values()) ** 0.5
    for method in ("svd", "ties"):
        Session(cache=False).combine(places, base=base, rank=3, method=method, output=tmp_path / method)
        made = change(tmp_path / method)
        away = sum(float((made[name] - whole[name]).square().sum()) for name in whole) ** 0.5
        assert rows[method]["sum_distance"] == pytest.approx(away / norm, rel=1e-4)
    assert rows["cat"]["relative_error"] == rows["svd"]["relative_error"]


def test_pissa_is_counted_from_the_original(tmp_path: Path, base: str) -> None:
    """s·B·A − U_r S_r V_rᵀ, exactly of rank 2r: on the original base it gives what PEFT trained."""
    model = get_peft_model(network(), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="pissa"))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "pissa")
    trained = {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}
    session = Session(cache=False)
    with pytest.raises(LoraLabError, match="cannot be computed from its files"):
        session.combine([str(tmp_path / "pissa")], output=tmp_path / "no")
    report = session.combine([str(tmp_path / "pissa")], base=base, output=tmp_path / "out")
    assert {row["rank"] for row in report.table("modules").rows} == {6}
    again = PeftModel.from_pretrained(network(), str(tmp_path / "out")).merge_and_unload().state_dict()
    for name, tensor in trained.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-5)
    assert [finding.code for finding in report.findings] == ["pissa"]
