"""Hashes of large files, several at a time, told of and given up at once."""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from lora_lab.domain.progress import stop_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lora_lab.domain.progress import Observer

_TOGETHER: Final = 4
_TICK_SECONDS: Final = 0.1


def hashed(files: Sequence[tuple[Path, int]], sha256_of: Callable[[Path], str], observer: Observer) -> list[str]:
    """The sha256 of each file, in order; reading and hashing release the interpreter.

    The threads are nobody's to wait for: one that hashes fifty gigabytes does not keep a person who has cancelled.

    Parameters
    ----------
    files : with their sizes in bytes

    Raises
    ------
    CancelledError
        the observer asked for it.
    LoraLabError
        a file cannot be read, or changed meanwhile.
    """
    waiting = deque(enumerate(path for path, _ in files))
    answers: queue.SimpleQueue[tuple[int, str | Exception]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                place, path = waiting.popleft()
            except IndexError:
                return
            try:
                answers.put((place, sha256_of(path)))
            except Exception as error:  # raised again where somebody waits for it
                answers.put((place, error))
                waiting.clear()

    for _ in range(min(_TOGETHER, len(files))):
        threading.Thread(target=work, name="hashing", daemon=True).start()
    found: dict[int, str] = {}
    total = sum(size for _, size in files)
    done = 0
    while len(found) < len(files):
        stop_if_cancelled(observer)
        try:
            place, answer = answers.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            continue
        if isinstance(answer, Exception):
            waiting.clear()
            raise answer
        found[place] = answer
        done += files[place][1]
        observer.advance(done, total, "hashing")
    return [found[place] for place in range(len(files))]
