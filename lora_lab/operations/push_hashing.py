"""Hashes of large files: begun while the Hub is asked, several at a time, told of and given up at once."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Self

from lora_lab.domain.progress import stop_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from lora_lab.domain.progress import Observer

_TOGETHER: Final = 4
_TICK_SECONDS: Final = 0.1


class Hashes:
    """sha256 of files, worked out by threads that nobody has to wait for.

    One that hashes fifty gigabytes does not keep a person who has cancelled; reading and hashing release the
    interpreter. At the end of a ``with`` block nothing more is begun.

    Parameters
    ----------
    sha256_of : hashes one file
    """

    def __init__(self, sha256_of: Callable[[Path], str]) -> None:
        self._sha256_of = sha256_of
        self._known: dict[str, Future[str]] = {}
        self._waiting: deque[tuple[Path, Future[str]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()

    def begin(self, paths: Iterable[Path]) -> None:
        """Hash these, if they are not being hashed already."""
        new = {_key(path): path for path in paths if _key(path) not in self._known}
        for key, path in new.items():
            self._known[key] = Future()
            self._waiting.append((path, self._known[key]))
        for _ in range(min(_TOGETHER, len(new))):
            threading.Thread(target=self._work, name="hashing", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                path, answer = self._waiting.popleft()
            except IndexError:
                return
            try:
                answer.set_result(self._sha256_of(path))
            except Exception as error:  # raised again where somebody waits for it
                answer.set_exception(error)

    def of(self, files: Sequence[tuple[Path, int]], observer: Observer) -> list[str]:
        """The hash of each file, in order.

        Parameters
        ----------
        files : with their sizes in bytes
        observer : told of bytes, and asked whether to go on

        Raises
        ------
        CancelledError
            the observer asked for it.
        LoraLabError
            a file cannot be read, or changed meanwhile.
        """
        self.begin(path for path, _ in files)
        found = []
        total, done = sum(size for _, size in files), 0
        for path, size in files:
            answer = self._known[_key(path)]
            while not answer.done():
                stop_if_cancelled(observer)
                _wait(answer)
            found.append(answer.result())
            done += size
            observer.advance(done, total, "hashing")
        return found


def _wait(answer: Future[str]) -> None:
    """Wait a moment for an answer, whatever it is."""
    over = threading.Event()
    answer.add_done_callback(lambda _: over.set())
    over.wait(_TICK_SECONDS)


def _key(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - as named, not where a link leads
