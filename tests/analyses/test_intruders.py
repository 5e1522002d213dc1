"""Intruder dimensions from files: against two dense SVDs, against PEFT, and with everything that can be wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from builders import MODULES, delta_of, factors, write_adapter, write_base
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from lora_lab import Session
from lora_lab.analyses.intruders import Intruders
from lora_lab.errors import AdapterError, CancelledError, CompatibilityError
from lora_lab.extension.contracts import Analysis, AnalysisContext, Need
from lora_lab.formats.factors import FactorReader
from lora_lab.storage.arrays import ArrayCache


def rows_of(report: Any) -> dict[str, Mapping[str, Any]]:
    return {row["module"]: row for row in report.table("modules").rows}


def codes(report: Any) -> list[str]:
    return [finding.code for finding in report.findings]


def dense(weight: torch.Tensor, delta: torch.Tensor, top: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of W + ΔW and largest cosines of its left vectors with W's, in NumPy's float64."""
    base, change = weight.double().numpy(), delta.double().numpy()
    left = np.linalg.svd(base, full_matrices=False)[0]
    turned, values, _ = np.linalg.svd(base + change, full_matrices=False)
    return values[:top], np.abs(turned[:, :top].T @ left).max(axis=1)


def agrees(row: Mapping[str, Any], weight: torch.Tensor, delta: torch.Tensor) -> None:
    values, cosines = dense(weight, delta)
    assert row["singular_values"] == pytest.approx(values, rel=1e-6)
    assert row["max_cosines"] == pytest.approx(cosines, abs=1e-4)
    assert row["smallest_cosine"] == min(row["max_cosines"])
    assert [one["index"] for one in row["intruders"]] == (np.flatnonzero(cosines < 0.5) + 1).tolist()
    for one in row["intruders"]:
        assert one["singular_value"] == row["singular_values"][one["index"] - 1]
        assert one["max_cosine"] == row["max_cosines"][one["index"] - 1]


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, str]:
    """An adapter and its base, as locators."""
    return str(write_adapter(tmp_path / "adapter")), str(write_base(tmp_path / "base"))


def test_every_module_against_dense_ones(small: tuple[str, str]) -> None:
    adapter, base = small
    report = Session(cache=False).analyze("intruders", [adapter], base=base)
    rows = rows_of(report)
    assert list(rows) == sorted(MODULES, key=lambda name: int(name.split(".")[2]) * 10 + ("v_proj" in name))
    weights = load_file(Path(base) / "model.safetensors")
    tensors = load_file(Path(adapter) / "adapter_model.safetensors")
    for module, row in rows.items():
        agrees(row, weights[f"{module}.weight"], delta_of(tensors, module, 2.0))
        assert row["tensor"] == f"{module}.weight"
        assert row["intruder_count"] == len(row["intruders"])
    document = report.to_json()
    assert document["prefix"] == ""
    assert document["totals"]["modules"] == 3
    assert document["totals"]["intruders"] == sum(row["intruder_count"] for row in rows.values()) > 0
    assert document["totals"]["modules_with_intruders"] == sum(row["intruder_count"] > 0 for row in rows.values())
    assert document["totals"]["cache_bytes"] is None


def test_top_and_threshold(small: tuple[str, str]) -> None:
    adapter, base = small
    session = Session(cache=False)

    def found(**parameters: Any) -> Mapping[str, Any]:
        report = session.analyze("intruders", [adapter], base=base, parameters=parameters, modules=["*2*q_proj"])
        (row,) = rows_of(report).values()
        return row

    assert len(found(top=3)["max_cosines"]) == 3
    assert len(found(top=1000)["max_cosines"]) == 16
    assert found(threshold=0)["intruder_count"] == 0
    assert found(threshold=1, top=4)["intruder_count"] == 4
    assert found()["threshold"] == 0.5


def test_what_is_kept_changes_no_digit(small: tuple[str, str]) -> None:
    """Cold, from the store and without one: the same numbers; the store's size is told, and another adapter uses it."""
    adapter, base = small
    session = Session()
    cold = session.analyze("intruders", [adapter], base=base)
    plain = Session(cache=False).analyze("intruders", [adapter], base=base)
    again = session.analyze("intruders", [adapter], base=base, parameters={"top": 9})
    assert cold.table("modules") == plain.table("modules")
    for one, other in zip(cold.table("modules").rows, again.table("modules").rows, strict=True):
        assert one["max_cosines"][:9] == pytest.approx(other["max_cosines"][:9], abs=1e-12)
    totals = cold.to_json()["totals"]
    assert totals["cache_limit_bytes"] > totals["cache_bytes"] > 4 * (16 * 16 + 16 * 16 + 8 * 8)
    assert again.to_json()["totals"]["cache_bytes"] == totals["cache_bytes"]


