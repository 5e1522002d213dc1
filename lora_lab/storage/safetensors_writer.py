"""Writing safetensors files: the same tensors give the same bytes, and a file appears whole or not at all."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.errors import FileFormatError, quoted
from lora_lab.storage.atomic import atomic_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ALIGNMENT: Final = 8
_CODES: Final[dict[torch.dtype, str]] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write `tensors` to one safetensors file, crash-safe and deterministic.

    Tensors stand in the order of falling element size, then of their names, as the format's own writer places them, so
    that every one is aligned; neither the order of the mapping nor memory layout shows in the bytes.

    Parameters
    ----------
    path : the file to appear; its folder must exist
    tensors : name to tensor, any shape, device and stride; each is moved to the CPU by itself, one after another
    metadata : text for the header's ``__metadata__``; transformers wants ``{"format": "pt"}``
    overwrite : whether a file already there is replaced

    Raises
    ------
    FileFormatError
        a dtype the format has no code for, or a tensor called ``__metadata__``.
    OperationError
        `path` exists, or the disk says no.

    Notes
    -----
    Layout: 8 bytes little-endian header length, JSON header padded with blanks to 8 bytes, then the data without gaps.
    Memory: one tensor beside those given. Source: safetensors 0.5, ``README.md``, "Format".
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _header(order, tensors, metadata)
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(struct.pack("<Q", len(header)))
        file.write(header)
        for name in order:
            file.write(_raw(tensors[name]))


def _header(order: list[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, Any] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    begin = 0
    for name in order:
        tensor = tensors[name]
        if name == "__metadata__" or tensor.dtype not in _CODES:
            raise FileFormatError(f"safetensors cannot hold a tensor called {quoted(name)} of {tensor.dtype}.")
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _raw(tensor: torch.Tensor) -> memoryview:
    # numpy has no bfloat16; the bytes are the same whatever they are called.
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw)
