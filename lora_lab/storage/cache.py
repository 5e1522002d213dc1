"""Remembered answers: JSON values by key, of bounded size, never trusted to be whole."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_VERSION: Final = 1
_LARGEST_ENTRY_BYTES: Final = 16 << 20
_SUFFIX: Final = ".json"
# What reading or writing a file, or its text, can run into; a cache forgets and says nothing.
_FORGIVEN: Final = (OSError, ValueError, TypeError, LookupError, RecursionError)


class JsonCache:
    """Values by key, one file each, in a folder that anyone may empty at any time.

    Parameters
    ----------
    folder : made when the first value is put
    limit_bytes : of all files; when it is passed, the oldest go until a tenth is free

    Notes
    -----
    A file that is corrupt, of another version or under another key counts as absent, and a folder that cannot be
    written is left alone: neither ever raises. Values appear whole, by renaming, but are not forced to the disk: what
    a power cut takes is computed again.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = JsonCache(Path(folder), limit_bytes=1000)
    ...     cache.put("a", [1, 2])
    ...     cache.get("a"), cache.get("b")
    ([1, 2], None)
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._size_bytes: int | None = None  # of the whole folder, once it has been looked at

    def get(self, key: str) -> Any | None:
        """The value last put under `key`, or None."""
        with suppress(*_FORGIVEN), self._path(key).open("rb") as file:
            raw = file.read(_LARGEST_ENTRY_BYTES + 1)
            if len(raw) > _LARGEST_ENTRY_BYTES:
                return None
            document = json.loads(raw)
            if document["version"] == _VERSION and document["key"] == key:
                return document["value"]
        return None

    def put(self, key: str, value: Any) -> None:
        """Remember `value`, which JSON can hold, under `key`."""
        with suppress(*_FORGIVEN):
            document = {"version": _VERSION, "key": key, "value": value}
            raw = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
            if len(raw) <= min(_LARGEST_ENTRY_BYTES, self._limit_bytes):
                self._make_room(len(raw))
                self._write(self._path(key), raw)

    def _path(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / (digest[:40] + _SUFFIX)

    def _write(self, path: Path, raw: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _make_room(self, needed_bytes: int) -> None:
        """Count what is put; when the limit is passed, look at the folder and let the oldest go.

        The count only grows, also when a value replaces an older one: it may bring the look forward, never delay it.
        """
        if self._size_bytes is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._size_bytes = sum(size for _, size, _ in self._entries())
        self._size_bytes += needed_bytes
        if self._size_bytes <= self._limit_bytes:
            return
        entries = sorted(self._entries())
        kept = sum(size for _, size, _ in entries) + needed_bytes
        for _, size, path in entries:
            if kept <= self._limit_bytes * 9 // 10:
                break
            path.unlink(missing_ok=True)
            kept -= size
        self._size_bytes = kept

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of writing, size and path of everything that is ours, left-over temporary files included."""
        found = []
        for path in self._folder.iterdir():
            if path.suffix in (_SUFFIX, ".tmp"):
                with suppress(OSError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        return found