def test_a_decomposition_is_made_once(small: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another adapter on the same base decomposes nothing; a base that changed is decomposed again."""
    from lora_lab.linalg import decompositions

    made = []
    original = decompositions.decompose_weight
    monkeypatch.setattr(
        decompositions, "decompose_weight", lambda *a, **k: (made.append(k["name"]), original(*a, **k))[1]
    )
    adapter, base = small
    session = Session()
    session.analyze("intruders", [adapter], base=base)
    assert len(made) == 3
    other = str(write_adapter(tmp_path / "other", seed=7))
    session.analyze("intruders", [other], base=base)
    assert len(made) == 3
    write_base(Path(base), seed=3)
    changed = session.analyze("intruders", [other], base=base)
    assert len(made) == 6
    module = "model.layers.2.self_attn.v_proj"
    weight = load_file(Path(base) / "model.safetensors")[f"{module}.weight"]
    delta = delta_of(load_file(Path(other) / "adapter_model.safetensors"), module, 2.0)
    agrees(rows_of(changed)[module], weight, delta)


def test_each_way_round_is_kept_by_itself(tmp_path: Path) -> None:
    """A square weight that one adapter takes as (out, in) and another as (in, out)."""
    (tmp_path / "base").mkdir()
    weight = torch.randn(12, 12, generator=torch.Generator().manual_seed(5))
    save_file({"proj.weight": weight}, tmp_path / "base" / "model.safetensors")
    session = Session()
    for is_transposed in (False, True):
        tensors = factors({"proj": (12, 12)})
        adapter = write_adapter(
            tmp_path / f"adapter{is_transposed}", tensors, target_modules=["proj"], fan_in_fan_out=is_transposed
        )
        report = session.analyze("intruders", [str(adapter)], base=str(tmp_path / "base"))
        (row,) = report.table("modules").rows
        assert row["module"] == "proj"
        agrees(row, weight.T if is_transposed else weight, delta_of(tensors, "proj", 2.0))
    assert report.to_json()["totals"]["cache_bytes"] > 2 * weight.nbytes  # a decomposition for each way round


class Tiny(torch.nn.Module):
    """One of every kind of layer whose weight is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.square = torch.nn.Linear(24, 24, bias=False)
        self.wide = torch.nn.Linear(40, 24, bias=False)
        self.tall = torch.nn.Linear(24, 40, bias=False)
        self.embedding = torch.nn.Embedding(50, 16)
        self.conv1d = Conv1D(12, 20)
        self.conv = torch.nn.Conv2d(4, 8, 3)


TARGETS = ["square", "wide", "tall", "embedding", "conv"]


def saved_by_peft(folder: Path, targets: list[str], *, size: float = 1.0, seed: int = 0, **config: Any) -> Any:
    """A PEFT model of `targets`, its factors drawn at random, written as PEFT writes; its base beside it."""
    torch.manual_seed(seed)
    model = Tiny()
    folder.mkdir(exist_ok=True)
    (folder / "base").mkdir()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "base" / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets, **config))
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.data = size * torch.randn_like(parameter) / parameter[0].numel() ** 0.5
            if "magnitude" in name:
                parameter.data *= 1 + torch.rand_like(parameter)
        wrapped.save_pretrained(folder / "adapter")
    return wrapped


def analysed(folder: Path, **parameters: Any) -> Any:
    session = Session(cache=False)
    return session.analyze("intruders", [str(folder / "adapter")], base=str(folder / "base"), parameters=parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("targets", [TARGETS, ["conv1d"]], ids=["torch", "conv1d"])
def test_every_kind_of_layer(tmp_path: Path, targets: list[str], dtype: torch.dtype) -> None:
    """Left vectors are of the matrix that multiplies, (out, in): embeddings and Conv1D are turned."""
    wrapped = saved_by_peft(tmp_path, targets)
    state = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "base" / "model.safetensors").items()}
    save_file(state, tmp_path / "base" / "model.safetensors")
    rows = rows_of(analysed(tmp_path))
    assert set(rows) == set(targets)
    for name in targets:
        layer = getattr(wrapped.base_model.model, name)
        weight, delta = state[f"{name}.weight"], layer.get_delta_weight("default").detach()
        if name in ("embedding", "conv1d"):
            weight, delta = weight.T, delta.T
        agrees(rows[name], weight.flatten(1), delta.flatten(1))


