"""Some entries of ΔW kept and the others made zero: by magnitude, by chance, by both.

Each function gives :class:`~lora_lab.linalg.entries.Entries` whose blocks are made from those of the entries given.
What is kept depends on where an entry stands, not on how the rows are divided into blocks.
"""

from __future__ import annotations

import numpy as np
import torch

from lora_lab.linalg.counters import chance_limit, random_integers
from lora_lab.linalg.entries import Entries, largest


def kept_largest(entries: Entries, density: float) -> Entries:
    """Keep the k = ⌊density·m·n⌋ entries of largest magnitude of the whole matrix.

    Of equal magnitudes those that come first along the rows are kept. Source: TIES-Merging, arXiv 2306.01708, step
    "trim"; PEFT's ``magnitude_prune`` keeps as many.

    Examples
    --------
    >>> values = torch.tensor([[3.0, -1.0], [2.0, -4.0]])
    >>> kept_largest(Entries((2, 2), lambda first, end: values[first:end].clone()), 0.5).rows(0, 2)
    tensor([[ 3.,  0.],
            [ 0., -4.]])
    """
    if density >= 1.0:
        return entries
    threshold = largest(entries, [_share(density, entries)])[0]

    def rows(first: int, end: int) -> torch.Tensor:
        return threshold.kept(first, entries.rows(first, end))

    return Entries(entries.shape, rows)


def kept_middle(entries: Entries, density: float, gamma: float) -> Entries:
    """Leave out the ⌊γ·m·n⌋ largest entries, and keep the ⌊density·m·n⌋ largest of the others.

    Where the two are more than there are, so many fewer of the largest are left out. Source: Model Breadcrumbs, arXiv
    2312.06795, section 3.
    """
    if density >= 1.0:
        return entries
    kept = _share(density, entries)
    outliers = min(_share(gamma, entries), entries.shape[0] * entries.shape[1] - kept)
    inner, outer = largest(entries, [kept + outliers, outliers])

    def rows(first: int, end: int) -> torch.Tensor:
        block = entries.rows(first, end)
        return inner.kept(first, block) - outer.kept(first, block)  # the outer ones are among the inner ones

    return Entries(entries.shape, rows)


def kept_by_chance(entries: Entries, density: float, key: int) -> Entries:
    """Keep each entry with the probability `density`, divided by it, so that the mean of what is kept is the entry.

    Source: DARE, arXiv 2311.03099, equations 2 and 3.

    Parameters
    ----------
    key : of the random bits, see :func:`~lora_lab.linalg.counters.key_of`
    """
    limit, columns = chance_limit(density), entries.shape[1]
    if limit > torch.iinfo(torch.int32).max:  # all of what is drawn lies below
        return entries

    def rows(first: int, end: int) -> torch.Tensor:
        block = entries.rows(first, end)
        kept = torch.lt(random_integers(key, (first, end), columns), limit, out=torch.empty_like(block))
        return block.mul_(kept).div_(density) if density > 0.0 else block.zero_()

    return Entries(entries.shape, rows)


def kept_by_rank(entries: Entries, density: float, epsilon: float, key: int) -> Entries:
    """Keep entries with a probability that grows with their magnitude's rank within the row, divided by it.

    p_ij = density − ε + 2ε·ρ_ij/(n − 1), ρ_ij = 0 for the smallest of n in row i, of equal ones the first. Source:
    DELLA, arXiv 2406.11617, section 3.1 (MagPrune, by rows).

    Parameters
    ----------
    epsilon : with 0 < density − ε and density + ε ≤ 1
    key : of the random bits
    """
    if density >= 1.0:
        return entries
    columns = entries.shape[1]
    ladder = density - epsilon + 2.0 * epsilon * torch.arange(columns, dtype=torch.float64) / max(1, columns - 1)
    if columns == 1:
        ladder = torch.full((1,), density, dtype=torch.float64)
    limits = torch.tensor([chance_limit(chance) for chance in ladder.tolist()], dtype=torch.int64)
    factors = (1.0 / ladder).to(torch.float32)

    def rows(first: int, end: int) -> torch.Tensor:
        block = entries.rows(first, end)
        order = _ascending(block)
        drawn = random_integers(key, (first, end), columns).gather(1, order)
        kept = torch.where(drawn < limits, factors, 0.0)  # of the entries in the order of their magnitudes
        return block.mul_(torch.empty_like(block).scatter_(1, order, kept))

    return Entries(entries.shape, rows)


def _ascending(block: torch.Tensor) -> torch.Tensor:
    """Columns of each row in the order of their magnitudes, of equal ones the first, (k, n) int64.

    The bits of a magnitude, which are in its order, and the column make one integer: sorting such is many times faster
    than asking for the order of floats.
    """
    keys = (block.numpy().view(np.uint32) & np.uint32(0x7FFFFFFF)).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(block.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64(0xFFFFFFFF)
    return torch.from_numpy(keys.view(np.int64))


def _share(density: float, entries: Entries) -> int:
    return int(density * (entries.shape[0] * entries.shape[1]))
