"""Rows of a tensor, without the rest of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lora_lab.errors import FileFormatError, quoted
from lora_lab.storage.files import changed, worded
from lora_lab.storage.reading import torch_dtype

if TYPE_CHECKING:
    import torch

    from lora_lab.domain.tensors import TensorRef


def read_rows(descriptor: int, ref: TensorRef, first: int, end: int, columns: int) -> torch.Tensor:
    """Read the rows from `first` to before `end` of a tensor seen as a matrix of `columns` columns.

    Parameters
    ----------
    descriptor : the tensor's file, open; whoever opened it compares its stamp before and after

    Returns
    -------
    (end − first, columns) of the stored type, in memory of its own

    Raises
    ------
    FileFormatError
        the file is shorter than it was, or several elements share a byte.
    """
    import torch

    dtype = torch_dtype(ref.dtype)
    if dtype is None:
        raise FileFormatError(
            f"The tensor {quoted(ref.name)} in {quoted(ref.file.path)} has dtype {ref.dtype}, whose elements share "
            "bytes, expected a type with whole bytes."
        )
    width = ref.dtype.bits // 8
    found = torch.empty((end - first, columns), dtype=dtype)
    flat: Any = found.view(-1).view(torch.uint8).numpy()
    view = memoryview(flat) if found.numel() else memoryview(b"")
    offset = ref.begin_bytes + first * columns * width
    while view:
        with worded(ref.file.path):
            count = os.preadv(descriptor, [view], offset)
        if not count:
            raise changed(ref.file.path)
        view, offset = view[count:], offset + count
    return found