@pytest.mark.parametrize("targets", [TARGETS, ["conv1d"]], ids=["torch", "conv1d"])
def test_dora_is_computed_with_the_base(tmp_path: Path, targets: list[str]) -> None:
    """W′ is what PEFT merges; one magnitude differs from its start, so that it counts."""
    wrapped = saved_by_peft(tmp_path, targets, use_dora=True)
    state = load_file(tmp_path / "base" / "model.safetensors")
    report = analysed(tmp_path)
    merged = wrapped.merge_and_unload()
    for name, row in rows_of(report).items():
        weight, after = state[f"{name}.weight"], getattr(merged, name).weight.detach()
        if name in ("embedding", "conv1d"):
            weight, after = weight.T, after.T
        agrees(row, weight.flatten(1), (after - weight).flatten(1))
    assert set(rows_of(report)) == set(targets)
    (finding,) = (finding for finding in report.findings if finding.code == "dora")
    assert "magnitudes included" in finding.message


@pytest.mark.parametrize("size", [0.1, 2.0])
@pytest.mark.parametrize("use_dora", [False, True])
def test_pissa_is_counted_from_the_original_base(tmp_path: Path, size: float, use_dora: bool) -> None:
    """The file holds W, training began from W without its leading directions; what merges is PEFT's sum."""
    targets = ["square", "wide", "tall"]
    wrapped = saved_by_peft(tmp_path, targets, size=size, init_lora_weights="pissa", use_dora=use_dora)
    state = load_file(tmp_path / "base" / "model.safetensors")
    report = analysed(tmp_path)
    merged = wrapped.merge_and_unload()
    for name, row in rows_of(report).items():
        after = getattr(merged, name).weight.detach()
        agrees(row, state[f"{name}.weight"], after - state[f"{name}.weight"])
    assert set(rows_of(report)) == set(targets)
    assert "pissa" in codes(report)


def test_other_moved_bases_are_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", init_lora_weights="olora")
    with pytest.raises(AdapterError, match="OLoRA"):
        Session(cache=False).analyze("intruders", [str(adapter)], base=str(write_base(tmp_path / "base")))


def test_magnitudes_that_are_not_finite(tmp_path: Path) -> None:
    saved_by_peft(tmp_path, ["square", "wide"], use_dora=True)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    (name,) = (name for name in tensors if "wide.lora_magnitude" in name)
    tensors[name][2] = torch.nan
    save_file(tensors, path)
    report = analysed(tmp_path)
    assert rows_of(report)["wide"]["max_cosines"] is None
    assert rows_of(report)["square"]["max_cosines"] is not None
    (finding,) = (finding for finding in report.findings if finding.module == "wide")
    assert finding.code == "not_finite"
    assert "magnitudes of 'wide'" in finding.message


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("top", "threshold"), [(10, 0.5), (16, 0.7)])
def test_agrees_with_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, size: float, top: int, threshold: float
) -> None:
    """The same indices as ``reduce_intruder_dimension``, layer by layer."""
    wrapped = saved_by_peft(tmp_path, ["square", "wide", "tall"], size=size, seed=seed)
    report = analysed(tmp_path, top=top, threshold=threshold)
    decided: list[list[int]] = []
    where = torch.where

    def recorded(condition: torch.Tensor, *rest: Any) -> Any:
        if not rest:
            decided.append((condition.nonzero().flatten() + 1).tolist())
        return where(condition, *rest)

    monkeypatch.setattr(torch, "where", recorded)
    layers: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduce_intruder_dimension(wrapped, top_k=top, threshold_epsilon=threshold, logging_sink=layers.append)
    names = [line.partition(":")[0].rpartition(".")[2] for line in layers if ": " in line]
    rows = rows_of(report)
    assert names == ["square", "wide", "tall"]
    assert {name: [one["index"] for one in rows[name]["intruders"]] for name in names} == dict(
        zip(names, decided, strict=True)
    )


