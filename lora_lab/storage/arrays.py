"""Remembered tensors: what is dear to compute from a base, by key, of bounded size, never trusted to be whole."""

from __future__ import annotations

import hashlib
import os
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from lora_lab.errors import LoraLabError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

_VERSION: Final = "1"
_SUFFIX: Final = ".safetensors"
_HEADER_BYTES: Final = 4096  # more than a key, a checksum and a handful of names take
# What reading or writing a file of tensors can run into; a cache forgets and says nothing.
_FORGIVEN: Final = (OSError, LoraLabError, ValueError, TypeError, LookupError, RuntimeError, MemoryError)


class ArrayCache:
    """Tensors by key, one safetensors file for each key, in a folder that anyone may empty at any time.

    Parameters
    ----------
    folder : made when the first tensors are put
    limit_bytes : of all files; when it would be passed, those that were used longest ago go first, but none that this
        instance has put or got: a run over more than the limit keeps what it began with, where pushing out the oldest
        would leave the next run nothing

    Notes
    -----
    A file that is cut short, damaged (a checksum of the data is in its header), of another version or under another key
    counts as absent, and a folder that cannot be written is left alone: neither ever raises. Files appear whole, by
    renaming. The time of the last use is the file's time of change.

    Examples
    --------
    >>> import tempfile, torch
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = ArrayCache(Path(folder), limit_bytes=1 << 20)
    ...     cache.put("a", {"U": torch.eye(2)})
    ...     cache.get("a")["U"].tolist(), cache.get("b")
    ([[1.0, 0.0], [0.0, 1.0]], None)
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._used: set[Path] = set()

    @property
    def size_bytes(self) -> int:
        """Bytes that are kept now."""
        return sum(size for _, size, _ in self._entries())

    @property
    def limit_bytes(self) -> int:
        """Bytes that may be kept."""
        return self._limit_bytes

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors last put under `key`, in memory of their own; None when there are none."""
        from lora_lab.storage.header import read_header
        from lora_lab.storage.reading import read_tensors

        with suppress(*_FORGIVEN):
            path = self._path(key)
            header = read_header(path)
            if any(header.metadata.get(name) != value for name, value in _identity(key).items()):
                return None
            tensors = {ref.name: tensor for ref, tensor in read_tensors(header.tensors.values())}
            if header.metadata["crc32"] != _checksum(tensors):
                return None
            self._used.add(path)
            with suppress(OSError):  # where nothing can be written, reading is still worth it
                os.utime(path)
            return tensors
        return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Remember `tensors` under `key`, unless they are larger than the limit."""
        from lora_lab.storage.safetensors_writer import write_safetensors

        with suppress(*_FORGIVEN):
            needed = (
                sum(tensor.nbytes for tensor in tensors.values()) + _HEADER_BYTES + len(key.encode(errors="replace"))
            )
            if needed > self._limit_bytes:
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._path(key)
            if self._make_room(needed, path):
                write_safetensors(path, tensors, {**_identity(key), "crc32": _checksum(tensors)}, overwrite=True)
                self._used.add(path)

    def _path(self, key: str) -> Path:
        return self._folder / (_digest(key)[:40] + _SUFFIX)

    def _make_room(self, needed_bytes: int, replaced: Path) -> bool:
        """Let those used longest ago go until `needed_bytes` fit, and say whether they do; `replaced` is free."""
        entries = [entry for entry in sorted(self._entries()) if entry[2] != replaced]
        kept = sum(size for _, size, path in entries if path in self._used)
        if kept + needed_bytes > self._limit_bytes:
            return False
        excess = sum(size for _, size, _ in entries) + needed_bytes - self._limit_bytes
        for _, size, path in entries:
            if excess <= 0:
                break
            if path not in self._used:
                path.unlink(missing_ok=True)
                excess -= size
        return True

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of the last use, size and path of everything that is ours, left-over temporary files included."""
        found = []
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.suffix in (_SUFFIX, ".tmp"):
                    with suppress(OSError):
                        status = path.stat()
                        found.append((status.st_mtime_ns, status.st_size, path))
        return found


def _identity(key: str) -> dict[str, str]:
    return {"version": _VERSION, "key": _digest(key)}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """crc32 over the bytes of all tensors, in the order of their names."""
    import torch

    found = 0
    for name in sorted(tensors):
        flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        raw: Any = flat.view(torch.uint8).numpy()
        found = zlib.crc32(raw, found)
    return f"{found:08x}"
