"""What was read, with the sha256 of its bytes, worked out beside the analysis itself."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.report import InputRecord, PartialRead
from lora_lab.storage.cache import JsonCache
from lora_lab.storage.files import require_unchanged, sha256_of, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from lora_lab.domain.base import Base
    from lora_lab.domain.report import Report
    from lora_lab.domain.tensors import FileStamp
    from lora_lab.sources.remote import RemoteModel

# A checkpoint larger than this is known by the headers of its shards where an analysis reads a part of it.
_HASHED_WHOLE_BYTES: Final = 1 << 30
_CACHE_BYTES: Final = 4 << 20
_TICK_NS: Final = 2_000_000_000  # the coarsest clock of a file system that people have, FAT's


class Fingerprints:
    """sha256 of files, remembered by device, inode, size and time of change: a large base is hashed once.

    Parameters
    ----------
    folder : of the cache; None remembers nothing
    """

    def __init__(self, folder: Path | None) -> None:
        self._cache = None if folder is None else JsonCache(folder / "fingerprints", limit_bytes=_CACHE_BYTES)

    def of(self, path: Path) -> str:
        """The sha256 of the file; its stamp is the same before and after it is read."""
        before = stamp(path)
        key = f"sha256 {before.device} {before.inode} {before.size_bytes} {before.mtime_ns}"
        known = None if self._cache is None else self._cache.get(key)
        if isinstance(known, str) and len(known) == hashlib.sha256().digest_size * 2:
            return known
        found = sha256_of(path)
        require_unchanged(before, stamp(path))
        # A file that was written in this very tick of the clock may be written again in it, with the same stamp.
        if self._cache is not None and time.time_ns() - before.mtime_ns > _TICK_NS:
            self._cache.put(key, found)
        return found


def record_of(
    subject: Adapter | Base,
    *,
    headers_only: bool = False,
    is_whole: bool = False,
    fingerprints: Fingerprints | None = None,
    remote: Sequence[RemoteModel] = (),
) -> InputRecord:
    """Hash what was read of `subject`.

    Parameters
    ----------
    headers_only : hash headers and configuration, not weights; the names then end in ``#header``
    is_whole : hash weights however large they are
    fingerprints : what is known of files
    remote : models that are read in parts; of `subject`, where it is one, the headers are known and nothing is hashed
    """
    known = fingerprints or Fingerprints(None)
    stamps = subject.files if isinstance(subject, Adapter) else subject.shards
    is_large = not is_whole and sum(one.size_bytes for one in stamps) > _HASHED_WHOLE_BYTES
    part = next((model for model in remote if model.place == subject.path), None)
    digests = {}
    for one in stamps:
        path = Path(one.path)
        if one.is_remote:
            if part is not None:
                digests[f"{path.name}#header"] = part.header_sha256[one.path]
        elif path.suffix == ".safetensors" and (headers_only or is_large):
            digests[f"{path.name}#header"] = _header_digest(path)
        else:
            digests[path.name] = known.of(path)
    if part is not None:
        return InputRecord(subject.locator, subject.path, digests, subject.revision, _moved(part, stamps))
    place = str(Path(subject.path).absolute())  # a receipt is read from another folder than the one it was made in
    return InputRecord(subject.locator, place, digests, subject.revision)


class Hashing:
    """Hashes inputs in a thread while a ``with`` block computes; hashing releases the interpreter.

    Parameters
    ----------
    headers_only, is_whole, fingerprints : as of :func:`record_of`
    remote : models that are read in parts: what was moved of them is known at the end alone
    """

    def __init__(
        self,
        subjects: Sequence[Adapter | Base],
        *,
        headers_only: bool = False,
        is_whole: bool = False,
        fingerprints: Fingerprints | None = None,
        remote: Sequence[RemoteModel] = (),
    ) -> None:
        hashed = partial(record_of, headers_only=headers_only, is_whole=is_whole, fingerprints=fingerprints)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hashing")
        places = {model.place for model in remote}
        self._records: list[Callable[[], InputRecord]] = [
            partial(record_of, subject, remote=remote)
            if subject.path in places
            else self._pool.submit(hashed, subject).result
            for subject in subjects
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def records(self) -> tuple[InputRecord, ...]:
        """What was read, once all of it is hashed."""
        return tuple(record() for record in self._records)

    def stamp(self, report: Report, parameters: Mapping[str, Any]) -> Report:
        """`report` with its inputs and parameters filled in."""
        return replace(report, inputs=self.records(), parameters={**parameters, **report.parameters})


def _moved(model: RemoteModel, stamps: Sequence[FileStamp]) -> PartialRead:
    traffic = model.reader.traffic
    etags = {Path(one.path).name: one.etag for one in stamps if one.is_remote}
    return PartialRead(etags, traffic.bytes, traffic.requests + traffic.resolved)


def _header_digest(path: Path) -> str:
    with path.open("rb") as file:
        length = file.read(8)
        return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()
