"""The adapters of table 1 put into a stack: LoRA beside a weight or merged into it, and bottlenecks between layers.

Every variant is a stack of its own modules over the very same parameters; only what it changes is its own.

* LoRA: q ← x·Wᵀ + s·(x·Aᵀ)·Bᵀ. Source: Hu et al., arXiv 2106.09685, section 4.1.
* Houlsby: h ← h + W_up·gelu(W_down·h + b) + c after attention and after the feed-forward, inside the residual.
  Source: arXiv 1902.00751, figure 2.
* Pfeiffer: one such layer a block, after the feed-forward, with a norm of its own before it; what the LoRA paper calls
  Adapter^L. Sources: arXiv 2005.00247; Lin et al., arXiv 2004.03829; arXiv 2106.09685, section 5.1.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn
from torch.nn import functional

from lora_lab.linalg.in_place import Change, merge_all, ready
from lora_lab.linalg.updates import Term, Update

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.benchmarks.latency.blocks import Block, Noise, Stack

BASE: Final = "base"
MERGED: Final = "lora_merged"
UNMERGED: Final = "lora_unmerged"
PFEIFFER: Final = "adapter_pfeiffer"
HOULSBY: Final = "adapter_houlsby"
VARIANTS: Final = (BASE, MERGED, UNMERGED, PFEIFFER, HOULSBY)
TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(nn.Module):
    """A linear layer with factors beside it, the scaling multiplied into B as a server keeps it.

    lora_A : (r, in)
    lora_B : (out, r)
    """

    def __init__(self, linear: nn.Linear, lora_A: torch.Tensor, lora_B: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.lora_A, self.lora_B = lora_A, lora_B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x·Wᵀ + (x·Aᵀ)·Bᵀ, the second product added where the first one lies."""
        out: torch.Tensor = self.linear(x)
        narrow = functional.linear(x, self.lora_A).flatten(0, -2)
        out.view(-1, out.shape[-1]).addmm_(narrow, self.lora_B.t())
        return out


class Bottleneck(nn.Module):
    """A layer down to `width` and back up, around which its input goes; up is zero until it is filled."""

    def __init__(self, hidden: int, width: int, like: torch.Tensor, noise: Noise, *, has_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, device=like.device, dtype=like.dtype) if has_norm else nn.Identity()
        self.down = nn.Linear(hidden, width, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(width, hidden, device=like.device, dtype=like.dtype)
        self.requires_grad_(requires_grad=False)
        noise.fill(self.down.weight, 1.0 / math.sqrt(hidden))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            zero.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, hidden) to the same."""
        out: torch.Tensor = x + self.up(functional.gelu(self.down(self.norm(x))))
        return out

    def fill(self, noise: Noise) -> None:
        """Give the way up numbers as well."""
        noise.fill(self.up.weight, 1.0 / math.sqrt(self.up.weight.shape[1]))


def twin_of(stack: Stack) -> Stack:
    """A stack with modules of its own over the same parameters."""
    return copy.deepcopy(stack, memo={id(one): one for one in stack.parameters()})


def blocks_of(stack: Stack) -> Iterator[Block]:
    """Its blocks."""
    for block in stack.blocks:
        yield cast("Block", block)


def factors_for(stack: Stack, targets: Sequence[str], rank: int, noise: Noise) -> list[dict[str, Pair]]:
    """Random factors (A, B) of every target of every block; ΔW is about as large as W, so that no check is idle."""
    found = []
    for block in blocks_of(stack):
        own = {}
        for target in targets:
            weight = getattr(block, target).weight
            A, B = weight.new_empty((rank, weight.shape[1])), weight.new_empty((weight.shape[0], rank))
            noise.fill(A, 1.0 / math.sqrt(weight.shape[1]))
            noise.fill(B, 1.0 / math.sqrt(rank))
            own[target] = (A, B)
        found.append(own)
    return found


def unmerged(stack: Stack, factors: Sequence[dict[str, Pair]]) -> Stack:
    """The stack with factors beside the weights."""
    made = twin_of(stack)
    for block, own in zip(blocks_of(made), factors, strict=True):
        for target, (A, B) in own.items():
            setattr(block, target, LoraLinear(getattr(block, target), A, B))
    return made


def merged(stack: Stack, factors: Sequence[dict[str, Pair]]) -> Stack:
    """The stack with round(W + BA) in place of the adapted weights, by the arithmetic of a merge."""
    made = twin_of(stack)
    changes = []
    for block, own in zip(blocks_of(made), factors, strict=True):
        for target, (A, B) in own.items():
            linear = getattr(block, target)
            kept = linear.weight
            linear.weight = nn.Parameter(torch.empty_like(kept), requires_grad=False)
            changes.append(Change(linear.weight, ready(update_of(target, A, B), str(kept.device)), kept=kept))
    merge_all(changes)
    return made


def update_of(name: str, lora_A: torch.Tensor, lora_B: torch.Tensor) -> Update:
    """BA as the change of a weight."""
    term = Term(lora_A.cpu(), lora_B.cpu(), 1.0)
    return Update(name, (lora_B.shape[0], lora_A.shape[1]), [term])


def with_bottlenecks(stack: Stack, width: int, noise: Noise, *, is_double: bool) -> Stack:
    """The stack with one layer of `width` a block, or two of half of it: as many parameters."""
    made = twin_of(stack)
    hidden, like = stack.shape.hidden, next(stack.parameters())
    for block in blocks_of(made):
        if is_double:
            each = max(1, width // 2)
            block.after_attention = Bottleneck(hidden, each, like, noise, has_norm=False)
            block.after_mlp = Bottleneck(hidden, each, like, noise, has_norm=False)
        else:
            block.after_mlp = Bottleneck(hidden, width, like, noise, has_norm=True)
    return made


def fill_bottlenecks(stack: Stack, noise: Noise) -> None:
    """Give all of them numbers on the way up."""
    for module in stack.modules():
        if isinstance(module, Bottleneck):
            module.fill(noise)


def own_parameters(variant: Stack, base: Stack) -> int:
    """Elements that a variant has and the base has not, in modules and in factors."""
    shared = {id(one) for one in base.parameters()}
    layers = sum(one.numel() for one in variant.parameters() if id(one) not in shared)
    loras = (module for module in variant.modules() if isinstance(module, LoraLinear))
    return layers + sum(module.lora_A.numel() + module.lora_B.numel() for module in loras)


Pair = tuple[torch.Tensor, torch.Tensor]
