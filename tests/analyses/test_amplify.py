"""Amplification from files: every number against dense float64, DoRA and PiSSA against PEFT's own merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import MODULES, delta_of, factors, write_adapter, write_base
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_lab import LoraLabError, Session
from lora_lab.errors import AdapterError, CompatibilityError


def rows_of(report: Any) -> dict[str, Any]:
    return {row["module"]: row for row in report.table("modules").rows}


def analyze(adapter: Path, base: Path, *, cache: bool = False, **parameters: Any) -> Any:
    return Session(cache=cache).analyze("amplify", [str(adapter)], base=str(base), parameters=parameters)


def dense(weight: np.ndarray, change: np.ndarray, rank: int) -> dict[str, Any]:
    """Table 7 of the paper for one weight, from dense decompositions."""
    left, values, right = np.linalg.svd(change, full_matrices=False)
    own = np.linalg.norm(left[:, :rank].T @ weight @ right[:rank].T)
    leading = np.linalg.norm(np.linalg.svd(weight, compute_uv=False)[:rank])
    norm = np.linalg.norm(weight)
    return {
        "delta_norm": np.linalg.norm(values),
        "base_norm": norm,
        "projected": {"delta": own, "base": leading, "random": norm * rank / np.sqrt(weight.size)},
        "amplification": np.linalg.norm(values) / own,
    }


def agrees(row: Any, weight: np.ndarray, change: np.ndarray, rank: int, *, rel: float = 2e-6) -> None:
    expected = dense(weight.reshape(len(weight), -1), change.reshape(len(change), -1), rank)
    assert row["rank"] == rank
    for name in ("delta_norm", "base_norm", "amplification"):
        assert row[name] == pytest.approx(expected[name], rel=rel), name
    assert row["projected"] == pytest.approx(expected["projected"], rel=rel)
    for of in ("base", "random"):
        assert row[f"amplification_{of}"] == pytest.approx(row["delta_norm"] / row["projected"][of])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def weights(base: Path) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in load_file(base / "model.safetensors").items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rank", [None, 2])
def test_every_number(adapter: Path, base: Path, dtype: torch.dtype, rank: int | None) -> None:
    """Norms, projections and ratios of every module, for bases of every plain type."""
    stored = {name: tensor.to(dtype) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(stored, base / "model.safetensors")
    report = analyze(adapter, base, rank=rank)
    assert list(rows_of(report)) == sorted(MODULES, key=lambda name: int(name.split(".")[2]) * 10 + ("v_proj" in name))
    for module, row in rows_of(report).items():
        agrees(row, weights(base)[f"{module}.weight"], delta_of(factors(), module, 2.0).numpy(), rank or 4)
        assert row["tensor"] == f"{module}.weight"
    totals = report.to_json()["totals"]
    ratios = [row["amplification"] for row in rows_of(report).values()]
    assert totals["median_amplification"] == pytest.approx(np.median(ratios))
    assert totals["largest_amplification"] == max(ratios)


@given(scale=st.floats(1e-3, 1e3))
def test_amplification_is_proportional(scale: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    """That of c·ΔW is c times that of ΔW: its directions are the same."""
    folder = tmp_path_factory.mktemp("law")
    base = write_base(folder / "base")
    one = rows_of(analyze(write_adapter(folder / "one", alpha=4), base))
    many = rows_of(analyze(write_adapter(folder / "many", alpha=4 * scale), base))
    for module, row in one.items():
        assert many[module]["amplification"] == pytest.approx(scale * row["amplification"], rel=1e-9)
        assert many[module]["projected"] == pytest.approx(row["projected"], rel=1e-9)


def test_the_base_in_its_own_directions(tmp_path: Path, base: Path) -> None:
    """Where ΔW is the base's own best approximation of rank 3, UᵀWV holds its first three values."""
    tensors = {}
    for name, weight in weights(base).items():
        U, S, Vh = np.linalg.svd(weight, full_matrices=False)
        start = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{start}.lora_A.weight"] = torch.tensor(np.ascontiguousarray(Vh[:3]))
        tensors[f"{start}.lora_B.weight"] = torch.tensor(np.ascontiguousarray(U[:, :3] * S[:3]))
    adapter = write_adapter(tmp_path / "own", tensors, rank=3, alpha=3)
    for row in rows_of(analyze(adapter, base)).values():
        assert row["projected"]["delta"] == pytest.approx(row["projected"]["base"], rel=1e-6)
        assert row["amplification"] == pytest.approx(1.0, rel=1e-6)


def test_random_draws(adapter: Path, base: Path) -> None:
    """Their root mean square approaches the closed form; a seed decides them, and the order of modules does not."""
    closed = rows_of(analyze(adapter, base))
    drawn = rows_of(analyze(adapter, base, draws=400))
    for module, row in drawn.items():
        assert row["projected"]["random"] == pytest.approx(closed[module]["projected"]["random"], rel=0.15)
        assert row["projected"]["random"] != closed[module]["projected"]["random"]
        assert row["projected"]["delta"] == pytest.approx(closed[module]["projected"]["delta"], rel=1e-6)
    one = Session(cache=False).analyze(
        "amplify", [str(adapter)], base=str(base), parameters={"draws": 400}, modules=["*.v_proj"]
    )
    (only,) = one.table("modules").rows
    assert only == drawn[only["module"]]
    other = Session(cache=False, seed=1).analyze("amplify", [str(adapter)], base=str(base), parameters={"draws": 400})
    assert rows_of(other)[only["module"]]["projected"]["random"] != only["projected"]["random"]