def test_prefix_is_matched(tmp_path: Path) -> None:
    """An adapter of a task model, a base of the plain one."""
    adapter = write_adapter(tmp_path / "adapter")
    base = write_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, base / "model.safetensors")
    report = Session(cache=False).analyze("intruders", [str(adapter)], base=str(base))
    assert report.to_json()["prefix"] == "model. removed"
    assert len(rows_of(report)) == 3


def test_what_can_be_computed_is(tmp_path: Path) -> None:
    """One module without a place, one of another shape, one NaN in the base, one in a factor: the others stay."""
    names = [f"layers.{layer}.proj" for layer in range(7)]
    tensors = factors(dict.fromkeys(names, (12, 10)))
    tensors["base_model.model.layers.3.proj.lora_A.weight"][0, 0] = torch.nan
    tensors["base_model.model.layers.4.proj.lora_B.weight"].zero_()
    adapter = write_adapter(tmp_path / "adapter", tensors, target_modules=["proj"])
    weights = {f"{name}.weight": torch.randn(12, 10) for name in names if "0" not in name}
    weights["layers.1.proj.weight"] = torch.randn(12, 11)
    weights["layers.2.proj.weight"][3, 3] = torch.inf
    weights["layers.5.proj.weight"].zero_()
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    report = Session().analyze("intruders", [str(adapter)], base=str(tmp_path / "base"))
    rows = rows_of(report)
    assert list(rows) == names[2:]
    assert [rows[name]["max_cosines"] is None for name in names[2:]] == [True, True, False, True, False]
    assert rows[names[4]]["max_cosines"] == pytest.approx([1.0] * 10, abs=1e-9)
    assert rows[names[4]]["intruder_count"] == 0
    assert rows[names[5]]["intruder_count"] is None
    assert len(rows[names[5]]["singular_values"]) == 4
    told = {finding.module: finding for finding in report.findings if finding.module}
    expected = ["unmatched", "shape_mismatch", "not_finite", "not_finite", "zero_delta", "zero_weight"]
    assert [told[name].code for name in names[:6]] == expected
    for name, words in zip(names[:4], ["no weight for", "12×10", "layers.2.proj.weight", "lora_A"], strict=True):
        assert words in told[name].message
    assert report.to_json()["totals"]["modules"] == 2
    assert "NaN" not in json.dumps(report.to_json()["modules"])


def test_a_rank_deficient_base_is_told(tmp_path: Path) -> None:
    """Directions that W has not are none to compare with."""
    adapter = write_adapter(tmp_path / "adapter", factors({"proj": (12, 12)}), target_modules=["proj"])
    (tmp_path / "base").mkdir()
    weight = torch.randn(12, 5) @ torch.randn(5, 12)
    save_file({"proj.weight": weight}, tmp_path / "base" / "model.safetensors")
    report = Session(cache=False).analyze("intruders", [str(adapter)], base=str(tmp_path / "base"))
    (finding,) = (finding for finding in report.findings if finding.code == "zero_directions")
    assert "5 of 12" in finding.message


def test_a_sum_of_zero_is_told(tmp_path: Path) -> None:
    """ΔW = −W."""
    tensors = {"base_model.model.proj.lora_A.weight": torch.eye(4), "base_model.model.proj.lora_B.weight": torch.eye(4)}
    adapter = write_adapter(tmp_path / "adapter", tensors, alpha=4, target_modules=["proj"])
    (tmp_path / "base").mkdir()
    save_file({"proj.weight": -torch.eye(4)}, tmp_path / "base" / "model.safetensors")
    report = Session(cache=False).analyze("intruders", [str(adapter)], base=str(tmp_path / "base"))
    (row,) = rows_of(report).values()
    assert row["singular_values"] == []
    assert row["intruder_count"] is None
    assert "zero_sum" in codes(report)


def test_quantised_and_wrong_bases_are_refused(small: tuple[str, str], tmp_path: Path) -> None:
    """One sentence, and the next step."""
    adapter, _ = small
    packed = tmp_path / "packed"
    packed.mkdir()
    save_file(
        {f"{name}.weight": torch.zeros(shape, dtype=torch.int8) for name, shape in MODULES.items()},
        packed / "model.safetensors",
    )
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    save_file({"h.0.mlp.weight": torch.ones(5, 5)}, foreign / "model.safetensors")
    session = Session(cache=False)
    with pytest.raises(CompatibilityError, match="stored as I8, expected F64, F32, F16 or BF16") as packed_error:
        session.analyze("intruders", [adapter], base=str(packed))
    with pytest.raises(CompatibilityError, match="no weight for 'model") as foreign_error:
        session.analyze("intruders", [adapter], base=str(foreign))
    assert "lora-lab check" in packed_error.value.hint == foreign_error.value.hint


