"""Tensors held open for reading: in the file that has them, or in what was fetched of one that is elsewhere.

Whoever computes asks a :class:`Files` for a tensor and reads it, whole or by rows, from the open file that it gets;
where the bytes come from is settled here. A local file is its own place. A remote one is fetched in ranges into
temporary files, and a tensor lies in them where its range begins.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lora_lab.storage.files import opened, require_unchanged, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from lora_lab.domain.tensors import TensorRef


class Held(NamedTuple):
    """An open file, and the tensor with its range in that very file."""

    descriptor: int
    ref: TensorRef


class Files(Protocol):
    """Gives tensors to read, wherever their files are."""

    def hold(self, ref: TensorRef) -> AbstractContextManager[Held]:
        """Hold the tensor open for the length of a ``with`` block; several threads may hold several."""


class LocalFiles:
    """Files of this machine, opened for each tensor and watched meanwhile."""

    @contextmanager
    def hold(self, ref: TensorRef) -> Iterator[Held]:
        """Open the tensor's file.

        Raises
        ------
        FileFormatError
            the file changed since its header was read, or while it was held.
        """
        with opened(ref.file.path) as descriptor:
            require_unchanged(ref.file, stamp_of(descriptor, ref.file.path))
            yield Held(descriptor, ref)
            require_unchanged(ref.file, stamp_of(descriptor, ref.file.path))
