"""Adapters as PEFT saves them, and what PEFT makes of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft_models import Net
from torch import nn

EPS = torch.finfo(torch.float32).eps


def network(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(3)
    return kind()


def adapter(folder: Path, seed: int, *, kind: type[nn.Module] = Net, **settings: Any) -> str:
    """An adapter as PEFT saves it, with values that nobody has by accident."""
    model = get_peft_model(network(kind), LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return str(folder)


def change(folder: str | Path, kind: type[nn.Module] = Net) -> dict[str, torch.Tensor]:
    """W′ − W as PEFT loads and merges it, float64."""
    before = {name: tensor.double() for name, tensor in network(kind).state_dict().items()}
    after = PeftModel.from_pretrained(network(kind), str(folder)).double().merge_and_unload().state_dict()
    return {name: after[name] - tensor for name, tensor in before.items()}


def require_sum(found: dict[str, torch.Tensor], parts: list[dict[str, torch.Tensor]], weights: list[float]) -> None:
    assert any(tensor.abs().max() > 0.1 for tensor in found.values())
    for name, tensor in found.items():
        wanted = sum(weight * part[name] for weight, part in zip(weights, parts, strict=True))
        size = sum(abs(weight) * float(part[name].norm()) for weight, part in zip(weights, parts, strict=True))
        assert float((tensor - wanted).norm()) <= 4 * EPS * size, name
