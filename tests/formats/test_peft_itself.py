"""Against PEFT: whatever it saves is read as the update that it would merge, module by module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from builders import write_adapter
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft_models import Mixture, Net
from safetensors.torch import load_file, save_file

from lora_lab import Session
from lora_lab.domain.adapter import Adapter, DeltaKind, Effect
from lora_lab.formats.factors import FactorReader


def saved(folder: Path, **settings: Any) -> tuple[peft.PeftModel, Path]:
    """An adapter of random factors on `Net`, as PEFT saves it."""
    torch.manual_seed(3)
    model = get_peft_model(Net(), LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return model, folder


def dense(adapter: Adapter, module: str) -> torch.Tensor:
    """ΔW of one module as the base stores it, in float64."""
    delta = adapter.by_module[module]
    factors = FactorReader().factors(delta)
    product = factors.scaling * factors.lora_B.double() @ factors.lora_A.double()
    return (product.T if factors.is_transposed else product).reshape(delta.shape)


def merged_by(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    """ΔW of every module, from PEFT itself in float64."""
    model = model.double()
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def compare(model: peft.PeftModel, adapter: Adapter) -> None:
    """Same modules, same shapes, same values to the rounding of a float64 sum."""
    expected = merged_by(model)
    assert set(adapter.modules) == set(expected)
    for module, delta_w in expected.items():
        ours = dense(adapter, module)
        assert ours.shape == delta_w.shape
        bound = 64 * torch.finfo(torch.float64).eps * float(delta_w.abs().max())
        assert float((ours - delta_w).abs().max()) <= bound


CASES: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["q_proj", "v_proj"]},
    "regular expression": {"target_modules": r".*\.10\..*_proj"},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "rank_pattern": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {r"layers\.2\..*q_proj": 2, "v_proj": 3},
        "alpha_pattern": {"10.q_proj": 5},
    },
    "rslora with patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 9},
        "alpha_pattern": {"q_proj": 1},
        "use_rslora": True,
    },
    "rank above both sides": {"target_modules": ["v_proj"], "r": 40},
    "fan_in_fan_out": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    "embedding": {"target_modules": ["embed"]},
    "convolutions": {"target_modules": ["conv", "point", "line"]},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "lora_bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
@pytest.mark.filterwarnings("ignore")
def test_what_peft_saves_is_what_it_merges(settings: dict[str, Any], tmp_path: Path) -> None:
    """For every kind of layer and every setting that changes ΔW."""
    model, folder = saved(tmp_path / "adapter", **settings)
    adapter = Session().adapter(str(folder))
    compare(model, adapter)


FEATURES = {
    "rslora": ("rslora", Effect.HONOURED),
    "rank_pattern": ("rank_pattern", Effect.HONOURED),
    "fan_in_fan_out": ("fan_in_fan_out", Effect.HONOURED),
    "dora": ("dora", Effect.OUTSIDE),
    "lora_bias": ("lora_bias", Effect.OUTSIDE),
    "modules_to_save": ("modules_to_save", Effect.OUTSIDE),
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.filterwarnings("ignore")
def test_what_changes_delta_w_is_named(name: str, tmp_path: Path) -> None:
    """Each setting shows as a feature with its effect, and a spectrum that leaves it out says so."""
    _, folder = saved(tmp_path / "adapter", **CASES[name])
    feature, effect = FEATURES[name]
    assert {found.id: found.effect for found in Session().adapter(str(folder)).features}[feature] is effect
    codes = {finding.code for finding in Session().spectrum(str(folder)).findings}
    assert (feature in codes) == (effect is Effect.OUTSIDE)


@pytest.mark.filterwarnings("ignore")
def test_kinds_and_natural_order(tmp_path: Path) -> None:
    """Kinds are told apart, and layer 2 comes before layer 10."""
    _, folder = saved(tmp_path / "adapter", target_modules=["embed", "q_proj", "conv"])
    adapter = Session().adapter(str(folder))
    assert [(delta.module, delta.kind) for delta in adapter.deltas] == [
        ("layers.2.conv", DeltaKind.CONV),
        ("layers.2.embed", DeltaKind.EMBEDDING),
        ("layers.2.q_proj", DeltaKind.LINEAR),
        ("layers.10.conv", DeltaKind.CONV),
        ("layers.10.embed", DeltaKind.EMBEDDING),
        ("layers.10.q_proj", DeltaKind.LINEAR),
    ]


SPELLINGS = {
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "adapter name": lambda name: name.replace(".weight", ".default.weight"),
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "distributed": lambda name: f"module.{name}",
    "fully sharded": lambda name: name.replace("base_model.model.", "base_model.model._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_older_and_wrapped_names(spelling: Any, tmp_path: Path) -> None:
    """The same modules and the same update under every spelling that training frameworks leave behind."""
    model, folder = saved(tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    weights = folder / "adapter_model.safetensors"
    tensors = {spelling(name): tensor for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(tensors, weights)
    compare(model, Session().adapter(str(folder)))


def test_an_adapter_in_a_folder_of_its_name(tmp_path: Path) -> None:
    """PEFT saves adapters of other names in sub-folders; a listing finds them."""
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.add_adapter("french", LoraConfig(r=3, target_modules=["v_proj"]))
    model.save_pretrained(tmp_path / "both")
    entries = {entry.name: entry for entry in Session().scan(str(tmp_path))}
    assert {name: entry.rank_max for name, entry in entries.items()} == {"both": 2, "both/french": 3}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [["experts.gate_up_proj"], ["experts.gate_up_proj", "experts.down_proj"]])
def test_parameters_of_experts(targets: list[str], tmp_path: Path) -> None:
    """Every expert's matrix is the one that PEFT would add, for one and for two nested parameters."""
    torch.manual_seed(0)
    model = get_peft_model(Mixture(), LoraConfig(r=3, lora_alpha=6, target_modules=[], target_parameters=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "a")
    adapter = Session().adapter(str(tmp_path / "a"))
    layers = [layer for layer in model.double().modules() if isinstance(layer, LoraLayer)]
    expected = {layer.parameter_name: layer.get_delta_weight("default").detach() for layer in layers}
    assert len(adapter.deltas) == 5 * len(targets)
    for parameter, deltas in expected.items():
        for expert in range(5):
            ours = dense(adapter, f"experts.{parameter}[{expert}]")
            torch.testing.assert_close(ours, deltas[expert], rtol=0, atol=1e-12)


def test_a_configuration_keeps_what_it_says(tmp_path: Path) -> None:
    """The document is shown as it stands."""
    _, folder = saved(tmp_path / "a", target_modules=["q_proj"])
    assert dict(Session().adapter(str(folder)).configuration) == json.loads(
        (folder / "adapter_config.json").read_text()
    )


def test_grouped_convolution_is_block_diagonal(tmp_path: Path) -> None:
    """One kernel does what A and the grouped B do to an image; PEFT applies such adapters, and cannot merge them."""
    generator = torch.Generator().manual_seed(1)
    lora_A = torch.randn(6, 4, 3, 3, generator=generator)
    lora_B = torch.randn(8, 3, 1, 1, generator=generator)  # two groups of rank 3
    stem = "base_model.model.features.0"
    write_adapter(
        tmp_path / "a",
        {f"{stem}.lora_A.weight": lora_A, f"{stem}.lora_B.weight": lora_B},
        rank=6,
        alpha=12,
        target_modules=["features.0"],
    )
    adapter = Session().adapter(str(tmp_path / "a"))
    assert (adapter.deltas[0].kind, adapter.deltas[0].groups) == (DeltaKind.CONV, 2)
    image = torch.randn(1, 4, 9, 9, generator=generator).double()
    stepwise = (
        torch.nn.functional.conv2d(torch.nn.functional.conv2d(image, lora_A.double()), lora_B.double(), groups=2) * 2
    )
    at_once = torch.nn.functional.conv2d(image, dense(adapter, "features.0"))
    torch.testing.assert_close(at_once, stepwise, rtol=1e-12, atol=1e-11)
