"""Writing safetensors files: the same tensors give the same bytes, and a file appears whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.domain.dtypes import DType
from lora_lab.errors import FileFormatError, quoted
from lora_lab.storage.atomic import atomic_file
from lora_lab.storage.layout import Entry, header_bytes, in_aligned_order
from lora_lab.storage.reading import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DTYPES: Final[dict[torch.dtype, DType]] = {torch_dtype(dtype): dtype for dtype in DType if torch_dtype(dtype)}  # type: ignore[misc]


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
    entries = in_aligned_order(_entry(name, tensor) for name, tensor in tensors.items())
    header = header_bytes(entries, metadata)
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(header)
        for entry in entries:
            file.write(_raw(tensors[entry.name]))


def _entry(name: str, tensor: torch.Tensor) -> Entry:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise FileFormatError(f"safetensors cannot hold a tensor called {quoted(name)} of {tensor.dtype}.")
    return Entry(name, dtype, tuple(tensor.shape))


def _raw(tensor: torch.Tensor) -> memoryview:
    # numpy has no bfloat16; the bytes are the same whatever they are called.
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw)
