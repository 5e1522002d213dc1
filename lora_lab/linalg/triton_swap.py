"""A swap as one kernel on CUDA: every weight read once and written once, with the rounding in the middle.

Two multiplications in place need two passes over a weight; this needs one, 4 bytes an element, as a copy does. Triton
comes with torch for CUDA; where it is not, or cannot compile, :func:`usable` says no.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch for CUDA alone
    triton = None

from lora_lab.linalg.in_place import NARROW

if TYPE_CHECKING:
    from lora_lab.linalg.sliced import Sliced

_ROWS, _COLUMNS = 64, 128  # of a tile: 32 KiB of float32 in registers of four warps
_LEAST_RANK: Final = 16  # that a matrix unit multiplies
_MOST_RANK: Final = 256  # both factors' tiles fit into what a multiprocessor has near


def usable(device: str) -> bool:
    """Whether there is Triton for `device`."""
    return device.startswith("cuda") and triton is not None


def may_swap(taken: Sliced, put: Sliced) -> bool:
    """Whether the kernel takes factors of these ranks: of 16 bits, since those of 32 it would cut to fewer."""
    is_narrow = taken.lora_A.dtype in NARROW and put.lora_A.dtype in NARROW
    return is_narrow and max(len(taken.lora_A), len(put.lora_A)) <= _MOST_RANK


def swap(weight: torch.Tensor, taken: Sliced, put: Sliced) -> None:
    """W ← round(round(W − ΔA) + ΔB), accumulated in float32, in place and in one pass.

    Parameters
    ----------
    weight : (out, in), contiguous, float16 or bfloat16, on CUDA
    taken, put : of the type of the weight, each :func:`padded`
    """
    rows, columns = weight.shape
    grid = (-(-rows // _ROWS), -(-columns // _COLUMNS))
    # Triton launches on whichever device is current; -1 is none, as in its interpreter on the processor.
    with torch.cuda.device(weight.get_device()):
        swap_tile[grid](
            weight,
            *(taken.lora_A, taken.lora_B, put.lora_A, put.lora_B, taken.scale, put.scale, rows, columns),
            TAKEN=len(taken.lora_A),
            PUT=len(put.lora_A),
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
        )


def padded(factors: Sliced) -> Sliced:
    """The factors with zeros up to the next rank that a matrix unit multiplies; themselves where they have that.

    Or where they have more than the kernel takes, so that two multiplications gain nothing from zeros.

    Examples
    --------
    >>> from lora_lab.linalg.sliced import Sliced
    >>> padded(Sliced(torch.ones(3, 2), torch.ones(4, 3), 1.0)).lora_B.shape
    torch.Size([4, 16])
    """
    A, B = factors.lora_A, factors.lora_B
    if len(A) > _MOST_RANK:
        return factors
    more = max(_LEAST_RANK, 1 << max(0, len(A) - 1).bit_length()) - len(A)
    if not more:
        return factors
    return factors._replace(
        lora_A=torch.cat([A, A.new_zeros((more, A.shape[1]))]),
        lora_B=torch.cat([B, B.new_zeros((B.shape[0], more))], dim=1),
    )


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def swap_tile(  # type: ignore[no-untyped-def]
        weight, old_A, old_B, new_A, new_B, old_scale, new_scale, rows, columns,
        TAKEN: tl.constexpr, PUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        is_row, is_column = row[:, None] < rows, column[None, :] < columns
        place = weight + row[:, None].to(tl.int64) * columns + column[None, :]
        tile = tl.load(place, mask=is_row & is_column, other=0.0).to(tl.float32)
        rank = tl.arange(0, TAKEN)
        B = tl.load(old_B + row[:, None] * TAKEN + rank[None, :], mask=is_row, other=0.0)
        A = tl.load(old_A + rank[:, None] * columns + column[None, :], mask=is_column, other=0.0)
        tile -= old_scale * tl.dot(B, A)
        tile = tile.to(weight.dtype.element_ty).to(tl.float32)
        rank = tl.arange(0, PUT)
        B = tl.load(new_B + row[:, None] * PUT + rank[None, :], mask=is_row, other=0.0)
        A = tl.load(new_A + rank[:, None] * columns + column[None, :], mask=is_column, other=0.0)
        tile += new_scale * tl.dot(B, A)
        tl.store(place, tile.to(weight.dtype.element_ty), mask=is_row & is_column)
