"""PEFT and this room read each other's adapters and compute the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_lab.errors import CompatibilityError
from lora_lab.live import LoraConfig, LoraModel, load_adapter, save_adapter

if TYPE_CHECKING:
    from pathlib import Path

peft = pytest.importorskip("peft")

TOKENS = torch.arange(16).reshape(2, 8)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {
        "rank_pattern": {r"layers\.0\.up": 2, "down": 3},
        "alpha_pattern": {"up": 5, r"layers\.1\.up": 100},
    },
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    """Two blocks on an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 12)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(12, 16)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def moved(parameters: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal up to the order of sums: at most 20 terms in each of five matrices."""
    eps = torch.finfo(one.dtype).eps
    torch.testing.assert_close(one, other, rtol=0, atol=5 * 20 * eps * one.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_the_same_from_our_files(kind: str, tmp_path: Path) -> None:
    """Logits and the number of trained parameters agree; merged by PEFT they still do."""
    lora = LoraModel(Stack())
    lora.attach(
        "task", LoraConfig(["up", "down"], rank=4, alpha=8, **KINDS[kind]), generator=torch.Generator().manual_seed(0)
    )
    moved(lora.parameters("task"))
    save_adapter(lora, "task", tmp_path)

    theirs = peft.PeftModel.from_pretrained(Stack(), tmp_path, is_trainable=True)
    same(lora.model(TOKENS), theirs(TOKENS))
    assert lora.parameter_count("task") == theirs.get_nb_trainable_parameters()[0]
    lora.merge()
    same(lora.model(TOKENS), theirs.merge_and_unload()(TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_we_compute_the_same_from_peft_files(kind: str, tmp_path: Path) -> None:
    """And save them again with the same tensors.

    Compared with PEFT as it loads its own files: it writes the keys of its patterns in alphabetical order, so where two
    keys match one module, the model that was saved may have used the other one.
    """
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["up", "down"], init_lora_weights="gaussian", **KINDS[kind]
    )
    theirs = peft.get_peft_model(Stack(), settings)
    moved([parameter for name, parameter in theirs.named_parameters() if "lora_" in name])
    theirs.save_pretrained(tmp_path / "theirs")

    lora = LoraModel(Stack())
    load_adapter(lora, "task", tmp_path / "theirs")
    same(lora.model(TOKENS), peft.PeftModel.from_pretrained(Stack(), tmp_path / "theirs")(TOKENS))
    save_adapter(lora, "task", tmp_path / "ours")
    name = "adapter_model.safetensors"
    ours, original = load_file(tmp_path / "ours" / name), load_file(tmp_path / "theirs" / name)
    assert ours.keys() == original.keys()
    assert all(torch.equal(ours[key], original[key]) for key in ours)


def test_an_embedding_from_our_files(tmp_path: Path) -> None:
    """PEFT reads the embedding's factors without .weight."""
    lora = LoraModel(Stack())
    lora.attach("task", LoraConfig(["embed", "up"], rank=4), generator=torch.Generator().manual_seed(0))
    moved(lora.parameters("task"))
    save_adapter(lora, "task", tmp_path)
    same(lora.model(TOKENS), peft.PeftModel.from_pretrained(Stack(), tmp_path)(TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    """The norm of DoRA is a constant to both, so one step of training moves both alike."""
    lora = LoraModel(Stack())
    lora.attach(
        "task", LoraConfig(["up", "down"], rank=4, alpha=8, **KINDS[kind]), generator=torch.Generator().manual_seed(0)
    )
    moved(lora.parameters("task"))
    save_adapter(lora, "task", tmp_path)
    theirs = peft.PeftModel.from_pretrained(Stack(), tmp_path, is_trainable=True)
    for model in (lora.model, theirs):
        model(TOKENS).square().mean().backward()
    gradients = {
        name.replace("base_model.model.", "").replace(".default", "").replace(".weight", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    compared = 0
    for module, pair in lora.factors("task").items():
        for key, parameter in {
            "lora_A": pair.lora_A,
            "lora_B": pair.lora_B,
            "lora_magnitude_vector": pair.magnitude,
        }.items():
            if parameter is not None:
                assert parameter.grad is not None
                same(parameter.grad, gradients[f"{module}.{key}"])
                compared += 1
    assert compared == len(gradients)


@pytest.mark.parametrize("targets", [["up"], ["layers.1.up"], r".*\.1\.(up|down)", r"layers\.0\.up", ["p"], r"up"])
def test_targets_are_those_of_peft(targets: list[str] | str) -> None:
    """A list holds name ends after a dot, a string is matched against the whole name; nothing found is an error."""
    try:
        theirs = peft.get_peft_model(Stack(), peft.LoraConfig(r=2, target_modules=targets)).targeted_module_names
    except ValueError:
        theirs = []
    lora = LoraModel(Stack())
    try:
        ours = lora.attach("task", LoraConfig(targets, rank=2), generator=torch.Generator().manual_seed(0))
    except CompatibilityError:
        ours = ()
    assert list(ours) == theirs
