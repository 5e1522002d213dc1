"""What a look at bytes says of floats is what torch says of the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.domain.dtypes import BITS, DType
from lora_lab.session.raw_floats import is_finite, is_zero

TYPES = {
    DType.F64: torch.float64,
    DType.F32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
    DType.F8_E5M2: torch.float8_e5m2,
    DType.F8_E4M3: torch.float8_e4m3fn,
    DType.F8_E4M3FNUZ: torch.float8_e4m3fnuz,
    DType.F8_E5M2FNUZ: torch.float8_e5m2fnuz,
}


def test_every_type_of_a_factor_is_tried() -> None:
    """A type that is added is noticed."""
    assert set(TYPES) == {dtype for dtype in BITS if dtype.is_float}


@pytest.mark.parametrize("dtype", [dtype for dtype in TYPES if dtype.bits <= 16])
def test_every_number_of_the_small_types(dtype: DType) -> None:
    """All 2^8 or 2^16 patterns of bits."""
    width = dtype.bits // 8
    for pattern in range(1 << dtype.bits):
        raw = bytearray(pattern.to_bytes(width, "little"))
        number = torch.frombuffer(raw, dtype=TYPES[dtype]).to(torch.float64).item()
        assert is_finite(raw, dtype) == (number - number == 0), pattern
        assert is_zero(raw, dtype) == (number == 0), pattern


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64])
@given(data=st.data())
def test_patterns_of_the_large_types(dtype: DType, data: st.DataObject) -> None:
    """Any bits, with the bytes on which it turns drawn often."""
    byte = st.one_of(st.sampled_from((0, 1, 0x7F, 0x80, 0xEF, 0xF0, 0xFF)), st.integers(0, 255))
    width = dtype.bits // 8
    raw = bytearray(data.draw(st.lists(byte, min_size=width, max_size=width * 3).filter(lambda x: len(x) % width == 0)))
    numbers = torch.frombuffer(raw, dtype=TYPES[dtype])
    assert is_finite(raw, dtype) == bool(numbers.isfinite().all())
    assert is_zero(raw, dtype) == bool((numbers == 0).all())
