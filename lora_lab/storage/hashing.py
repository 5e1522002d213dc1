"""sha256 beside the work: in a thread of its own, in order, with a bounded backlog."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_PART_BYTES: Final = 4 << 20
_WAITING_BYTES: Final = 64 << 20


class Hasher:
    """The sha256 of what is given, in the order given; hashing releases the interpreter.

    Examples
    --------
    >>> hasher = Hasher()
    >>> hasher.update(b"a")
    >>> hasher.hexdigest()[:8]
    'ca978112'
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hashing")
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._waiting_bytes = 0

    def update(self, buffer: Any) -> None:
        """Take in `buffer`, which must not be changed afterwards."""
        view = memoryview(buffer).cast("B")
        self._later(len(view), partial(self._digest.update, view))

    def update_from(self, descriptor: int, offset: int, count: int) -> None:
        """Take in `count` bytes of an open file, which must stay open until :meth:`hexdigest`."""
        for start in range(0, count, _PART_BYTES):
            length = min(_PART_BYTES, count - start)
            self._later(length, partial(self._range, descriptor, offset + start, length))

    def hexdigest(self) -> str:
        """Wait for what is still to be hashed; the digest so far."""
        while self._waiting:
            self._wait()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Give up what is still to be hashed."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _later(self, length: int, work: Callable[[], None]) -> None:
        self._waiting.append((length, self._pool.submit(work)))
        self._waiting_bytes += length
        while self._waiting_bytes > _WAITING_BYTES:
            self._wait()

    def _wait(self) -> None:
        length, future = self._waiting.popleft()
        self._waiting_bytes -= length
        future.result()

    def _range(self, descriptor: int, offset: int, length: int) -> None:
        while length:
            part = os.pread(descriptor, length, offset)
            if not part:
                raise OSError("the file ends before its bytes do")
            self._digest.update(part)
            offset, length = offset + len(part), length - len(part)
