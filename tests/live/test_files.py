"""PEFT's file layout: what is written, and what is refused when reading."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_lab.errors import AdapterError, CompatibilityError, FileFormatError, LoraLabError, OperationError
from lora_lab.live import LoraConfig, LoraModel, load_adapter, save_adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def fresh() -> LoraModel:
    return LoraModel(nn.ModuleDict({"embed": nn.Embedding(7, 5), "q": nn.Linear(5, 6), "v": nn.Linear(5, 4)}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An adapter on two linear layers, in files."""
    lora = fresh()
    lora.attach("task", LoraConfig(["q", "v"], rank=2, alpha=4), generator=torch.Generator().manual_seed(0))
    save_adapter(lora, "task", tmp_path / "adapter")
    return tmp_path / "adapter"


def changed_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def changed_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = dict(load_file(folder / TENSORS))
    change(tensors)
    save_file(tensors, folder / TENSORS)


def test_names_and_shapes_in_the_file(tmp_path: Path) -> None:
    """Linear factors end in .weight, embedding factors and DoRA magnitudes do not."""
    lora = fresh()
    lora.attach("a", LoraConfig(["q"], rank=2, use_dora=True), generator=torch.Generator().manual_seed(0))
    lora.attach("b", LoraConfig(["embed"], rank=3), generator=torch.Generator().manual_seed(0))
    save_adapter(lora, "a", tmp_path / "a")
    save_adapter(lora, "b", tmp_path / "b", dtype=torch.bfloat16)
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "a" / TENSORS).items()}
    assert stored == {
        "base_model.model.q.lora_A.weight": (2, 5),
        "base_model.model.q.lora_B.weight": (6, 2),
        "base_model.model.q.lora_magnitude_vector": (6,),
    }
    embedded = load_file(tmp_path / "b" / TENSORS)
    assert {name: tuple(tensor.shape) for name, tensor in embedded.items()} == {
        "base_model.model.embed.lora_embedding_A": (3, 7),
        "base_model.model.embed.lora_embedding_B": (5, 3),
    }
    assert {tensor.dtype for tensor in embedded.values()} == {torch.bfloat16}


def test_the_same_adapter_gives_the_same_bytes(saved: Path) -> None:
    """Both files, from another object with the same seed."""
    lora = fresh()
    lora.attach("other", LoraConfig(["q", "v"], rank=2, alpha=4), generator=torch.Generator().manual_seed(0))
    save_adapter(lora, "other", saved.with_name("again"))
    for name in (CONFIG, TENSORS):
        assert (saved / name).read_bytes() == (saved.with_name("again") / name).read_bytes()


def test_an_adapter_is_not_overwritten_unasked(saved: Path) -> None:
    """Saving there again needs the word."""
    lora = fresh()
    load_adapter(lora, "task", saved)
    before = (saved / TENSORS).read_bytes()
    lora.factors("task")["q"].lora_B.data.fill_(1.0)
    with pytest.raises(OperationError, match="holds an adapter already"):
        save_adapter(lora, "task", saved)
    assert (saved / TENSORS).read_bytes() == before
    save_adapter(lora, "task", saved, overwrite=True)
    assert (saved / TENSORS).read_bytes() != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["v"]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["q.weight"]),
        ("layer_replication", [[0, 1]]),
        ("init_lora_weights", "pissa"),
        ("use_qalora", True),
        ("kasa_config", {"rank": 1}),
        ("invented_by_a_later_version", "on"),
    ],
)
def test_what_changes_the_effect_is_refused_by_name(saved: Path, key: str, value: object) -> None:
    """A feature that a live adapter does not honour is an error that names it."""
    changed_config(saved, **{key: value})
    with pytest.raises(AdapterError, match=key):
        load_adapter(fresh(), "task", saved)


def test_what_changes_no_effect_is_read_over(saved: Path) -> None:
    """Versions, dropout and features that are switched off."""
    changed_config(saved, peft_version="99", lora_dropout=0.1, kasa_config=None, use_qalora=False)
    changed_config(saved, init_lora_weights=True)
    assert load_adapter(fresh(), "task", saved) == ("q", "v")


BROKEN: dict[str, tuple[type[LoraLabError], str, Callable[[Path], None]]] = {
    "half a pair": (
        AdapterError,
        "'q'",
        lambda folder: changed_tensors(folder, lambda held: held.pop("base_model.model.q.lora_B.weight")),
    ),
    "a target without factors": (
        AdapterError,
        "'embed'",
        lambda f: changed_config(f, target_modules=["q", "v", "embed"]),
    ),
    "factors without a target": (CompatibilityError, "'v'", lambda f: changed_config(f, target_modules=["q"])),
    "a rank that differs": (CompatibilityError, r"\(2, 5\), expected \(3, 5\)", lambda f: changed_config(f, r=3)),
    "magnitudes missing": (AdapterError, "magnitude", lambda f: changed_config(f, use_dora=True)),
    "a tensor of no known kind": (
        AdapterError,
        "lora_diag",
        lambda folder: changed_tensors(folder, lambda h: h.update({"base_model.model.q.lora_diag": torch.ones(2)})),
    ),
    "not a LoRA": (AdapterError, "IA3", lambda f: changed_config(f, peft_type="IA3")),
    "a value of a wrong kind": (AdapterError, "'eight'", lambda f: changed_config(f, r="eight")),
    "no tensors": (FileFormatError, "adapter_model", lambda f: (f / TENSORS).unlink()),
    "cut short": (
        FileFormatError,
        "adapter_model",
        lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-3]) and None,
    ),
}


@pytest.mark.parametrize(("error", "says", "breaks"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_adapter_attaches_nothing(
    saved: Path, error: type[LoraLabError], says: str, breaks: Callable[[Path], None]
) -> None:
    """The error names what is wrong, and the model has its own layers."""
    breaks(saved)
    lora = fresh()
    with pytest.raises(error, match=says):
        load_adapter(lora, "task", saved)
    assert lora.configs == {}
    assert [type(layer) for layer in lora.model.values()] == [nn.Embedding, nn.Linear, nn.Linear]
