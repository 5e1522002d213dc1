"""Against PEFT: a base with an adapter merged here is the one that PEFT's own merge makes, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_models import Mixture, Net
from safetensors.torch import load_file, save_file
from torch import nn

from lora_lab import LoraLabError, Session

EPS = torch.finfo(torch.float32).eps


def disturbed(model: nn.Module) -> None:
    """Give everything that is trained values that nobody has by accident."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.3 * noise.abs() if "magnitude" in name else 0.3 * noise)


def made(folder: Path, network: type[nn.Module], **settings: Any) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A base, an adapter as PEFT saves it, and PEFT's own merge in float64."""
    torch.manual_seed(3)
    net = network()
    base = folder / "base"
    base.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in net.state_dict().items()}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "test"}))
    model = get_peft_model(net, LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    disturbed(model)
    model.save_pretrained(folder / "adapter")
    merged = model.double().merge_and_unload().state_dict()
    return base, folder / "adapter", {name: tensor.clone() for name, tensor in merged.items()}


CASES: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {r"layers\.2\..*q_proj": 2, "v_proj": 3},
        "alpha_pattern": {"10.q_proj": 5},
    },
    "fan_in_fan_out": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
    "embedding": {"target_modules": ["embed"]},
    "convolutions": {"target_modules": ["conv", "point", "line"]},
    "dora": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "dora of an embedding": {"target_modules": ["embed"], "use_dora": True},
    "dora of convolutions": {"target_modules": ["conv", "line"], "use_dora": True},
    "dora with fan_in_fan_out": {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    "lora_bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed": [7, 2]}},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
@pytest.mark.filterwarnings("ignore")
def test_what_peft_merges(settings: dict[str, Any], tmp_path: Path) -> None:
    """Every kind of layer and every setting that changes the weights, to the rounding of a float32."""
    base, adapter, expected = made(tmp_path, Net, **settings)
    Session(cache=False).merge([str(adapter)], base=str(base), output=tmp_path / "out")
    compare(tmp_path / "out", expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [["experts.gate_up_proj"], ["experts.gate_up_proj", "experts.down_proj"]])
def test_experts(targets: list[str], tmp_path: Path) -> None:
    """Each expert has its own product; PEFT's two packings of the factors are told apart."""
    base, adapter, expected = made(tmp_path, Mixture, target_modules=[], target_parameters=targets)
    Session(cache=False).merge([str(adapter)], base=str(base), output=tmp_path / "out")
    compare(tmp_path / "out", expected)


def compare(output: Path, expected: dict[str, torch.Tensor]) -> None:
    ours = load_file(output / "model.safetensors")
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == torch.float32
        bound = 4 * EPS * (float(tensor.abs().max()) + 1)
        assert float((ours[name].double() - tensor).abs().max()) <= bound, name


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_the_base_lacks_is_added(tmp_path: Path) -> None:
    """A classifier that only the adapter has is added under its own name, and the receipt lists it."""
    base, adapter, expected = made(tmp_path, Net, target_modules=["q_proj"], modules_to_save=["classifier"])
    tensors = {
        name: tensor for name, tensor in load_file(base / "model.safetensors").items() if "classifier" not in name
    }
    save_file(tensors, base / "model.safetensors")
    report = Session(cache=False).merge([str(adapter)], base=str(base), output=tmp_path / "out")
    compare(tmp_path / "out", expected)
    assert sorted(row["tensor"] for row in report.table("added").rows) == sorted(
        name for name in expected if "classifier" in name
    )
    skipped = Session(cache=False).merge(
        [str(adapter)], base=str(base), output=tmp_path / "skipped", skip_saved_modules=True
    )
    assert "saved_modules_skipped" in {finding.code for finding in skipped.findings}
    assert load_file(tmp_path / "skipped" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.filterwarnings("ignore")
def test_two_heads_are_refused_until_one_is_named(tmp_path: Path) -> None:
    """Nothing of two different classifiers is averaged or dropped in silence."""
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}
    base, first, expected = made(tmp_path / "a", Net, **settings)
    _, second, _ = made(tmp_path / "b", Net, **settings)
    second = second.rename(second.with_name("other"))
    both = [str(first), str(second)]
    session = Session(cache=False)
    with pytest.raises(LoraLabError, match=r"bring 'layers\.10\.classifier' whole, expected one"):
        session.merge(both, base=str(base), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    session.merge(both, base=str(base), output=tmp_path / "out", saved_modules_from="adapter", strengths=[1, 0])
    compare(tmp_path / "out", expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["dora", "biases", "modules_to_save", "tokens"])
def test_strength_is_of_the_difference(name: str, tmp_path: Path) -> None:
    """Law 4: half the strength is half the way from the base to the base with the adapter, whatever it is made of."""
    base, adapter, expected = made(tmp_path, Net, **CASES[name])
    before = load_file(base / "model.safetensors")
    half = {key: before[key].double() + 0.5 * (tensor - before[key].double()) for key, tensor in expected.items()}
    Session(cache=False).merge([str(adapter)], base=str(base), output=tmp_path / "out", strengths=[0.5])
    compare(tmp_path / "out", half)


TIED: dict[str, dict[str, Any]] = {
    "head, whose own weight PEFT saves along": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", TIED.values(), ids=TIED.keys())
def test_layers_that_share_a_weight(settings: dict[str, Any], tmp_path: Path) -> None:
    """What transformers loads answers as the adapter on its base does, where the output layer is the embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=True, **sizes))
    net.save_pretrained(tmp_path / "base")
    model = get_peft_model(net, LoraConfig(r=4, lora_alpha=6, **settings)).eval()
    disturbed(model)
    model.save_pretrained(tmp_path / "adapter")
    session = Session(cache=False)
    session.merge(
        [str(tmp_path / "adapter")],
        base=str(tmp_path / "base"),
        output=tmp_path / "out",
        undo=tmp_path / "undo",
    )
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        found = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()(tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=32 * EPS * float(expected.abs().max()))
    session.unmerge(
        str(tmp_path / "out"),
        undo=tmp_path / "undo",
        adapters=[str(tmp_path / "adapter")],
        output=tmp_path / "back",
    )
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
