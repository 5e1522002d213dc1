"""Combined and resized adapters against PEFT, which loads them and changes the base by what was computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import MODULES, contents, delta_of, write_adapter
from peft_adapters import EPS, adapter, change, require_sum
from peft_models import Mixture, Net
from safetensors.torch import load_file
from torch import nn

from lora_lab import LoraLabError, Session
from lora_lab.errors import CancelledError
from lora_lab.extension.contracts import MergeContext
from lora_lab.formats.factors import FactorReader

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ranks and targets": (
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "classifier"], "r": 2, "lora_alpha": 7},
    ),
    "rslora": ({"target_modules": ["q_proj"], "use_rslora": True}, {"target_modules": ["q_proj"]}),
    "patterns": (
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {r"layers\.2\..*q_proj": 2, "v_proj": 3},
            "alpha_pattern": {"10.q_proj": 5},
        },
        {"target_modules": r".*\.2\.(q|v)_proj"},
    ),
    "fan_in_fan_out": (
        {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 3},
    ),
    "embedding": ({"target_modules": ["embed", "q_proj"]}, {"target_modules": ["embed"], "r": 5}),
    "convolutions": (
        {"target_modules": ["conv", "point", "line"]},
        {"target_modules": ["conv", "line"], "use_rslora": True},
    ),
    "lora_bias": ({"target_modules": ["q_proj"], "lora_bias": True}, {"target_modules": ["q_proj", "v_proj"]}),
}


@pytest.mark.parametrize("method", ["linear", "cat"])
@pytest.mark.parametrize("case", CASES)
def test_peft_reads_the_sum(tmp_path: Path, case: str, method: str) -> None:
    """Σ wᵢΔWᵢ to the rounding of float32, whatever the adapters' ranks, scalings and layers; one is taken away."""
    locators = [adapter(tmp_path / f"in{place}", place, **settings) for place, settings in enumerate(CASES[case])]
    report = Session().combine(locators, method=method, strengths=[0.7, -1.0], output=tmp_path / "out")
    require_sum(change(tmp_path / "out"), [change(locator) for locator in locators], [0.7, -1.0])
    assert max(row["relative_error"] for row in report.table("modules").rows) < 4 * EPS
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["use_rslora"] is False
    assert said["r"] == said["lora_alpha"]
    assert said["rank_pattern"] == said["alpha_pattern"]
    again = Session().adapter(str(tmp_path / "out"))
    assert {delta.scaling for delta in again.deltas} == {1.0}
    assert not again.findings


FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "layers": (
        {"target_modules": ["q_proj", "embed", "conv", "line"], "use_rslora": True},
        {"target_modules": ["q_proj", "embed", "conv", "line"], "rank_pattern": {"q_proj": 2}},
    ),
    "fan_in_fan_out": (
        {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 3},
    ),
    "experts": (
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "kind": Mixture},
        {"target_modules": [], "target_parameters": ["experts.down_proj", "experts.gate_up_proj"], "kind": Mixture},
    ),
    "lora_bias": ({"target_modules": ["q_proj"], "lora_bias": True}, {"target_modules": ["q_proj"]}),
}
EVERY = [(method, "layers") for method in Session(plugins=False).registry.methods]
EVERY += [(method, case) for case in ("fan_in_fan_out", "experts", "lora_bias") for method in ("svd", "ties", "della")]


