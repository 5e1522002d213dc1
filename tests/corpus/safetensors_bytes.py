"""Safetensors files, good and bad, byte by byte: nothing here checks what it writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    """One tensor's entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def as_bytes(header: dict[str, Any] | str | bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A whole file; `length` replaces the true length of the header."""
    if isinstance(header, dict):
        header = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    raw = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def write(path: Path, header: dict[str, Any] | str | bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    """Write such a file and return its path."""
    path.write_bytes(as_bytes(header, data, length=length))
    return path


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [1, 2], 8, 16)}
"""A header of two tensors, for 16 bytes of data."""
