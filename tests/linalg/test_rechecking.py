"""The second look at a row: silent where the result is right, whatever the type, loud where one element is not."""

from __future__ import annotations

import pytest
import torch

from lora_lab.errors import OperationError
from lora_lab.linalg.rechecking import require_right, row_error
from lora_lab.linalg.rounding import block_generator
from lora_lab.linalg.storing import stored_rows
from lora_lab.linalg.updates import Dense, Term, Update

SHAPE = (24, 40)


def made(dtype: torch.dtype, *, is_dora: bool, is_random: bool) -> tuple[torch.Tensor, torch.Tensor, Update]:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(SHAPE, generator=generator).mul_(0.02).to(dtype)
    magnitude = torch.rand(SHAPE[0], generator=generator) if is_dora else None
    term = Term(torch.randn(4, 40, generator=generator), torch.randn(24, 4, generator=generator), 0.01, 1.0, magnitude)
    update = Update("w", SHAPE, [term], [Dense(torch.randn(SHAPE, generator=generator), 0.1)])
    drawn = block_generator(1, "w", 0) if is_random else None
    return weight, stored_rows(weight, update.moved(weight, 0), dtype, generator=drawn)[0], update


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_dora", [False, True])
@pytest.mark.parametrize("is_random", [False, True])
def test_right_is_right_and_two_units_are_not(dtype: torch.dtype, is_dora: bool, is_random: bool) -> None:
    """Every row of a right result stays within the bound; the largest element of one moved by some units does not."""
    weight, after, update = made(dtype, is_dora=is_dora, is_random=is_random)
    assert max(row_error(weight, after, update, 0, row) for row in range(SHAPE[0])) <= 1
    place = int(after[0].abs().argmax())
    units = 16 if dtype is not torch.float64 else 1024
    after[0, place] += units * torch.finfo(dtype).eps * after[0, place].abs()
    assert row_error(weight, after, update, 0, 0) > 1
    with pytest.raises(OperationError, match="computed wrong"):
        require_right(weight, after, update, 0, 0)
    require_right(weight, after, update, 0, 1)  # a block whose rows are not looked at


def test_not_a_number_is_no_proof() -> None:
    """NaN does not compare; it is refused."""
    weight, after, update = made(torch.float32, is_dora=False, is_random=False)
    after[0, 3] = torch.nan
    with pytest.raises(OperationError, match="computed wrong"):
        require_right(weight, after, update, 0, 0)
