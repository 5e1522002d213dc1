"""Small adapters and bases, written the way PEFT and transformers write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MODULES = {
    "model.layers.2.self_attn.q_proj": (24, 16),
    "model.layers.10.self_attn.q_proj": (24, 16),
    "model.layers.2.self_attn.v_proj": (8, 16),
}


def factors(
    modules: Mapping[str, tuple[int, int]] = MODULES, *, rank: int = 4, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Gaussian factors under PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return tensors


def write_adapter(
    folder: Path,
    tensors: Mapping[str, torch.Tensor] | None = None,
    *,
    rank: int = 4,
    alpha: float = 8,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write an adapter; `config` adds to or replaces settings."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        dict(tensors if tensors is not None else factors(rank=rank, seed=seed)), folder / "adapter_model.safetensors"
    )
    document = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "base_model_name_or_path": "base",
        "target_modules": ["q_proj", "v_proj"],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def write_base(folder: Path, *, seed: int = 0) -> Path:
    """Write a base of the same modules, in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"{module}.weight": torch.randn(shape, generator=generator) for module, shape in MODULES.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def write_sharded(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A base in two files with an index, other tensors between those that change, and files beside them."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(5)
    tensors = {
        f"{module}.weight": (0.1 * torch.randn(shape, generator=generator)).to(dtype)
        for module, shape in MODULES.items()
    }
    tensors["model.norm.weight"] = torch.ones(16, dtype=dtype)
    tensors["model.embed_tokens.weight"] = torch.randn(32, 16, generator=generator).to(dtype)
    tensors["model.steps"] = torch.arange(3)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt", "by": "test"})
    weight_map = {name: file for file, own in halves.items() for name in own}
    size = sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": str(dtype).removeprefix("torch.")}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("kept")
    (folder / "pytorch_model.bin").write_bytes(b"old")
    (folder / ".hidden").write_text("not")
    return folder


def delta_of(tensors: Mapping[str, torch.Tensor], module: str, scaling: float) -> torch.Tensor:
    """Dense ΔW in float64."""
    a = tensors[f"base_model.model.{module}.lora_A.weight"].double()
    b = tensors[f"base_model.model.{module}.lora_B.weight"].double()
    return scaling * b @ a


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