def test_the_bases_own_directions_are_remembered(adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow part is done once for each weight as it is; without it the column is empty."""
    first = rows_of(analyze(adapter, base, cache=True))
    other = write_adapter(adapter.with_name("other"), seed=9)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("lora_lab.linalg.leading.leading_norm", never)
    again = rows_of(analyze(other, base, cache=True))
    for module, row in again.items():
        assert row["projected"]["base"] == first[module]["projected"]["base"]
    without = rows_of(analyze(adapter, base, base_directions=False))
    assert {row["projected"]["base"] for row in without.values()} == {None}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.q_proj = nn.Linear(12, 20)
        self.c_attn = Conv1D(24, 12)
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.q_proj(self.embed(tokens))


def made(folder: Path, **settings: Any) -> tuple[Path, Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Base and adapter as files, the base's weights, and those after PEFT's own merge in float64."""
    torch.manual_seed(3)
    net = Net()
    base = folder / "base"
    base.mkdir()
    save_file({name: tensor.clone() for name, tensor in net.state_dict().items()}, base / "model.safetensors")
    before = {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}
    model = get_peft_model(net, LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.3 * noise.abs() if "magnitude" in name else 0.3 * noise)
    model.save_pretrained(folder / "adapter")
    merged = model.double().merge_and_unload().state_dict()
    return base, folder / "adapter", before, {name: tensor.numpy() for name, tensor in merged.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed"]},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        {"target_modules": ["conv"]},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["embed"], "use_dora": True},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
        {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
    ],
    ids=lambda settings: " ".join(str(value) for value in settings.values()),
)
def test_the_change_that_peft_would_make(settings: dict[str, Any], tmp_path: Path) -> None:
    """Orientation of every kind, DoRA's real change, and PiSSA's from the original base."""
    base, adapter, before, after = made(tmp_path, **settings)
    report = analyze(adapter, base)
    (module,) = settings["target_modules"]
    row = rows_of(report)[module]
    rank = 8 if "init_lora_weights" in settings else 4
    agrees(row, before[f"{module}.weight"], after[f"{module}.weight"] - before[f"{module}.weight"], rank, rel=2e-5)
    codes = {finding.code for finding in report.findings}
    assert ("dora" in codes) == ("use_dora" in settings)
    assert ("pissa" in codes) == ("init_lora_weights" in settings)


@pytest.mark.filterwarnings("ignore")
def test_a_start_that_cannot_be_found_again_is_refused(tmp_path: Path) -> None:
    """PiSSA by a randomised decomposition moved the base in a way that nobody knows."""
    base, adapter, *_ = made(tmp_path, target_modules=["q_proj"], init_lora_weights="pissa_niter_4")
    with pytest.raises(AdapterError, match="PiSSA"):
        analyze(adapter, base)


def test_another_prefix_is_told(tmp_path: Path, base: Path) -> None:
    """An adapter of a task model lands on the plain model's file, and the report says how."""
    tensors = {
        name.replace("base_model.model.", "base_model.model.bert."): tensor for name, tensor in factors().items()
    }
    report = analyze(write_adapter(tmp_path / "task", tensors), base)
    assert report.to_json()["prefix"] == "bert. removed"
    assert len(rows_of(report)) == len(MODULES)


def test_what_can_be_computed_is(tmp_path: Path, adapter: Path) -> None:
    """A broken weight, a missing one and a zero update are findings; the rest has its numbers."""
    base = tmp_path / "partly"
    names = list(MODULES)
    tensors = {f"{module}.weight": torch.ones(shape) for module, shape in MODULES.items()}
    tensors[f"{names[0]}.weight"][0, 0] = torch.nan
    del tensors[f"{names[1]}.weight"]
    base.mkdir()
    save_file(tensors, base / "model.safetensors")
    report = analyze(adapter, base)
    rows = rows_of(report)
    assert rows[names[0]]["amplification"] is None
    assert names[1] not in rows
    assert rows[names[2]]["amplification"] > 0
    assert {"not_finite", "unmatched"} <= {finding.code for finding in report.findings}
    zero = {name: tensor * ("lora_A" in name) for name, tensor in factors().items()}
    report = analyze(write_adapter(tmp_path / "zero", zero), write_base(tmp_path / "base"))
    assert {row["amplification"] for row in rows_of(report).values()} == {None}
    assert "zero_delta" in {finding.code for finding in report.findings}
    json.dumps(report.to_json(), allow_nan=False)


def test_bad_input(tmp_path: Path, adapter: Path, base: Path) -> None:
    """One sentence each, with the next step."""
    with pytest.raises(LoraLabError, match="needs the base model"):
        Session(cache=False).analyze("amplify", [str(adapter)])
    with pytest.raises(CompatibilityError, match="configuration without weights"):
        analyze(adapter, base / "config.json")
    other = tmp_path / "other"
    other.mkdir()
    save_file({"blocks.0.conv.weight": torch.ones(3, 3, 3, 3)}, other / "model.safetensors")
    with pytest.raises(CompatibilityError, match="No module of 'adapter' can be compared with 'other'"):
        analyze(adapter, other)
    with pytest.raises(LoraLabError, match="rank is '0'"):
        analyze(adapter, base, rank=0)
