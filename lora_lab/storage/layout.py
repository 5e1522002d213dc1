"""The header of a safetensors file that is still to be written."""

from __future__ import annotations

import json
import struct
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_lab.errors import FileFormatError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_lab.domain.dtypes import DType

_ALIGNMENT: Final = 8
_METADATA: Final = "__metadata__"


class Entry(NamedTuple):
    """Name, type and shape of one tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * self.dtype.bits // 8


def header_bytes(entries: Iterable[Entry], metadata: Mapping[str, str] | None) -> bytes:
    """Lay tensors out one after another and describe them.

    Parameters
    ----------
    entries : in the order of their data
    metadata : text for ``__metadata__``

    Returns
    -------
    8 bytes little-endian length, then JSON padded with blanks to 8 bytes

    Raises
    ------
    FileFormatError
        a tensor is called ``__metadata__``.

    Notes
    -----
    Source: safetensors 0.5, ``README.md``, "Format".
    """
    document: dict[str, Any] = {}
    if metadata:
        document[_METADATA] = dict(sorted(metadata.items()))
    begin = 0
    for entry in entries:
        if entry.name == _METADATA:
            raise FileFormatError(f"safetensors cannot hold a tensor called {quoted(entry.name)}.")
        end = begin + entry.size_bytes
        document[entry.name] = {"dtype": entry.dtype.value, "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def in_aligned_order(entries: Iterable[Entry]) -> list[Entry]:
    """Sort by falling element size, then by name, as the format's own writer does, so that all are aligned."""
    return sorted(entries, key=lambda entry: (-entry.dtype.bits, entry.name))
