"""A disk that fails, or takes the process with it, at a chosen call."""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_lab.storage.disk import Disk


class Killed(BaseException):
    """The process ended here: nothing after it happens."""


def one_at_a_time(kind: type[Any]) -> type[Any]:
    """Let no two calls of an object overlap: what counts them is told of each as a whole."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def alone(self: Any, *values: Any, **named: Any) -> Any:
            with self.lock:
                return method(self, *values, **named)

        return alone

    for name, method in list(vars(kind).items()):
        if callable(method) and not name.startswith("_"):
            setattr(kind, name, guarded(method))
    return kind


@one_at_a_time
class FaultyDisk(Disk):
    """Counts its calls; at the one numbered `at`, from 0, it fails with `code`, or ends the process when that is 0.

    Parameters
    ----------
    is_losing : whether, at the end of the process, everything is lost that was not synced: bytes and names
    """

    def __init__(self, at: int = -1, code: int = 0, *, is_losing: bool = False) -> None:
        self.lock = threading.RLock()
        self.calls = 0
        self._at = at
        self._code = code
        self._is_losing = is_losing
        self._is_dead = False
        self._paths: dict[int, Path] = {}
        self._unsynced_files: set[Path] = set()
        self._unsynced_names: list[tuple[Path, Callable[[], object]]] = []

    def _count(self) -> bool:
        """Whether this call is the one; when the process is dead, nothing is done any more."""
        if self._is_dead:
            raise Killed
        self.calls += 1
        return self.calls - 1 == self._at

    def _fail(self) -> None:
        if self._code:
            raise OSError(self._code, os.strerror(self._code))
        self._is_dead = True
        if self._is_losing:
            for path in self._unsynced_files:
                if path.exists():
                    os.truncate(path, 0)
            for _, undo in reversed(self._unsynced_names):
                undo()
        raise Killed

    def _guard(self) -> None:
        if self._count():
            self._fail()

    def create(self, path: Path) -> int:
        self._guard()
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self._unsynced_names.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return descriptor

    def append_to(self, path: Path) -> int:
        self._guard()
        is_new = not path.exists()
        descriptor = super().append_to(path)
        self._paths[descriptor] = path
        if is_new:
            self._unsynced_names.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return descriptor

    def close(self, descriptor: int) -> None:
        if self._is_dead:
            os.close(descriptor)  # as the system does
            raise Killed
        super().close(descriptor)

    def reserve(self, descriptor: int, size_bytes: int) -> None:
        self._guard()
        super().reserve(descriptor, size_bytes)

    def write_at(self, descriptor: int, buffer: Any, offset: int) -> None:
        self._unsynced_files.add(self._paths[descriptor])
        if self._count():
            super().write_at(descriptor, memoryview(buffer).cast("B")[: memoryview(buffer).nbytes // 2], offset)
            self._fail()
        super().write_at(descriptor, buffer, offset)

    def read_into(self, descriptor: int, buffer: Any, offset: int) -> int:
        self._guard()
        return super().read_into(descriptor, buffer, offset)

    def append(self, descriptor: int, content: bytes) -> None:
        if self._count():
            super().append(descriptor, content[: len(content) // 2])
            self._fail()
        super().append(descriptor, content)

    def copy_range(self, source: int, source_offset: int, target: int, target_offset: int, count: int) -> None:
        self._unsynced_files.add(self._paths[target])
        if self._count():
            super().copy_range(source, source_offset, target, target_offset, count // 2)
            self._fail()
        super().copy_range(source, source_offset, target, target_offset, count)

    def sync(self, descriptor: int) -> None:
        self._guard()
        super().sync(descriptor)
        self._unsynced_files.discard(self._paths[descriptor])
        # Syncing a new file makes its name last too, on the file systems that people have.
        path = self._paths[descriptor]
        self._unsynced_names = [entry for entry in self._unsynced_names if entry[0] != path.parent]

    def sync_folder(self, folder: Path) -> None:
        self._guard()
        super().sync_folder(folder)
        self._unsynced_names = [entry for entry in self._unsynced_names if entry[0] != folder]

    def make_folder(self, path: Path) -> None:
        self._guard()
        super().make_folder(path)

    def rename(self, old: Path, new: Path) -> None:
        self._guard()
        super().rename(old, new)
        self._unsynced_files = {new if path == old else path for path in self._unsynced_files}
        self._unsynced_names.append((new.parent, lambda: new.rename(old)))

    def rename_new(self, old: Path, new: Path) -> None:
        self._guard()
        super().rename_new(old, new)
        self._unsynced_names.append((new.parent, lambda: new.rename(old)))

    def exchange(self, first: Path, second: Path) -> bool:
        self._guard()
        is_done = super().exchange(first, second)
        if is_done:
            self._unsynced_names.append((second.parent, lambda: Disk.exchange(self, first, second)))
        return is_done

    def remove(self, path: Path) -> None:
        self._guard()
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        self._guard()
        super().remove_tree(path)


class FlippingDisk(Disk):
    """Keeps one bit of the file called `name` other than it was given, after it was synced, and says nothing."""

    def __init__(self, name: str, byte: int) -> None:
        self._name = name
        self._byte = byte
        self._places: dict[int, Path] = {}

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._places[descriptor] = path
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        if self._places.get(descriptor, Path()).name == f"{self._name}.part":
            (value,) = os.pread(descriptor, 1, self._byte)
            os.pwrite(descriptor, bytes([value ^ 16]), self._byte)


FULL = errno.ENOSPC
BROKEN = errno.EIO
