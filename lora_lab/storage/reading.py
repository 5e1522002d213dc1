"""Weights into memory that nobody else can change: by pread, never by mapping the file.

A mapped file that is cut short kills the process, and one that is rewritten changes tensors in silence. Here a short
read, or a file that is no longer the one whose header was read, is an error.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import ExitStack, closing
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.dtypes import DType
from lora_lab.errors import FileFormatError, quoted
from lora_lab.storage.files import changed, opened, require_unchanged, stamp_of, worded

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    import torch

    from lora_lab.domain.tensors import FileStamp, TensorRef
    from lora_lab.storage.holding import Held

_BATCH_BYTES: Final = 64 << 20
_MOST_BUFFERS: Final = 512  # half of what systems allow in one vectored read
_MOST_BYTES_A_READ: Final = 1 << 30  # systems stop just below 2 GiB

_TORCH_NAMES: Final = {
    DType.BOOL: "bool",
    DType.U8: "uint8",
    DType.I8: "int8",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E8M0: "float8_e8m0fnu",
    DType.F8_E4M3FNUZ: "float8_e4m3fnuz",
    DType.F8_E5M2FNUZ: "float8_e5m2fnuz",
    DType.I16: "int16",
    DType.U16: "uint16",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.I32: "int32",
    DType.U32: "uint32",
    DType.F32: "float32",
    DType.C64: "complex64",
    DType.F64: "float64",
    DType.I64: "int64",
    DType.U64: "uint64",
}


def read_bytes(ref: TensorRef) -> bytearray:
    """Read the bytes of one tensor as they are stored.

    Raises
    ------
    FileFormatError
        the file changed since its header was read.
    """
    with closing(_buffers([ref])) as found:
        return next(found)


def read_tensor(ref: TensorRef) -> torch.Tensor:
    """Read one tensor, in its stored type and shape, on the CPU, in memory of its own.

    Raises
    ------
    FileFormatError
        the file changed since its header was read, or several elements share a byte.
    """
    with closing(read_tensors([ref])) as found:
        return next(found)[1]


def read_tensors(refs: Iterable[TensorRef]) -> Generator[tuple[TensorRef, torch.Tensor], None, None]:
    """Read many tensors in the order asked for, each file opened once.

    Tensors that lie side by side are read by one call, at most 64 MiB ahead of the caller (or one tensor, if it is
    larger), each into memory of its own.

    Raises
    ------
    FileFormatError
        a file changed since its header was read, or several elements of a tensor share a byte.
    """
    wanted = list(refs)
    for ref in wanted:
        _require_whole_bytes(ref)
    with closing(_buffers(wanted)) as found:
        for ref in wanted:
            yield ref, _as_tensor(ref, next(found))


def read_held(held: Held) -> torch.Tensor:
    """Read one tensor of a file that is open; whoever opened it compares its stamp before and after.

    Raises
    ------
    FileFormatError
        the file is shorter than it was, or several elements share a byte.
    """
    _require_whole_bytes(held.ref)
    buffer = bytearray(held.ref.size_bytes)
    _read_run([held.ref], [buffer], {held.ref.file: held.descriptor})
    return _as_tensor(held.ref, buffer)


def _require_whole_bytes(ref: TensorRef) -> None:
    if ref.dtype not in _TORCH_NAMES:
        raise FileFormatError(
            f"The tensor {quoted(ref.name)} in {quoted(ref.file.path)} has dtype {ref.dtype}, whose elements share "
            "bytes, expected a type with whole bytes.",
            hint="Such a tensor can be copied, not computed with.",
        )


def torch_dtype(dtype: DType) -> torch.dtype | None:
    """The torch type of the same name; None where elements share a byte.

    Examples
    --------
    >>> torch_dtype(DType.BF16)
    torch.bfloat16
    """
    import torch

    name = _TORCH_NAMES.get(dtype)
    return None if name is None else getattr(torch, name)


def _as_tensor(ref: TensorRef, buffer: bytearray) -> torch.Tensor:
    """The tensor in `buffer`, which it keeps alive."""
    import torch

    dtype = getattr(torch, _TORCH_NAMES[ref.dtype])
    if not buffer:
        return torch.empty(ref.shape, dtype=dtype)
    if ref.dtype is DType.BOOL:  # any byte but 0 and 1 would be no value of torch.bool
        return (torch.frombuffer(buffer, dtype=torch.uint8) != 0).reshape(ref.shape)
    return torch.frombuffer(buffer, dtype=dtype).reshape(ref.shape)


def _buffers(refs: Sequence[TensorRef]) -> Generator[bytearray, None, None]:
    """Buffers of `refs`, in order, a bounded number of bytes at a time."""
    with ExitStack() as stack:
        open_files: dict[FileStamp, int] = {}
        for batch in _split(refs):
            for ref in batch:
                if ref.file not in open_files:
                    descriptor = stack.enter_context(opened(ref.file.path))
                    require_unchanged(ref.file, stamp_of(descriptor, ref.file.path))
                    open_files[ref.file] = descriptor
            buffers = deque(_read_batch(batch, open_files))
            while buffers:  # what is given away is not held here any longer
                yield buffers.popleft()


def _split(refs: Sequence[TensorRef]) -> Iterator[list[TensorRef]]:
    batch: list[TensorRef] = []
    size = 0
    for ref in refs:
        if batch and size + ref.size_bytes > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(ref)
        size += ref.size_bytes
    if batch:
        yield batch


def _read_batch(batch: Sequence[TensorRef], open_files: dict[FileStamp, int]) -> list[bytearray]:
    """Read in the order of the bytes on disk, neighbours together; then look whether a file changed meanwhile."""
    buffers = [bytearray(ref.size_bytes) for ref in batch]
    order = sorted(range(len(batch)), key=lambda place: (batch[place].file.path, batch[place].begin_bytes))
    run: list[int] = []
    for place in order:
        if run and not _follows(batch[run[-1]], batch[place]):
            _read_run([batch[i] for i in run], [buffers[i] for i in run], open_files)
            run = []
        run.append(place)
    _read_run([batch[i] for i in run], [buffers[i] for i in run], open_files)
    for stamp in {ref.file for ref in batch}:
        require_unchanged(stamp, stamp_of(open_files[stamp], stamp.path))
    return buffers


def _follows(before: TensorRef, ref: TensorRef) -> bool:
    return before.file == ref.file and before.end_bytes == ref.begin_bytes


def _read_run(refs: Sequence[TensorRef], buffers: Sequence[bytearray], open_files: dict[FileStamp, int]) -> None:
    """Fill `buffers` from the one range that `refs` make up."""
    file = refs[0].file
    offset = refs[0].begin_bytes
    views: list[Any] = [memoryview(buffer) for buffer in buffers if buffer]
    while views:
        with worded(file.path):
            count = os.preadv(open_files[file], _at_once(views), offset)
        if not count:
            raise changed(file.path)
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]


def _at_once(views: Sequence[Any]) -> list[Any]:
    """What one call may fill: the first views whole, or a part of the first."""
    whole = takewhile(lambda view: len(view) <= _MOST_BYTES_A_READ, views[:_MOST_BUFFERS])
    return list(whole) or [views[0][:_MOST_BYTES_A_READ]]
