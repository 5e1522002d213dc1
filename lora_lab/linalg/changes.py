"""Sums of updates some of which have no factors: their rows are made block by block, and never all held.

What DoRA does to a weight W, with its gains g_i = m_i/‖(W + ΔW)_i‖ row by row, is

    W′ − W = diag(g − 1)·W + diag(g)·scaling·B·A,

whose first part has the rank of W. Source: arXiv 2402.09353, equation 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from lora_lab.linalg.blocked import RowBlocks
from lora_lab.linalg.combining import side_by_side_factors
from lora_lab.linalg.spectra import Pair
from lora_lab.linalg.updates import Term, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Rows(NamedTuple):
    """A matrix whose rows can be made.

    shape : (out, in)
    rows : makes the rows from the first to before the second number, (k, in) float64; from several threads
    rank : of the factors that it is made with
    marks : what its numbers follow from, as a key of chance
    """

    name: str
    shape: tuple[int, int]
    rows: Callable[[int, int], torch.Tensor]
    rank: int
    marks: tuple[torch.Tensor, ...]
    scaling: float


def rescaled(
    pair: Pair, magnitude: torch.Tensor, weight: Callable[[int, int], torch.Tensor]
) -> Callable[[int, int], torch.Tensor]:
    """What DoRA does to a weight, as a function that makes rows of W′ − W.

    Parameters
    ----------
    magnitude : m, (out,)
    weight : makes rows of W, (k, in), float of any width

    Notes
    -----
    One pass over W for the gains, which are held; a row of W + ΔW that is zero stays zero.

    Examples
    --------
    >>> W = torch.tensor([[3.0, 4.0]])
    >>> pair = Pair("q", torch.zeros(1, 2), torch.zeros(1, 1), 1.0)
    >>> rescaled(pair, torch.tensor([10.0]), lambda first, end: W[first:end])(0, 1)
    tensor([[3., 4.]], dtype=torch.float64)
    """
    term = Term(pair.lora_A, pair.lora_B, pair.scaling, magnitude=magnitude)
    shape = (pair.lora_B.shape[0], pair.lora_A.shape[1])
    update = Update(pair.name, shape, [term])
    gains = torch.cat(
        list(RowBlocks(shape, weight).each(lambda first, rows: update.row_gains(rows, first)))
    )  # (out, 1)
    lora_A = pair.lora_A.to(torch.float64)
    lora_B = gains * pair.scaling * pair.lora_B.to(torch.float64)

    def rows(first: int, end: int) -> torch.Tensor:
        moved = weight(first, end).to(torch.float64) * (gains[first:end] - 1.0)
        return torch.addmm(moved, lora_B[first:end], lora_A)

    return rows


def sum_of_changes(parts: Sequence[Pair | Rows], coefficients: Sequence[float]) -> RowBlocks:
    """Σ cᵢ·partᵢ as blocks of rows, float64.

    Raises
    ------
    CompatibilityError
        the shapes of the factored ones differ.
    """
    return RowBlocks(_shape(parts[0]), _rows_of_sum(parts, coefficients))


def gram_of_changes(parts: Sequence[Pair | Rows]) -> torch.Tensor:
    """Inner products ⟨partᵢ, partⱼ⟩, (n, n) float64, in one pass over the rows.

    Examples
    --------
    >>> gram_of_changes([Pair("q", torch.ones(1, 3), torch.ones(2, 1), 2.0)])
    tensor([[24.]], dtype=torch.float64)
    """
    first_rows, *others = [_rows_of_sum([part], [1.0]) for part in parts]

    def one(first: int, rows: torch.Tensor) -> torch.Tensor:
        end = first + rows.shape[0]
        flat = torch.stack([rows.reshape(-1), *(other(first, end).reshape(-1) for other in others)])
        return flat @ flat.T

    total = torch.zeros((len(parts), len(parts)), dtype=torch.float64)
    for part in RowBlocks(_shape(parts[0]), first_rows).each(one):
        total += part
    return total


def _shape(part: Pair | Rows) -> tuple[int, int]:
    return (part.lora_B.shape[0], part.lora_A.shape[1]) if isinstance(part, Pair) else part.shape


def _rows_of_sum(parts: Sequence[Pair | Rows], coefficients: Sequence[float]) -> Callable[[int, int], torch.Tensor]:
    plain = [(part, one) for part, one in zip(parts, coefficients, strict=True) if isinstance(part, Pair)]
    others = [(part, one) for part, one in zip(parts, coefficients, strict=True) if isinstance(part, Rows)]
    shape = _shape(parts[0])
    lora_B, lora_A = torch.zeros((shape[0], 0), dtype=torch.float64), torch.zeros((0, shape[1]), dtype=torch.float64)
    if plain:
        lora_B, lora_A = side_by_side_factors([part for part, _ in plain], [one for _, one in plain])

    def rows(first: int, end: int) -> torch.Tensor:
        total = lora_B[first:end] @ lora_A
        for part, coefficient in others:
            total.add_(part.rows(first, end), alpha=coefficient)
        return total

    return rows