def test_it_can_be_cancelled(small: tuple[str, str], watcher: type, tmp_path: Path) -> None:
    """Between two modules; what was decomposed until then is kept."""
    session = Session(cache=False)
    adapter, base = session.adapter(small[0]), session.base(small[1])
    store = ArrayCache(tmp_path / "arrays", limit_bytes=1 << 20)
    observer = watcher(cancel_after=1)
    context = AnalysisContext(
        (adapter,), FactorReader(), base, {"top": 10, "threshold": 0.5}, observer=observer, store=store
    )
    with pytest.raises(CancelledError):
        Intruders().run(context)
    assert store.size_bytes > 0
    assert 1 <= len(observer.told) < 3


def test_progress_and_rows_are_told(small: tuple[str, str], watcher: type) -> None:
    session = Session(cache=False)
    observer = watcher()
    report = session.analyze("intruders", [small[0]], base=small[1], observer=observer)
    assert tuple(observer.told) == report.table("modules").rows
    assert observer.steps[-1][:2] == (3, 3)


def test_it_declares_itself() -> None:
    analysis = Intruders()
    assert isinstance(analysis, Analysis)
    assert analysis.base is Need.REQUIRED
    assert {parameter.id: parameter.default for parameter in analysis.parameters} == {"top": 10, "threshold": 0.5}


def test_peft_has_not_changed_its_mind() -> None:
    """What PEFT calls an intruder by default is what we do."""
    import inspect

    defaults = {
        name: parameter.default for name, parameter in inspect.signature(reduce_intruder_dimension).parameters.items()
    }
    assert (defaults["top_k"], defaults["threshold_epsilon"]) == (10, 0.5), peft.__version__


@pytest.mark.parametrize(
    "config", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["plain", "dora", "pissa"]
)
def test_large_weights_go_to_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> None:
    """As large as 9 here: the same rows as without them, and from the store the same digits again."""
    from lora_lab.linalg import tridiagonal

    saved_by_peft(tmp_path, ["square", "wide", "tall"], **config)
    here = rows_of(analysed(tmp_path))
    monkeypatch.setattr(tridiagonal, "SMALLEST_SIDE", 9)
    sent = []
    original = tridiagonal._exchanged
    monkeypatch.setattr(tridiagonal, "_exchanged", lambda child, side: (sent.append(side), original(child, side))[1])
    session = Session()
    place = (str(tmp_path / "adapter"),), str(tmp_path / "base")
    first = rows_of(session.analyze("intruders", place[0], base=place[1]))
    decomposed = len(sent)
    again = rows_of(session.analyze("intruders", place[0], base=place[1], parameters={"top": 9}))
    assert decomposed == (6 if config.get("use_dora") else 3)
    assert len(sent) == decomposed + (3 if config.get("use_dora") else 0)
    for name, row in first.items():
        assert row["max_cosines"] == pytest.approx(here[name]["max_cosines"], abs=1e-5)
        assert row["singular_values"] == pytest.approx(here[name]["singular_values"], rel=1e-6)
        assert row["max_cosines"][:9] == pytest.approx(again[name]["max_cosines"], abs=1e-12)


def test_a_cancelled_run_leaves_no_process(tmp_path: Path, watcher: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop between two modules, while others are being decomposed."""
    from lora_lab.linalg import tridiagonal

    names = [f"layers.{layer}.proj" for layer in range(12)]
    adapter = write_adapter(tmp_path / "a", factors(dict.fromkeys(names, (1100, 1100))), target_modules=["proj"])
    (tmp_path / "base").mkdir()
    save_file({f"{name}.weight": torch.randn(1100, 1100) for name in names}, tmp_path / "base" / "model.safetensors")
    made: list[Any] = []
    original = tridiagonal.subprocess.Popen
    monkeypatch.setattr(tridiagonal.subprocess, "Popen", lambda *a, **k: (made.append(original(*a, **k)), made[-1])[1])
    session = Session(cache=False)
    with pytest.raises(CancelledError):
        session.analyze("intruders", [str(adapter)], base=str(tmp_path / "base"), observer=watcher(cancel_after=2))
    assert made
    assert all(child.returncode is not None for child in made)
