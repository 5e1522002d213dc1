"""A base of a thousand small tensors in five files, and adapters and fine-tunes that touch a few of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from builders import factors, write_adapter
from safetensors.torch import save_file

LAYERS, SHARDS, SIDE = 50, 5, 64
TENSOR_BYTES = 4 * SIDE * SIDE
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
TOUCHED = tuple(range(0, 48, 2))  # layers of which the adapter changes q_proj and v_proj, neighbours in the file
MODULES = {f"model.layers.{layer}.self_attn.{name}": (SIDE, SIDE) for layer in TOUCHED for name in ("q_proj", "v_proj")}


def _names(layer: int) -> list[str]:
    experts = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for expert in range(14)]
    attention = [f"model.layers.{layer}.self_attn.{name}.weight" for name in ATTENTION]
    return [*experts, *attention, f"model.layers.{layer}.input_layernorm.weight", f"model.layers.{layer}.norm.weight"]


def write_large_base(folder: Path, *, seed: int = 0, moved: bool = False) -> Path:
    """Write it; `moved` adds to q_proj of the layers that the adapter changes what training would."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {}
        for layer in range(shard * LAYERS // SHARDS, (shard + 1) * LAYERS // SHARDS):
            for name in _names(layer):
                shape = (SIDE,) if "norm" in name else (SIDE, SIDE)
                tensors[name] = torch.randn(shape, generator=generator)
        if moved:
            for name in tensors:
                if "q_proj" in name and int(name.split(".")[2]) in TOUCHED:
                    tensors[name] += 0.01 * torch.ones(SIDE, SIDE)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    return folder


def write_touching_adapter(folder: Path) -> Path:
    """Write an adapter of rank 4 on 48 of the thousand tensors."""
    return write_adapter(folder, factors(MODULES))
