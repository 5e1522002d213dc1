"""Hashing large files: the right digest for each, told of, and given up at once."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest

from lora_lab.domain.progress import Unwatched
from lora_lab.errors import CancelledError, FileFormatError
from lora_lab.operations.push_hashing import Hashes
from lora_lab.storage.files import sha256_of


class Counting(Unwatched):
    """Notes what it is told, and cancels when it is asked to."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.is_done = False

    def advance(self, done: int, total: int, what: str = "") -> None:
        self.told.append((done, total))

    def is_cancelled(self) -> bool:
        return self.is_done


def test_each_file_has_its_own_hash_and_is_read_once(tmp_path: Path) -> None:
    files = []
    for number in range(9):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(bytes([number]) * (1000 + number))
        files.append((path, 1000 + number))
    read: list[Path] = []

    def noted(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    counting = Counting()
    with Hashes(noted) as hashes:
        hashes.begin(path for path, _ in files[:5])
        found = hashes.of(files, counting)
    assert found == [hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in files]
    assert sorted(read) == [path for path, _ in files]
    assert counting.told[-1] == (sum(size for _, size in files),) * 2


def test_cancelling_does_not_wait_for_a_file(tmp_path: Path) -> None:
    never = threading.Event()
    counting = Counting()
    counting.is_done = True
    begun = time.monotonic()
    with Hashes(lambda _: str(never.wait(30.0))) as hashes, pytest.raises(CancelledError):
        hashes.of([(tmp_path / "large", 1)], counting)
    assert time.monotonic() - begun < 1.0
    never.set()


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with Hashes(sha256_of) as hashes, pytest.raises(FileFormatError, match="does not exist"):
        hashes.of([(tmp_path / "gone", 1)], Unwatched())
