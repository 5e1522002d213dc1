"""Decisions about single entries of aligned updates: kept by magnitude or by chance, summed or elected by sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_lab.linalg.counters import chance_limit, key_of, random_integers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab_subspace.span import Update


def merged_entries(
    parts: Sequence[torch.Tensor], updates: Sequence[Update], inner: str, density: float, seed: int
) -> torch.Tensor:
    """Bring aligned matrices together entry by entry.

    ``linear`` is Σ w·X. ``ties`` keeps the ⌊density·m·n⌋ entries of largest magnitude of each X, with all that equal
    the least of them, and takes in every entry the mean of w·X over those whose sign is that of their sum, X itself
    deciding and not w·X. ``dare_linear`` and ``dare_ties`` keep entries by chance instead, divided by the density.

    Parameters
    ----------
    parts : X, each (m, n) float64
    updates : what each of them is of
    inner : linear, ties, dare_linear or dare_ties
    density : share of the entries that is kept
    seed : of chance, with the numbers of the factors and the place of the entry

    Examples
    --------
    >>> from lora_lab_subspace.span import Factors, span_of
    >>> (one,) = span_of([Factors(torch.ones(1, 2), torch.ones(1, 1), 1.0)], [1.0]).updates
    >>> rows = [torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, -2.0]])]
    >>> merged_entries(rows, [one, one], "ties", 1.0, 0)
    tensor([[ 2., -2.]])
    """
    if inner.startswith("dare"):
        parts = [_by_chance(part, density, update, seed) for part, update in zip(parts, updates, strict=True)]
    elif inner == "ties":
        parts = [_largest(part, density) for part in parts]
    if inner.endswith("ties"):
        positive = torch.stack(list(parts)).sum(dim=0) >= 0
        parts = [torch.where(positive, part.clamp(min=0), part.clamp(max=0)) for part in parts]
    total = torch.zeros_like(parts[0])
    for part, update in zip(parts, updates, strict=True):
        total += update.strength * part
    if inner.endswith("ties"):
        total /= torch.stack([part != 0 for part in parts]).sum(dim=0).clamp(min=1)
    return total


def _largest(part: torch.Tensor, density: float) -> torch.Tensor:
    kept = int(density * part.numel())
    if not kept:
        return torch.zeros_like(part)
    magnitudes = part.abs()
    least = magnitudes.flatten().kthvalue(part.numel() - kept + 1).values
    return torch.where(magnitudes >= least, part, 0.0)


def _by_chance(part: torch.Tensor, density: float, update: Update, seed: int) -> torch.Tensor:
    limit = chance_limit(density)
    if density == 0.0 or limit > torch.iinfo(torch.int32).max:  # nothing, or all, of what is drawn lies below
        return part if density else torch.zeros_like(part)
    factors = update.factors
    key = key_of(seed, factors.lora_A, factors.lora_B, scaling=factors.scaling)
    drawn = random_integers(key, (0, part.shape[0]), part.shape[1])
    return torch.where(drawn < limit, part / density, 0.0)