@pytest.mark.parametrize(("method", "case"), EVERY)
def test_peft_reads_what_every_method_computed(tmp_path: Path, method: str, case: str) -> None:
    """ΔW of the file, as PEFT merges it, is the product of the very factors that the method gives."""
    kind: type[nn.Module] = FEATURES[case][0].get("kind", Net)
    places = [adapter(tmp_path / f"in{place}", place, **settings) for place, settings in enumerate(FEATURES[case])]
    session, strengths = Session(seed=2), [1.0, 0.5]
    session.combine(places, method=method, strengths=strengths, rank=3, output=tmp_path / "out")
    found, chosen = change(tmp_path / "out", kind), session.registry.methods[method]
    context = MergeContext({one.id: one.default for one in chosen.parameters}, rank=3, seed=2)
    one, other = (session.adapter(place) for place in places)
    for delta in one.deltas:
        factors = [FactorReader().factors(each.by_module[delta.module]) for each in (one, other)]
        made = chosen.combine(factors, strengths, context).factors
        dense = made.lora_B @ made.lora_A
        tensor = found[delta.weight_path if delta.expert is not None else f"{delta.module}.weight"]
        tensor = tensor if delta.expert is None else tensor[delta.expert]
        dense = dense.T if made.is_transposed else dense.reshape(tensor.shape)
        assert float((tensor - dense).norm()) <= 4 * EPS * float(dense.norm()), delta.module


