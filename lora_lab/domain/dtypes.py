"""The element types of the safetensors format, known without torch."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class DType(StrEnum):
    """An element type under the name that safetensors files use.

    Source: the ``Dtype`` enumeration of the safetensors format.
    """

    BOOL = "BOOL"
    F4 = "F4"
    F6_E2M3 = "F6_E2M3"
    F6_E3M2 = "F6_E3M2"
    U8 = "U8"
    I8 = "I8"
    F8_E5M2 = "F8_E5M2"
    F8_E4M3 = "F8_E4M3"
    F8_E8M0 = "F8_E8M0"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    I16 = "I16"
    U16 = "U16"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    U32 = "U32"
    F32 = "F32"
    C64 = "C64"
    F64 = "F64"
    I64 = "I64"
    U64 = "U64"

    @property
    def bits(self) -> int:
        """Bits per element; below 8 several elements share a byte."""
        return BITS[self]

    @property
    def is_float(self) -> bool:
        """Whether a LoRA factor may have this type."""
        return self in _FACTOR_TYPES


# Types in which a weight can be summed and stored again.
PLAIN_FLOATS: Final = frozenset({DType.F16, DType.BF16, DType.F32, DType.F64})
BITS: Final[dict[DType, int]] = {
    DType.F4: 4,
    DType.F6_E2M3: 6,
    DType.F6_E3M2: 6,
    **dict.fromkeys((DType.BOOL, DType.U8, DType.I8), 8),
    **dict.fromkeys((DType.F8_E5M2, DType.F8_E4M3, DType.F8_E8M0), 8),
    **dict.fromkeys((DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ), 8),
    **dict.fromkeys((DType.I16, DType.U16, DType.F16, DType.BF16), 16),
    **dict.fromkeys((DType.I32, DType.U32, DType.F32), 32),
    **dict.fromkeys((DType.C64, DType.F64, DType.I64, DType.U64), 64),
}

_FACTOR_TYPES: Final = frozenset(
    {
        DType.F16,
        DType.BF16,
        DType.F32,
        DType.F64,
        DType.F8_E4M3,
        DType.F8_E5M2,
        DType.F8_E4M3FNUZ,
        DType.F8_E5M2FNUZ,
    }
)
