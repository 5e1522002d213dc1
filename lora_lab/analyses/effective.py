"""What an adapter really does to a weight of its base, where scaling·B·A alone does not say it.

DoRA rescales rows of the whole weight: W′ = m ⊙ (W + ΔW)/‖W + ΔW‖ (arXiv 2402.09353, equation 5). PiSSA moved the base
before training began: with the leading r singular triplets U_r S_r V_rᵀ of the original W, training started from
W − U_r S_r V_rᵀ, so that against the original the change is scaling·B·A − U_r S_r V_rᵀ (arXiv 2404.02948, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from lora_lab.linalg.measures import rank_tolerance
from lora_lab.linalg.spectra import factored_svd
from lora_lab.linalg.truncated import truncated_svd
from lora_lab.linalg.updates import Term, Update

if TYPE_CHECKING:
    from lora_lab.domain.adapter import Delta
    from lora_lab.extension.contracts import Factors
    from lora_lab.linalg.blocked import RowBlocks

# PiSSA's own start is a float32 decomposition; this is where the residual of one lies.
_START_TOLERANCE: Final = 1e-6
_DIRECTION_TOLERANCE: Final = 1e-4


class Change(NamedTuple):
    """A change of a weight as the base stores it, (m, n).

    norm : ‖change‖_F
    left : (m, r) float64, its leading left singular directions, those of zero left out
    right : (n, r) float64
    """

    norm: float
    left: torch.Tensor
    right: torch.Tensor


def change_of(
    delta: Delta,
    factors: Factors,
    weight: RowBlocks,
    *,
    is_turned: bool,
    rank: int | None,
    magnitude: torch.Tensor | None = None,
    is_moved: bool = False,
) -> Change:
    """Find norm and leading directions of what the adapter does to one weight.

    Parameters
    ----------
    weight : as the base stores it, (m, n)
    is_turned : whether the base stores the transpose of lora_B @ lora_A
    rank : how many directions; None for the numerical rank, or for r where the change has no small rank
    magnitude : of DoRA
    is_moved : whether PiSSA moved the base

    Raises
    ------
    NumericalError
        the product exceeds the range of float64.
    """
    lora_A, lora_B, scaling = factors.lora_A, factors.lora_B, factors.scaling
    if is_turned:
        lora_A, lora_B = lora_B.T, lora_A.T
    if magnitude is not None:
        term = Term(lora_A, lora_B, scaling, magnitude=magnitude, is_by_column=is_turned)
        return _rescaled(Update(delta.module, weight.shape, [term]), weight, rank or delta.rank)
    if is_moved:
        lora_A, lora_B = moved_factors(lora_A, lora_B, scaling, weight, delta.rank)
        scaling = 1.0
    U, S, Vh = factored_svd(lora_A, lora_B, scaling, name=delta.module)
    tolerance = rank_tolerance([delta.lora_A.dtype, delta.lora_B.dtype], lora_A.shape[0])
    kept = int((tolerance * S[0] < S).sum()) if S.numel() else 0
    if rank is not None:
        kept = min(kept, rank)
    return Change(float(torch.linalg.vector_norm(S)), U[:, :kept], Vh[:kept].T)


def moved_factors(
    lora_A: torch.Tensor, lora_B: torch.Tensor, scaling: float, weight: RowBlocks, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """lora_A (2r, n) and lora_B (m, 2r) of scaling·B·A − U_r S_r V_rᵀ, PiSSA's change of the original W, float64.

    Parameters
    ----------
    weight : W (m, n), turned as lora_B @ lora_A is
    """
    start = truncated_svd(weight, rank, tolerance=_START_TOLERANCE)
    both_B = torch.cat([scaling * lora_B.to(torch.float64), -start.U * start.S], dim=1)
    return torch.cat([lora_A.to(torch.float64), start.Vh]), both_B


def _rescaled(update: Update, weight: RowBlocks, rank: int) -> Change:
    """Norm and leading directions of W′ − W, a block of rows at a time."""
    if update.needs_columns:
        for first, rows in weight.each(lambda first, rows: (first, rows)):
            update.look(rows, first)
    change = weight.mapped(lambda first, rows: update.delta(rows, first))
    square = sum(change.each(lambda _first, rows: float(rows.square().sum())))
    found = truncated_svd(change, rank, tolerance=_DIRECTION_TOLERANCE)
    kept = int((found.S > 0).sum())
    return Change(square**0.5, found.U[:, :kept], found.Vh[:kept].T)
