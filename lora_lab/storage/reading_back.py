"""A large file read back from the disk while it is still being written, some way behind its writer."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Final

from lora_lab.errors import CancelledError, OperationError, quoted

if TYPE_CHECKING:
    import threading
    from concurrent.futures import Future, ThreadPoolExecutor
    from pathlib import Path

    from lora_lab.storage.disk import Disk

_READ_BYTES: Final = 4 << 20
_PIECE_BYTES: Final = 128 << 20


class ReadBack:
    """What the disk gives back of one file: synced, let go of by memory where the system lets one, read and hashed.

    Parameters
    ----------
    pool : of one thread, which does it in order
    unwanted : is set where nobody waits for it any more
    """

    def __init__(self, disk: Disk, descriptor: int, pool: ThreadPoolExecutor, unwanted: threading.Event) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._pool = pool
        self._unwanted = unwanted
        self._digest = hashlib.sha256()
        self._offset = 0
        self._asked_bytes = 0
        self._pieces: list[Future[None]] = []

    def follow(self, written_bytes: int) -> None:
        """Read what is written, once there is enough of it; raises what went wrong with an earlier piece."""
        for piece in self._pieces:
            if piece.done():
                piece.result()
        if written_bytes - self._asked_bytes >= _PIECE_BYTES:
            self._asked_bytes = written_bytes
            self._pieces.append(self._pool.submit(partial(self._read, written_bytes)))

    def require(self, place: Path, digest: str) -> None:
        """Read the rest, in the pool's thread, and refuse a file that is not what was written.

        Raises
        ------
        OperationError
            the bytes have another sha256 than `digest`.
        OSError
            the disk says no.
        """
        for piece in self._pieces:
            piece.result()  # done: the thread works in order
        self._read(None)
        if self._digest.hexdigest() != digest:
            raise OperationError(
                f"{quoted(place)} does not come back from the disk as it was written.",
                hint="The disk or its memory is faulty: check it, or write to another.",
            )

    def give_up(self) -> None:
        """Wait for the piece at hand; the file may be closed afterwards."""
        for piece in self._pieces:
            piece.cancel()
        for piece in self._pieces:
            if not piece.cancelled():
                piece.exception()

    def _read(self, end: int | None) -> None:
        """Read up to `end`, or all there is."""
        self._disk.sync(self._descriptor)
        self._disk.forget(self._descriptor)
        view = memoryview(bytearray(_READ_BYTES))
        while end is None or self._offset < end:
            if self._unwanted.is_set():
                raise CancelledError("Cancelled.")
            wanted = len(view) if end is None else min(len(view), end - self._offset)
            count = self._disk.read_into(self._descriptor, view[:wanted], self._offset)
            if not count:
                break
            self._digest.update(view[:count])
            self._offset += count
