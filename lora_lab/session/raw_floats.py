"""What floats are, seen from their bytes alone: no arithmetic library is loaded for a look.

Little-endian, as safetensors files are. Every step works on whole byte strings, so that a hundred megabytes take a
fraction of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.dtypes import DType

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIGN: Final = 0x80
# NaN and infinity have all bits of the exponent set. Of each type: the values of the highest byte with which that can
# be, and the least value of the byte below it with which it then is; 0 where the highest byte decides alone.
_FIVE_BITS: Final = bytes((*range(0x7C, 0x80), *range(0xFC, 0x100)))
_SEVEN_BITS: Final = b"\x7f\xff"
_NOT_FINITE: Final[Mapping[DType, tuple[bytes, int]]] = {
    DType.F64: (_SEVEN_BITS, 0xF0),
    DType.F32: (_SEVEN_BITS, 0x80),
    DType.BF16: (_SEVEN_BITS, 0x80),
    DType.F16: (_FIVE_BITS, 0),
    DType.F8_E5M2: (_FIVE_BITS, 0),
    DType.F8_E4M3: (b"\x7f\xff", 0),  # NaN alone: there is no infinity
    DType.F8_E4M3FNUZ: (b"\x80", 0),  # NaN is where others have -0
    DType.F8_E5M2FNUZ: (b"\x80", 0),
}


def is_zero(raw: bytearray, dtype: DType) -> bool:
    """Whether all of `raw` is zero, of either sign.

    Examples
    --------
    >>> import struct
    >>> is_zero(bytearray(struct.pack("<2f", 0.0, -0.0)), DType.F32), is_zero(bytearray(b"\\0\\1"), DType.BF16)
    (True, False)
    """
    width = dtype.bits // 8
    lower = (raw[place::width] for place in range(width - 1))
    if any(part.count(0) != len(part) for part in lower):
        return False
    has_minus_zero = _NOT_FINITE[dtype][0] != b"\x80"
    return not raw[width - 1 :: width].translate(None, bytes((0, _SIGN)) if has_minus_zero else b"\0")


def is_finite(raw: bytearray, dtype: DType) -> bool:
    """Whether `raw` holds neither NaN nor infinity.

    Examples
    --------
    >>> import struct
    >>> is_finite(bytearray(struct.pack("<2f", 1.0, 3e38)), DType.F32)
    True
    >>> is_finite(bytearray(struct.pack("<2f", 1.0, float("nan"))), DType.F32)
    False
    """
    width = dtype.bits // 8
    suspects, least = _NOT_FINITE[dtype]
    highest = raw[width - 1 :: width]
    if len(highest.translate(None, suspects)) == len(highest):
        return True
    if not least:
        return False
    # One large integer for each of both bytes, with ones where it has the value asked for; both must have it at once.
    first = highest.translate(bytes(0xFF * (value in suspects) for value in range(256)))
    second = raw[width - 2 :: width].translate(bytes(0xFF * (value >= least) for value in range(256)))
    return not int.from_bytes(first, "little") & int.from_bytes(second, "little")
