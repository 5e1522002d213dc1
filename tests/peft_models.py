"""Small models with one of each kind of layer, for PEFT to put adapters on."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


class Block(nn.Module):
    """One of each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.q_proj = nn.Linear(12, 20, bias=True)
        self.v_proj = nn.Linear(12, 6)
        self.c_attn = Conv1D(24, 12)
        self.conv = nn.Conv2d(4, 8, 3)
        self.point = nn.Conv2d(4, 8, 1)
        self.line = nn.Conv1d(4, 6, 5)
        self.classifier = nn.Linear(12, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.embed(tokens))


class Net(nn.Module):
    """Blocks at layers 2 and 10, so that natural order differs from the alphabet's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"2": Block(), "10": Block()})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers["2"](tokens)


class Experts(nn.Module):
    """A fused expert block, as transformers stores it: (experts, out, in)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(5, 16, 12))
        self.down_proj = nn.Parameter(torch.randn(5, 12, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(x)