WHOLE: dict[str, dict[str, Any]] = {
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "biases of targets": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["classifier", "v_proj"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed": [7, 2]}},
    "tokens of the input": {"target_modules": ["q_proj", "embed"], "r": 2, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {r"layers\.2\..*q_proj": 2, "v_proj": 3},
        "alpha_pattern": {"10.q_proj": 5},
    },
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_stands_beside_the_factors_goes_along(tmp_path: Path, case: str) -> None:
    """One adapter at strength 1 is itself, with all that it replaces; a plain one beside it changes nothing of that."""
    place = adapter(tmp_path / "a", 1, **WHOLE[case])
    plain = adapter(tmp_path / "b", 2, target_modules=["line"])
    Session().combine([place], output=tmp_path / "one")
    require_sum(change(tmp_path / "one"), [change(place)], [1.0])
    Session().combine([place, plain], output=tmp_path / "two", method="cat")
    require_sum(change(tmp_path / "two"), [change(place), change(plain)], [1.0, 1.0])


def test_what_is_whole_has_no_factors(tmp_path: Path) -> None:
    """PEFT would load one of the two: refused until one is left out."""
    head = adapter(tmp_path / "a", 1, target_modules=["q_proj"], modules_to_save=["classifier"])
    tokens = adapter(tmp_path / "b", 2, target_modules=["q_proj"], trainable_token_indices={"embed": [7, 2]})
    factors = adapter(tmp_path / "c", 3, target_modules=["classifier", "embed"])
    for other in (head, tokens):
        with pytest.raises(LoraLabError, match="PEFT loads one of the two"):
            Session().combine([other, factors], output=tmp_path / "no")
    Session().combine([head, factors], skip_saved_modules=True, output=tmp_path / "out")
    found, second = change(tmp_path / "out"), change(factors)
    torch.testing.assert_close(
        found["layers.2.classifier.weight"], second["layers.2.classifier.weight"], rtol=0, atol=1e-6
    )


def test_tokens_that_two_trained(tmp_path: Path) -> None:
    """Of one embedding: refused until one says; averaged row by row where they are the same tokens."""
    same: dict[str, Any] = {"target_modules": ["q_proj"], "trainable_token_indices": {"embed": [7, 2]}}
    a, b = (adapter(tmp_path / name, place, **same) for place, name in enumerate("ab"))
    c = adapter(tmp_path / "c", 3, target_modules=["q_proj"], trainable_token_indices={"embed": [7, 3]})
    session = Session()
    with pytest.raises(LoraLabError, match="expected one of them"):
        session.combine([a, b], output=tmp_path / "no")
    first, second = change(a), change(b)
    session.combine([a, b], strengths=[3, 1], average_saved_modules=True, output=tmp_path / "mean")
    session.combine([a, c], saved_modules_from="a", output=tmp_path / "from")
    session.combine([a, c], skip_saved_modules=True, output=tmp_path / "skip")
    for layer in ("2", "10"):
        name = f"layers.{layer}.embed.weight"
        mean = 0.75 * first[name] + 0.25 * second[name]
        torch.testing.assert_close(change(tmp_path / "mean")[name], mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(change(tmp_path / "from")[name], first[name])
        assert float(change(tmp_path / "skip")[name].abs().max()) == 0.0
    with pytest.raises(LoraLabError, match="has no mean"):
        session.combine([a, c], average_saved_modules=True, output=tmp_path / "no")


def test_a_full_model_is_no_input(tmp_path: Path, samples: Path) -> None:
    """Said where one would look for task arithmetic, with the way to go."""
    with pytest.raises(LoraLabError, match=r"is a full model, expected an adapter.*task arithmetic") as refused:
        Session().combine([str(samples / "finetuned-banking77")], output=tmp_path / "no")
    assert "lora-lab extract" in refused.value.hint


PROGRAM = """
import sys
from lora_lab import Session
a, b, out = sys.argv[1:]
for method in ("linear", "svd", "dare_ties", "della"):
    Session(cache=False).combine([a, b], method=method, strengths=[1, -0.5], rank=3, output=f"{out}-{method}")
"""


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    """Two processes with other orders of sets: configuration and weights are the same."""
    a = adapter(tmp_path / "a", 0, target_modules=["q_proj", "v_proj", "conv"], modules_to_save=["classifier"])
    b = adapter(tmp_path / "b", 1, target_modules=["line", "v_proj", "embed"])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, a, b, str(tmp_path / seed)], env={**os.environ, "PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    for method in ("linear", "svd", "dare_ties", "della"):
        one, two = (contents(tmp_path / f"{seed}-{method}") for seed in ("1", "2"))
        assert one.keys() == two.keys()
        assert all(one[name] == two[name] for name in one if name != "lora_lab_receipt.json")


def test_one_adapter_at_strength_one_is_itself_and_a_minus_a_is_zero(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a", 0, target_modules=["q_proj", "embed", "conv"])
    Session().combine([a], output=tmp_path / "one")
    require_sum(change(tmp_path / "one"), [change(a)], [1.0])
    report = Session().combine([a, a], strengths=[1, -1], output=tmp_path / "none")
    assert all(float(tensor.abs().max()) == 0.0 for tensor in change(tmp_path / "none").values())
    assert [finding.code for finding in report.findings] == ["zero_delta"]
    assert {row["relative_error"] for row in report.table("modules").rows} == {None}


@pytest.mark.parametrize("method", ["linear", "cat"])
def test_a_file_of_float64_is_exact(tmp_path: Path, method: str) -> None:
    """To 1e-12 of what is added: nothing on the way to the file is narrower."""
    folders = [write_adapter(tmp_path / name, rank=rank, seed=rank) for name, rank in (("a", 4), ("b", 3))]
    parts = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    Session().combine(
        [str(folder) for folder in folders],
        strengths=[0.7, -1.3],
        method=method,
        dtype="float64",
        output=tmp_path / "out",
    )
    made = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in made.values()} == {torch.float64}
    for module in MODULES:
        one, other = 0.7 * delta_of(parts[0], module, 8 / 4), -1.3 * delta_of(parts[1], module, 8 / 3)
        away = (delta_of(made, module, 1.0) - one - other).norm()
        assert float(away) <= 1e-12 * float(one.norm() + other.norm())


@pytest.mark.parametrize("method", ["linear", "svd", "ties"])
def test_the_order_of_the_inputs_does_not_matter(tmp_path: Path, method: str) -> None:
    """Not to a bit of the weights."""
    a, b = (adapter(tmp_path / name, place, target_modules=["q_proj"]) for place, name in enumerate("ab"))
    Session().combine([a, b], strengths=[2, -1], method=method, rank=3, output=tmp_path / "ab")
    Session().combine([b, a], strengths=[-1, 2], method=method, rank=3, output=tmp_path / "ba")
    first, second = (contents(tmp_path / name)["adapter_model.safetensors"] for name in ("ab", "ba"))
    assert first == second


@pytest.mark.parametrize("cut", [{"rank": 2}, {"energy": 0.8}, {"error": 0.3}, {"parameters": 300}])
def test_resizing_costs_what_the_report_says(tmp_path: Path, cut: dict[str, Any]) -> None:
    """Every cut keeps its word, and PEFT reads the ranks, which differ from module to module."""
    a = adapter(tmp_path / "a", 0, target_modules=["q_proj", "v_proj", "conv"], r=6)
    report = Session().resize(a, output=tmp_path / "out", **cut)
    before, after = change(a), change(tmp_path / "out")
    rows = {row["module"]: row for row in report.table("modules").rows}
    for module, row in rows.items():
        whole = before[f"{module}.weight"]
        error = float((after[f"{module}.weight"] - whole).norm() / whole.norm())
        assert error == pytest.approx(row["relative_error"], rel=1e-4)
        values = torch.linalg.svdvals(whole.flatten(1))
        assert error == pytest.approx(float(values[row["rank"] :].norm() / whole.norm()), rel=1e-4, abs=1e-6)
        if "rank" in cut:
            assert row["rank"] == 2
        else:
            bound = {"energy": 0.2**0.5, "error": 0.3}.get(next(iter(cut)), 1.0)
            assert error <= bound * (1 + 1e-6)
            fewer = float(values[row["rank"] - 1 :].norm() / whole.norm())
            assert fewer > bound or "parameters" in cut
    if "parameters" in cut:
        assert sum(row["parameters"] for row in rows.values()) <= 300
    for name, tensor in after.items():  # what the budget leaves out is not changed
        if name.removesuffix(".weight") not in rows:
            assert float(tensor.abs().max()) == 0.0


def test_saved_modules_are_taken_as_one_says(tmp_path: Path) -> None:
    """Refused where two bring the same; one's, the mean weighed by strength, or none."""
    both = {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}
    a, b = (adapter(tmp_path / name, place, **both) for place, name in enumerate("ab"))
    plain = adapter(tmp_path / "plain", 5, target_modules=["q_proj"])
    session = Session()
    with pytest.raises(LoraLabError, match="expected one of them") as refused:
        session.combine([a, b], output=tmp_path / "no")
    assert "--average-saved-modules" in refused.value.hint
    first, second = change(a), change(b)
    head = "layers.10.classifier.weight"
    session.combine([a, b], saved_modules_from="b", output=tmp_path / "from")
    torch.testing.assert_close(change(tmp_path / "from")[head], second[head])
    session.combine([a, b], strengths=[3, 1], average_saved_modules=True, output=tmp_path / "mean")
    torch.testing.assert_close(
        change(tmp_path / "mean")[head], 0.75 * first[head] + 0.25 * second[head], atol=1e-6, rtol=0
    )
    session.combine([a, b], skip_saved_modules=True, output=tmp_path / "skip")
    assert float(change(tmp_path / "skip")[head].abs().max()) == 0.0
    report = session.combine([a, plain], strengths=[0.5, 1], output=tmp_path / "alone")
    torch.testing.assert_close(change(tmp_path / "alone")[head], first[head])
    assert [finding.code for finding in report.findings] == ["saved_modules_whole"]
    with pytest.raises(LoraLabError, match="expected one of: 'a', 'b'"):
        session.combine([a, b], saved_modules_from="c", output=tmp_path / "no")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"target_modules": ["q_proj"], "use_dora": True}, "DoRA"),
    "other shape": ({"target_modules": ["c_attn"], "fan_in_fan_out": True}, "expected one shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_sum_is_refused_by_name(tmp_path: Path, case: str) -> None:
    settings, match = REFUSED[case]
    a = adapter(tmp_path / "a", 0, **settings)
    if case == "other shape":
        b = adapter(tmp_path / "b", 1, **settings)
        config = tmp_path / "b" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": False}))
    else:
        b = adapter(tmp_path / "b", 1, target_modules=["q_proj"])
    with pytest.raises(LoraLabError, match=match):
        Session().combine([a, b], output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("method", ["svd", "cat", "dare_ties"])
def test_a_replay_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    a, b = (adapter(tmp_path / name, place, target_modules=["q_proj", "v_proj"]) for place, name in enumerate("ab"))
    session = Session(seed=3)
    session.combine([a, b], method=method, strengths=[1, -0.5], rank=3, dtype="bfloat16", output=tmp_path / "out")
    report = Session().replay(tmp_path / "out", output=tmp_path / "again")
    assert report.verdict is True
    one, two = (tmp_path / name / "adapter_model.safetensors" for name in ("out", "again"))
    assert one.read_bytes() == two.read_bytes()
    assert {tensor.dtype for tensor in load_file(one).values()} == {torch.bfloat16}
    session.resize(a, energy=0.5, output=tmp_path / "small")
    assert Session().replay(tmp_path / "small", output=tmp_path / "smaller").verdict is True


def test_nothing_is_written_by_a_dry_run_and_nothing_replaced_unasked(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a", 0, target_modules=["q_proj"])
    report = Session().combine([a], output=tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    sizes = {row["path"]: row["size_bytes"] for row in report.table("outputs").rows}
    Session().combine([a], output=tmp_path / "out")
    assert {name: (tmp_path / "out" / name).stat().st_size for name in sizes} == sizes
    for is_dry in (True, False):
        with pytest.raises(LoraLabError, match="exists already"):
            Session().combine([a], output=tmp_path / "out", dry_run=is_dry)
    Session().combine([a], strengths=[2], output=tmp_path / "out", overwrite=True)
    require_sum(change(tmp_path / "out"), [change(a)], [2.0])


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"method": "nothing"}, "no method 'nothing'"),
    ({"settings": {"density": 0.5}}, "no parameter 'density'"),
    ({"method": "ties", "settings": {"density": "2"}}, "density is '2"),
    ({"strengths": [1.0, 2.0]}, "Got 2 strengths for 1 adapters"),
    ({"strengths": [float("nan")]}, "expected a finite number"),
    ({"rank": 0}, "rank is 0"),
    ({"energy": 1.5}, "energy is 1.5"),
    ({"error": 0.0}, "error is 0"),
    ({"energy": 0.5, "error": 0.5}, "expected one"),
    ({"parameters": 100, "rank": 2}, "expected one"),
    ({"parameters": 3}, "leave no rank"),
    ({"parameters": 1000, "method": "ties"}, "full rank"),
    ({"skip_saved_modules": True, "average_saved_modules": True}, "both were asked for"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
)


@pytest.mark.parametrize(("settings", "match"), WRONG)
def test_what_makes_no_sense_is_said(tmp_path: Path, settings: dict[str, Any], match: str) -> None:
    a = adapter(tmp_path / "a", 0, target_modules=["q_proj"])
    with pytest.raises(LoraLabError, match=match):
        Session().combine([a], output=tmp_path / "out", **settings)
    with pytest.raises(LoraLabError, match="Nothing says"):
        Session().resize(a, output=tmp_path / "out")


def test_a_seed_of_its_own(tmp_path: Path) -> None:
    """Said with the call it is that of a session which has it, and it stands in the receipt."""
    first = adapter(tmp_path / "a", 1, target_modules=["q_proj"])
    how: dict[str, Any] = {"method": "dare_linear", "rank": 3}
    Session(seed=5, cache=False).combine([first], output=tmp_path / "session", **how)
    report = Session(cache=False).combine([first], output=tmp_path / "call", seed=5, **how)
    Session(cache=False).combine([first], output=tmp_path / "other", **how)
    weights = {
        name: (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("session", "call", "other")
    }
    assert weights["session"] == weights["call"] != weights["other"]
    assert report.to_json()["arguments"]["seed"] == 5


class Leaving:
    """Wants it no longer once every module is computed."""

    def __init__(self) -> None:
        self.is_over = False

    def advance(self, done: int, total: int, what: str = "") -> None:
        self.is_over = done == total

    def rows(self, table: str, rows: Any) -> None:
        """None."""

    def is_cancelled(self) -> bool:
        return self.is_over


def test_cancelled_while_it_is_written(tmp_path: Path) -> None:
    """Nothing is left, neither the folder nor what was to become it."""
    first = adapter(tmp_path / "a", 1, target_modules=["q_proj"])
    with pytest.raises(CancelledError):
        Session(cache=False).combine([first], output=tmp_path / "out", observer=Leaving())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


EXPERTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one parameter": (
        {"target_parameters": ["experts.gate_up_proj"]},
        {"target_parameters": ["experts.gate_up_proj"], "r": 2, "use_rslora": True},
    ),
    "nested": (
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "rank_pattern": {"down_proj": 2}},
        {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"], "r": 3, "lora_alpha": 5},
    ),
    "one each": ({"target_parameters": ["experts.gate_up_proj"]}, {"target_parameters": ["experts.down_proj"]}),
    "one of two": (
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        {"target_parameters": ["experts.down_proj"]},
    ),
}


@pytest.mark.parametrize("cut", [{}, {"method": "svd", "rank": 3}, {"energy": 0.7}, {"parameters": 700}], ids=str)
@pytest.mark.parametrize("case", EXPERTS)
def test_experts(tmp_path: Path, case: str, cut: dict[str, Any]) -> None:
    """Each expert has a sum of its own; packed and nested as PEFT reads them, at one rank for each parameter."""
    places = [
        adapter(tmp_path / f"in{place}", place, kind=Mixture, target_modules=[], **settings)
        for place, settings in enumerate(EXPERTS[case])
    ]
    report = Session().combine(places, strengths=[0.7, -1.0], output=tmp_path / "out", **cut)
    found, parts = change(tmp_path / "out", Mixture), [change(place, Mixture) for place in places]
    if not cut:
        require_sum(found, parts, [0.7, -1.0])
    rows = {row["module"]: row for row in report.table("modules").rows}
    for name, tensor in found.items():
        whole = 0.7 * parts[0][name] - parts[1][name]
        ranks = set()
        for expert in range(5):
            row = rows.get(f"{name}[{expert}]")
            if row is None:
                assert float(tensor.abs().max()) == 0.0
                continue
            error = float((tensor[expert] - whole[expert]).norm() / whole[expert].norm())
            assert error == pytest.approx(row["relative_error"], rel=1e-4, abs=4 * EPS)
            ranks.add(row["rank"])
        assert len(ranks) <= 1
    if "parameters" in cut:
        weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in weights.values()) <= 700


def test_some_experts_of_one_adapter(tmp_path: Path) -> None:
    """Those that are asked for; the others are not changed."""
    place = adapter(tmp_path / "a", 1, kind=Mixture, target_modules=[], **EXPERTS["nested"][0])
    Session().combine([place], modules=["*down_proj[[]2]"], output=tmp_path / "out")
    before, after = change(place, Mixture), change(tmp_path / "out", Mixture)
    torch.testing.assert_close(after["experts.down_proj"][2], before["experts.down_proj"][2], rtol=0, atol=4 * EPS)
    assert float(after["experts.down_proj"][[0, 1, 3, 4]].abs().max()) == 0.0
    assert float(after["experts.gate_up_proj"].abs().max()) == 0.0


@pytest.mark.parametrize("parameter", ["q_proj.weight", "layers.2.v_proj.weight"])
def test_a_parameter_that_is_one_matrix(tmp_path: Path, parameter: str) -> None:
    """As PEFT stores it; beside adapters that target the module itself."""
    one = adapter(tmp_path / "a", 1, target_modules=[], target_parameters=[parameter])
    other = adapter(tmp_path / "b", 2, target_modules=["conv"])
    Session().combine([one, other], strengths=[2.0, 0.5], output=tmp_path / "out")
    require_sum(change(tmp_path / "out"), [change(one), change(other)], [2.0, 0.5])
