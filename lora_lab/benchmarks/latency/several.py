"""A batch whose rows belong to several adapters: their factors beside the weight, or one merged after the other.

Grouped, the batch goes through the model once; beside every adapted weight the rows of one adapter go through its
factors, those of all adapters in one batched product: y = x·Wᵀ + (x_n·A_nᵀ)·B_nᵀ. Rows of one adapter lie together, as
a server may order them. Switched, the adapters are merged one after the other by the fused update, and the rows of each
go through the model alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lora_lab.benchmarks.latency.adapters import LoraLinear, blocks_of, twin_of, update_of
from lora_lab.linalg.device_swap import Swaps
from lora_lab.linalg.in_place import Change, Ready, merge_all, ready

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.benchmarks.latency.adapters import Pair
    from lora_lab.benchmarks.latency.blocks import Stack

    Factors = list[dict[str, Pair]]


class GroupedLinear(LoraLinear):
    """A linear layer with the factors of several adapters beside it, of which each has an equal share of the rows.

    lora_A : (adapters, r, in)
    lora_B : (adapters, out, r)
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, in) to (batch, length, out); rows of one adapter together, in the order of adapters."""
        out: torch.Tensor = self.linear(x)
        groups = len(self.lora_A)
        narrow = torch.bmm(x.reshape(groups, -1, x.shape[-1]), self.lora_A.mT)
        out.view(groups, -1, out.shape[-1]).baddbmm_(narrow, self.lora_B.mT)
        return out


class Switching:
    """One stack whose adapted weights hold one adapter after another.

    Parameters
    ----------
    factors : of every adapter: (A, B) of every adapted weight of every block
    """

    def __init__(self, base: Stack, factors: Sequence[Factors]) -> None:
        self.stack = twin_of(base)
        self.current = 0
        self._weights: list[torch.Tensor] = []
        self._kept: list[torch.Tensor] = []
        self._updates: list[list[Ready]] = [[] for _ in factors]
        device = str(base.norm.weight.device)
        for place, block in enumerate(blocks_of(self.stack)):
            for target in factors[0][place]:
                linear = getattr(block, target)
                self._kept.append(linear.weight)
                linear.weight = nn.Parameter(torch.empty_like(linear.weight), requires_grad=False)
                self._weights.append(linear.weight)
                for updates, own in zip(self._updates, factors, strict=True):
                    updates.append(ready(update_of(target, *own[place][target]), device))
        self._merge(self._weights)
        # A batch goes from one adapter to its neighbour, there and back.
        steps = [pair for one in range(len(factors) - 1) for pair in ((one, one + 1), (one + 1, one))]
        self._swap = Swaps(self._weights, self._updates, device, recorded=steps)
        self.note = self._swap.note

    def _merge(self, targets: Sequence[torch.Tensor]) -> None:
        puts = self._updates[self.current]
        merge_all([Change(one, put, kept=was) for one, put, was in zip(targets, puts, self._kept, strict=True)])

    def to(self, adapter: int) -> None:
        """Merge `adapter` in place of the one that is in the weights."""
        if adapter == self.current:
            return
        self._swap(self.current, adapter)
        self.current = adapter

    def forward(self, groups: Sequence[torch.Tensor], *, is_switching: bool) -> list[torch.Tensor]:
        """Every group of rows through the model, through its own adapter when `is_switching`; outputs by group.

        The order begins with the adapter that is merged, so that going back and forth N adapters take N − 1 swaps.
        """
        order = list(range(len(groups)))
        if self.current:
            order.reverse()
        outputs: dict[int, torch.Tensor] = {}
        for group in order:
            if is_switching:
                self.to(group)
            with torch.inference_mode():
                outputs[group] = self.stack(groups[group])
        return [outputs[group] for group in range(len(groups))]

    def drift(self) -> float:
        """‖W_n − W′‖_F/‖W′‖_F after all swaps, W′ being a merge into the base."""
        exact = [torch.empty_like(weight) for weight in self._weights]
        self._merge(exact)
        pairs = [(one.cpu().double(), other.cpu().double()) for one, other in zip(self._weights, exact, strict=True)]
        off = sum(float((one - other).square().sum()) for one, other in pairs)
        return float((off / sum(float(other.square().sum()) for _, other in pairs)) ** 0.5)


def grouped(base: Stack, factors: Sequence[Factors]) -> Stack:
    """The stack with the factors of several adapters beside its weights."""
    made = twin_of(base)
    for place, block in enumerate(blocks_of(made)):
        for target in factors[0][place]:
            pairs = [own[place][target] for own in factors]
            A, B = (torch.stack([pair[side] for pair in pairs]) for side in (0, 1))
            setattr(block, target, GroupedLinear(getattr(block, target), A, B))
    return made
