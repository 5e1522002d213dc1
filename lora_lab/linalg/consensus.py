"""Several updates made one, entry by entry: summed, or only where they agree with an elected sign."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch

from lora_lab.linalg.entries import Entries

if TYPE_CHECKING:
    from collections.abc import Sequence


class Majority(StrEnum):
    """What elects the sign of an entry."""

    TOTAL = "total"  # the sum of the updates
    FREQUENCY = "frequency"  # the number of updates with either sign


class Election(StrEnum):
    """Whether the strengths have a say in the election, and what the sum of those that agree is divided by."""

    BEFORE = "before"  # signs of the updates themselves; divided by how many agree
    AFTER = "after"  # signs of strength times update; divided by the strengths of those that agree


def summed(parts: Sequence[Entries], strengths: Sequence[float]) -> Entries:
    """Σ wᵢ·xᵢ.

    Examples
    --------
    >>> one = Entries((1, 2), lambda first, end: torch.tensor([[1.0, -2.0]]))
    >>> summed([one, one], [1.0, 0.5]).rows(0, 1)
    tensor([[ 1.5000, -3.0000]])
    """

    def rows(first: int, end: int) -> torch.Tensor:
        total = parts[0].rows(first, end).mul_(strengths[0])
        for part, strength in zip(parts[1:], strengths[1:], strict=True):
            total.add_(part.rows(first, end), alpha=strength)
        return total

    return Entries(parts[0].shape, rows)


def elected(parts: Sequence[Entries], strengths: Sequence[float], *, majority: Majority, election: Election) -> Entries:
    """Sum, in each entry, the updates whose sign is the elected one, and divide by their number or weight.

    The elected sign is that of Σ xᵢ, or of Σ sgn(xᵢ); a sum of zero elects +. Of xᵢ as they are,

        Σ_{agreeing} wᵢ·xᵢ / max(1, number agreeing)                        (election before weighting; PEFT's ``ties``)

    or of wᵢ·xᵢ in place of xᵢ,

        Σ_{agreeing} wᵢ·xᵢ / Σ_{agreeing} wᵢ, by 1 where that is 0          (after weighting; mergekit's ``ties``)

    Source: TIES-Merging, arXiv 2306.01708, steps "elect" and "disjoint merge"; with strengths of 1 the two are one.

    Examples
    --------
    >>> def one(*values):
    ...     return Entries((1, 3), lambda first, end: torch.tensor([values]))
    >>> both = [one(1.0, -2.0, 1.0), one(3.0, 1.0, 0.0)]
    >>> elected(both, [1.0, 1.0], majority=Majority.TOTAL, election=Election.BEFORE).rows(0, 1)
    tensor([[ 2., -2.,  1.]])
    """
    is_weighted = election is Election.AFTER

    def rows(first: int, end: int) -> torch.Tensor:
        blocks = [part.rows(first, end) for part in parts]
        if is_weighted:
            for block, strength in zip(blocks, strengths, strict=True):
                block.mul_(strength)
        signs = torch.zeros_like(blocks[0])
        for block in blocks:
            signs += block if majority is Majority.TOTAL else block.sign()
        signs.ge_(0).mul_(2.0).sub_(1.0)  # the elected ones, ±1
        total, divisor = torch.zeros_like(signs), torch.zeros_like(signs)
        for block, strength in zip(blocks, strengths, strict=True):
            agreeing = block.mul_(signs).clamp_(min=0.0)  # |xᵢ| where it agrees
            total.add_(agreeing, alpha=1.0 if is_weighted else strength)
            divisor.add_(agreeing.gt_(0), alpha=strength if is_weighted else 1.0)
        if is_weighted:
            divisor.add_(divisor.eq(0))
        else:
            divisor.clamp_(min=1.0)
        return total.mul_(signs).div_(divisor)

    return Entries(parts[0].shape, rows)
