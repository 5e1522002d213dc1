"""Listing a folder: one entry for everything found, from headers, remembered for the next time.

What was read is remembered in one file for each library, and holds as long as size and time of every file it came from
are the same. Source of the idea: git's index.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.library import EntryKind, LibraryEntry
from lora_lab.domain.modules import natural_key
from lora_lab.errors import LoraLabError, quoted
from lora_lab.safetext import safe_text
from lora_lab.sources.local import Candidate, candidates, kind_of_names
from lora_lab.storage.cache import JsonCache
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.dtypes import DType
    from lora_lab.domain.tensors import FileStamp
    from lora_lab.session.session import Session
    from lora_lab.sources.locators import Locator

_CACHE_BYTES: Final = 64 << 20


class Library:
    """One folder of adapters and bases.

    Parameters
    ----------
    session : opens what is new or changed
    folder : where to look; an adapter's or a model's own folder is a library of one
    cache_folder : None remembers nothing
    """

    def __init__(self, session: Session, folder: Path, cache_folder: Path | None) -> None:
        self._session = session
        self._folder = folder
        self._cache = None
        if cache_folder is not None:
            self._cache = JsonCache(cache_folder / "libraries", limit_bytes=_CACHE_BYTES)

    def scan(self) -> Iterator[LibraryEntry]:
        """Yield entries as they are read; remember them when all were seen."""
        remembered = self._cache.get(self._key()) if self._cache else None
        if not isinstance(remembered, dict):
            remembered = {}
        kept: dict[str, Any] = {}
        changed = False
        for candidate in candidates(self._folder):
            known = remembered.get(candidate.name)
            entry = _remembered(known, candidate)
            if entry is not None:
                kept[candidate.name] = known
            else:
                entry, stamps = self._read(candidate)
                changed = True
                if entry.error is None:
                    kept[candidate.name] = {"entry": asdict(entry), "stamps": stamps}
            yield entry
        if self._cache and (changed or len(kept) != len(remembered)):
            self._cache.put(self._key(), kept)

    def _key(self) -> str:
        allowed = (self._session.allow_pickle, self._session.follow_symlinks, self._session.alpha)
        return f"library {__version__} {os.path.realpath(self._folder)} {allowed}"

    def _read(self, candidate: Candidate) -> tuple[LibraryEntry, list[list[Any]]]:
        path = str(candidate.path)
        kind = EntryKind.BASE if candidate.is_model else EntryKind.ADAPTER
        try:
            if candidate.is_model:
                base = self._session.base(path)
                return _base_entry(base, candidate), _stamps(base.shards, candidate.path)
            adapter = self._session.adapter(path)
            return _adapter_entry(adapter, candidate), _stamps(adapter.files, candidate.path)
        except LoraLabError as error:
            broken = LibraryEntry(kind, candidate.name, path, error=error.message, hint=error.hint or None)
        except Exception as error:  # whatever one entry runs into, the others are listed
            sentence = safe_text(f"{quoted(path)} could not be read: {type(error).__name__}: {error}.")
            broken = LibraryEntry(kind, candidate.name, path, error=sentence)
        return broken, []


def scan_repository(session: Session, locator: Locator) -> Iterator[LibraryEntry]:
    """List what a repository of the Hub holds: the files of adapters are fetched, of models what a listing needs.

    What lies in the cache then is named by its path there; a model, which stays where it is, by its locator.
    """
    listing = session.hub.listing(locator)
    place = listing.place_of(locator)
    pinned = f"hf://{listing.repository}@{listing.commit}"
    if place != locator.subfolder:
        yield _entry_of(session, Candidate(Path(locator.subfolder), locator.subfolder, False), locator.text)
        return
    folders: dict[str, set[str]] = {}
    for file in listing.below(place):
        folder, _, name = file.name.rpartition("/")
        folders.setdefault(folder, set()).add(name)
    for folder in sorted(folders, key=natural_key):
        kind = kind_of_names(folders[folder])
        if kind is None:
            continue
        below = folder[len(place) :].strip("/")
        candidate = Candidate(Path(folder), below or folder or listing.repository, kind == "model")
        yield _entry_of(session, candidate, f"{pinned}:{folder}" if folder else pinned)


def _entry_of(session: Session, candidate: Candidate, locator: str) -> LibraryEntry:
    kind = EntryKind.BASE if candidate.is_model else EntryKind.ADAPTER
    try:
        if candidate.is_model:
            return replace(_base_entry(session.base(locator), candidate), path=locator)
        adapter = session.adapter(locator)
        return replace(_adapter_entry(adapter, candidate), path=adapter.path)
    except LoraLabError as error:
        return LibraryEntry(kind, candidate.name, locator, error=error.message, hint=error.hint or None)


def _remembered(known: Any, candidate: Candidate) -> LibraryEntry | None:
    """An entry from its JSON, as long as its files are what they were; a memory of another shape is none.

    The path is that of this time, since the folder may be named in several ways.
    """
    if known is None:
        return None
    try:
        fields = known["entry"]
        restored = {"kind": EntryKind(fields["kind"]), "features": tuple(fields["features"])}
        entry = LibraryEntry(**{**fields, **restored, "path": str(candidate.path)})
        return entry if _stamps_hold(known["stamps"]) else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _adapter_entry(adapter: Adapter, candidate: Candidate) -> LibraryEntry:
    alphas = {delta.alpha for delta in adapter.deltas}
    ranks = adapter.ranks
    return LibraryEntry(
        kind=EntryKind.ADAPTER,
        name=candidate.name,
        path=str(candidate.path),
        format=adapter.format,
        peft_type=adapter.peft_type,
        base_model=adapter.base_model,
        rank_min=ranks[0],
        rank_max=ranks[1],
        alpha=alphas.pop() if len(alphas) == 1 else None,
        modules=len(adapter.deltas),
        parameters=adapter.parameters,
        size_bytes=adapter.size_bytes,
        dtype=_dtypes(delta.lora_A.dtype for delta in adapter.deltas),
        features=tuple(feature.id for feature in adapter.features),
        warnings=len(adapter.findings),
        modified_seconds=max((stamp.mtime_ns for stamp in adapter.files), default=0) / 1e9,
    )


def _base_entry(base: Base, candidate: Candidate) -> LibraryEntry:
    return LibraryEntry(
        kind=EntryKind.BASE,
        name=candidate.name,
        path=str(candidate.path),
        format="safetensors",
        parameters=base.parameters,
        size_bytes=base.size_bytes,
        dtype=_dtypes(tensor.dtype for tensor in base.tensors.values()),
        warnings=len(base.findings),
        shards=len(base.shards),
        modified_seconds=max((stamp.mtime_ns for stamp in base.shards), default=0) / 1e9,
    )


def _dtypes(dtypes: Iterable[DType]) -> str:
    """All dtypes, the most frequent first, joined by ``+``."""
    return "+".join(str(dtype) for dtype, _ in Counter(dtypes).most_common())


def _stamps(files: Sequence[FileStamp], folder: Path) -> list[list[Any]]:
    """Path, size and time of what an entry came from; the folder's own time tells of files that came or went."""
    found: list[list[Any]] = [[os.path.abspath(stamp.path), stamp.size_bytes, stamp.mtime_ns] for stamp in files]  # noqa: PTH100
    if folder.is_dir():
        found.append([os.path.abspath(folder), None, folder.stat().st_mtime_ns])  # noqa: PTH100
    return found


def _stamps_hold(stamps: Sequence[Sequence[Any]]) -> bool:
    for path, size, mtime in stamps:
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path for each of thousands of files costs more than the call
        except OSError:
            return False
        if status.st_mtime_ns != mtime or (size is not None and status.st_size != size):
            return False
    return bool(stamps)
