"""Files of the Hub on this machine, with the bytes that the Hub lists: in its cache, or in a folder of their own."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Column, ColumnKind, InputRecord, Report, Scalars, Table
from lora_lab.errors import HubError, OperationError, quoted
from lora_lab.sources import hub_cache
from lora_lab.storage.disk import Disk
from lora_lab.storage.files import opened
from lora_lab.storage.staging import StagedFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from lora_lab.domain.progress import Observer
    from lora_lab.sources.hub import Fetched, Hub
    from lora_lab.sources.hub_fetching import Arrived
    from lora_lab.sources.hub_listing import ListedFile, Listing
    from lora_lab.sources.locators import Locator

_COPY_BYTES: Final = 32 << 20  # at a time, between two looks at whether it is still wanted
_SCALARS: Final = (
    Column("repository", "Repository", ColumnKind.TEXT),
    Column("revision", "Commit", ColumnKind.TEXT),
    Column("path", "Path", ColumnKind.TEXT),
    Column("files_total", "Files", ColumnKind.INTEGER),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("files_to_fetch", "To fetch", ColumnKind.INTEGER),
    Column("bytes_to_fetch", "Bytes to fetch", ColumnKind.BYTES, unit="bytes"),
    Column("files_fetched", "Fetched", ColumnKind.INTEGER),
    Column("bytes_fetched", "Bytes fetched", ColumnKind.BYTES, unit="bytes"),
)
_FILES: Final = (
    Column("name", "File", ColumnKind.TEXT),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("state", "State", ColumnKind.TEXT),
    Column("sha256", "sha256", ColumnKind.TEXT, is_wide=True),
)


@dataclass(frozen=True)
class PullTarget:
    """Where files go, beyond the cache.

    output : a folder that is not there, or is replaced with `overwrite`; None leaves them in the cache
    digest : sha256 of a file
    """

    digest: Callable[[Path], str]
    output: Path | None = None
    overwrite: bool = False
    is_dry: bool = False
    allow_pickle: bool = False
    disk: Disk = field(default_factory=Disk)


def pull(hub: Hub, locator: Locator, target: PullTarget, observer: Observer) -> Report:
    """Fetch what a locator stands for, and check every byte of it, whether it was there or not.

    Raises
    ------
    HubError
        not found, not allowed, not reachable, or not the bytes that the Hub lists.
    OperationError
        the output exists, the disk says no, or the observer cancelled.
    """
    if target.output is not None:
        _require_outside_cache(target.output)
    listing = hub.listing(locator, observer=observer)
    place = listing.place_of(locator)
    chosen = hub.wanted(locator, is_recursive=True, allow_pickle=target.allow_pickle)
    if not chosen.files:
        raise HubError(
            f"{quoted(locator.text)} has no weights, no configuration and no tokenizer to fetch.",
            hint="Look at its files on its page.",
        )
    if target.is_dry:
        return _foretold(listing, locator, chosen.files, (*listing.findings, *chosen.findings), target)
    with _staged(target, listing, chosen.files) as staged:
        fetched = hub.fetch(
            locator,
            is_recursive=True,
            allow_pickle=target.allow_pickle,
            is_checking_all=True,
            digest=target.digest,
            observer=observer,
        )
        if staged is not None and target.output is not None and not staged.is_complete:
            _copy(fetched.arrived, place, staged, observer)
            staged.commit()
    return _told(listing, locator, fetched, target)


def _require_outside_cache(folder: Path) -> None:
    output, cache = (Path(os.path.realpath(path)) for path in (folder, hub_cache.cache_root()))
    if output == cache or output in cache.parents or cache in output.parents:
        raise OperationError(
            f"{quoted(folder)} is a part of the Hub's cache, or holds it.", hint="Choose another folder."
        )


def _staged(
    target: PullTarget, listing: Listing, files: Sequence[ListedFile]
) -> AbstractContextManager[StagedFolder | None]:
    """The folder in the making; its name is refused before anything is fetched for it."""
    if target.output is None:
        return nullcontext()
    named = json.dumps([listing.repository, listing.commit, [[file.name, file.etag] for file in files]])
    identity = hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()
    return StagedFolder(target.output, identity, disk=target.disk, overwrite=target.overwrite)


def _copy(arrived: Sequence[Arrived], place: str, staged: StagedFolder, observer: Observer) -> None:
    """Copy files of the cache, each compared once more with the hash that was checked there."""
    total = sum(one.file.size_bytes for one in arrived)
    done = 0
    for one in arrived:
        name = one.file.name[len(place) :].lstrip("/")
        size = one.file.size_bytes
        with opened(one.path) as descriptor, staged.file(name, size) as file:
            for start in range(0, size, _COPY_BYTES):
                stop_if_cancelled(observer)
                count = min(_COPY_BYTES, size - start)
                file.copy_from(descriptor, start, count)
                done += count
                observer.advance(done, total, f"copying {one.file.name}")
            found = file.finish()
        if one.file.sha256 is not None and found != one.file.sha256:
            raise OperationError(
                f"{quoted(one.path)} changed while it was copied.", hint="Something else wrote to it; run this again."
            )


def _told(listing: Listing, locator: Locator, fetched: Fetched, target: PullTarget) -> Report:
    path = fetched.path if target.output is None else target.output
    new = [one for one in fetched.arrived if not one.was_there]
    rows = tuple(
        _row(one.file, "cached" if one.was_there else "fetched", one.file.sha256 or target.digest(one.path))
        for one in fetched.arrived
    )
    values = {
        "path": os.path.abspath(path),  # noqa: PTH100 - as named, not where a link leads
        "files_total": len(rows),
        "size_bytes": sum(one.file.size_bytes for one in fetched.arrived),
        "files_fetched": len(new),
        "bytes_fetched": sum(one.file.size_bytes for one in new),
    }
    digests = {row["name"]: row["sha256"] for row in rows}
    record = InputRecord(locator.text, str(fetched.path), digests, listing.commit)
    return _report(listing, locator, values, rows, fetched.findings, record)


def _foretold(
    listing: Listing, locator: Locator, files: Sequence[ListedFile], findings: Any, target: PullTarget
) -> Report:
    if target.output is not None and os.path.lexists(target.output) and not target.overwrite:
        raise OperationError(
            f"{quoted(target.output)} exists already.", hint="Choose another name, or pass --overwrite."
        )
    there = hub_cache.cached_files(listing.repository, listing.commit)
    missing = [file for file in files if file.name not in there or there[file.name].stat().st_size != file.size_bytes]
    rows = tuple(_row(file, "to fetch" if file in missing else "cached", file.sha256) for file in files)
    values: dict[str, Any] = {
        "path": str(target.output or hub_cache.snapshot(listing.repository, listing.commit)),
        "files_total": len(rows),
        "size_bytes": sum(file.size_bytes for file in files),
        "files_to_fetch": len(missing),
        "bytes_to_fetch": sum(file.size_bytes for file in missing),
    }
    record = InputRecord(locator.text, values["path"], {}, listing.commit)
    return _report(listing, locator, values, rows, findings, record)


def _row(file: ListedFile, state: str, sha256: str | None) -> dict[str, Any]:
    return {"name": file.name, "size_bytes": file.size_bytes, "state": state, "sha256": sha256}


def _report(
    listing: Listing, locator: Locator, values: dict[str, Any], rows: Any, findings: Any, record: InputRecord
) -> Report:
    values = {"repository": listing.repository, "revision": listing.commit, **values}
    columns = tuple(column for column in _SCALARS if column.id in values)
    return Report(
        command="pull",
        title=locator.text,
        scalars=(Scalars("", "Pull", columns, values),),
        tables=(Table("files", "Files", _FILES, rows, key="name"),),
        findings=tuple(findings),
        inputs=(record,),
    )
