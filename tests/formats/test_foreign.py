"""Other formats are known by name, and refused with it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_lab import Session
from lora_lab.errors import AdapterError, UnsupportedFormatError

NAMES = {
    "kohya": ["lora_unet_mid_block.lora_down.weight", "lora_unet_mid_block.lora_up.weight"],
    "diffusers": ["transformer.blocks.0.attn.to_q.lora_A.weight", "transformer.blocks.0.attn.to_q.lora_B.weight"],
    "LyCORIS LoHa": ["lora_unet_mid.hada_w1_a", "lora_unet_mid.hada_w1_b"],
    "LyCORIS LoKr": ["lora_unet_mid.lokr_w1", "lora_unet_mid.lokr_w2"],
    "cloneofsimo": ["unet:0:up", "unet:0:down"],
    "SAM-LoRA": ["w_a_000", "w_b_000"],
    "MLX": ["model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b"],
    "torchtune": ["layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"],
    "loralib": ["transformer.h.0.attn.lora_A", "transformer.h.0.attn.lora_B"],
}


@pytest.mark.parametrize("title", NAMES)
def test_known_by_its_tensor_names(title: str, tmp_path: Path) -> None:
    """As a folder and as a file, with the name of the format in the sentence."""
    path = tmp_path / "in" / "weights.safetensors"
    path.parent.mkdir()
    save_file({name: torch.ones(2, 2) for name in NAMES[title]}, path)
    for place in (path, path.parent):
        with pytest.raises(UnsupportedFormatError, match=f"{title}: not readable yet"):
            Session().adapter(str(place))


def test_mlx_by_its_configuration(tmp_path: Path) -> None:
    """MLX uses PEFT's file name for a configuration of its own."""
    save_file({"a.lora_a": torch.ones(2, 2)}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}')
    with pytest.raises(UnsupportedFormatError, match="MLX"):
        Session().adapter(str(tmp_path))


def test_npz_and_gguf(tmp_path: Path) -> None:
    """By their own magic, without reading an array."""
    with zipfile.ZipFile(tmp_path / "adapters.npz", "w") as archive:
        archive.writestr("model.layers.0.q_proj.lora_a.npy", b"")
    (tmp_path / "adapter.gguf").write_bytes(b"GGUF" + bytes(20))
    for name, title in (("adapters.npz", "MLX"), ("adapter.gguf", "GGUF")):
        with pytest.raises(UnsupportedFormatError, match=title):
            Session().adapter(str(tmp_path / name))


def test_a_checkpoint_is_no_adapter(tmp_path: Path) -> None:
    """Weights without any low-rank factor get a sentence of their own."""
    save_file({"model.layers.0.weight": torch.ones(2, 2)}, tmp_path / "some.safetensors")
    with pytest.raises(AdapterError, match="no LoRA"):
        Session().adapter(str(tmp_path / "some.safetensors"))
