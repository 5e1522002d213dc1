"""Where a tensor's bytes are, and what a file looked like when it was opened."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_lab.domain.dtypes import DType


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file as it was when its header was read; a later difference means that it changed underneath.

    A file of which only parts are on this machine has an ``etag``, which names its content, and no times; its path is
    then ``hf://org/name@commit/file``.
    """

    path: str
    size_bytes: int
    mtime_ns: int = 0
    inode: int = 0
    device: int = 0
    etag: str = ""  # what its store calls the content of a remote file; empty for a local one

    @property
    def is_remote(self) -> bool:
        """Whether its bytes have to be fetched before they are read."""
        return bool(self.etag)

    @property
    def identity(self) -> list[str | int]:
        """Everything that tells this content from another, as JSON can hold it."""
        known: list[str | int] = [self.path, self.size_bytes, self.mtime_ns, self.inode, self.device]
        return [*known, self.etag] if self.etag else known


@dataclass(frozen=True, slots=True)
class TensorRef:
    """One tensor of one file: name, type, shape and the byte range that holds it.

    ``begin_bytes`` counts from the start of the file, not of the data section.
    """

    file: FileStamp
    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin_bytes: int
    end_bytes: int

    @property
    def size_bytes(self) -> int:
        """Length of the byte range."""
        return self.end_bytes - self.begin_bytes

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)
