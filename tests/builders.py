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


def delta_of(tensors: Mapping[str, torch.Tensor], module: str, scaling: float) -> torch.Tensor:
    """Dense ΔW in float64."""
    a = tensors[f"base_model.model.{module}.lora_A.weight"].double()
    b = tensors[f"base_model.model.{module}.lora_B.weight"].double()
    return scaling * b @ a
