"""A second, different way to a part of a result, while both W and Δ are at hand: what a fault in between would show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

from lora_lab.errors import OperationError, quoted

if TYPE_CHECKING:
    from lora_lab.linalg.updates import Update

# One row of the first of so many blocks: the work of it stays below some hundredths of the blocks' own.
_BLOCKS: Final = 4
_STRIDE: Final = 7
_WIDE_UNITS: Final = 64


def require_right(rows: torch.Tensor, after: torch.Tensor, update: Update, first: int, block: int) -> None:
    """Work one row of every fourth block out again, and refuse a result that it does not bear out.

    Raises
    ------
    OperationError
        the machine computes wrong.
    """
    if block % _BLOCKS or not rows.numel():
        return
    row = block // _BLOCKS * _STRIDE % rows.shape[0]
    error = row_error(rows, after, update, first, row)
    if not error <= 1:  # NaN is no proof
        raise OperationError(
            f"Row {first + row} of {quoted(update.name)} is {error:.3g} times as far from W + Δ as rounding can bring "
            "it: it was computed wrong.",
            hint="The processor or its memory may be faulty; run it again, or elsewhere.",
        )


def row_error(rows: torch.Tensor, after: torch.Tensor, update: Update, first: int, row: int) -> float:
    """How far one row of a result is from W + Δ, in what one rounding may leave; at most 1 where it is right.

    Δ is worked out for this row alone: a product of a vector, and not of the block's matrix. The bound of an element is
    a unit in the last place of the stored type, which rounding to nearest and by chance keep; four of float32, by way
    of which a type of 16 bits is rounded; and some of float64, in which it is summed, for Δ itself is no finer.

    Parameters
    ----------
    rows, after : (n, in), a block before and after, from the row `first` of the weight on
    row : which row of the block
    """
    before, made = rows[row : row + 1].to(torch.float64), after[row : row + 1].to(torch.float64)
    delta = update.delta(rows[row : row + 1], first + row)
    stored = torch.finfo(after.dtype)
    way = 4 * torch.finfo(torch.float32).eps if after.dtype.itemsize < 4 else 0.0
    summed = way + _WIDE_UNITS * torch.finfo(torch.float64).eps
    allowed = stored.eps * made.abs().clamp(min=stored.smallest_normal) + summed * (before.abs() + delta.abs())
    error = (made - before - delta).abs() / allowed
    lost = torch.where(torch.isfinite(made), math.inf, 0.0)  # where W + Δ is not finite, neither is what it makes
    return float(torch.where(torch.isfinite(before + delta), error, lost).max())
