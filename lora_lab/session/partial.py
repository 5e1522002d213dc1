"""Models that are read in parts: opened by their headers, their tensors fetched while an analysis runs.

Nothing of an analysis changes for it. The session gives it a reader whose tensors come out of a spool, and an observer
that says beside the count of modules how many bytes have come.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain import figures
from lora_lab.domain.base import Base
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import HubError, quoted
from lora_lab.formats.opening import base_of
from lora_lab.session.placing import InMebibytes
from lora_lab.sources.runs import coalesced
from lora_lab.storage.holding import LocalFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import InputRecord
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.sources.kept import Kept
    from lora_lab.sources.remote import RemoteModel
    from lora_lab.sources.runs import Run
    from lora_lab.sources.spool import Spool
    from lora_lab.storage.holding import Files

_TICK_SECONDS: Final = 0.25
_CONFIGURATION: Final = "config.json"

_FILES: Final = (
    Column("file", "File", ColumnKind.TEXT),
    Column("tensors", "Tensors", ColumnKind.INTEGER),
    Column("fetch_bytes", "To fetch", ColumnKind.BYTES, formula="the tensors, and what lies between neighbours"),
    Column("requests", "Requests", ColumnKind.INTEGER, formula="one for each range, and one for a link to the file"),
    Column("size_bytes", "Of", ColumnKind.BYTES),
)
_WHOLE: Final = (
    Column("dry_run", "Dry run", ColumnKind.VALUE),
    Column("tensors", "Tensors", ColumnKind.INTEGER),
    Column("fetch_bytes", "To fetch", ColumnKind.BYTES),
    Column("requests", "Requests", ColumnKind.INTEGER),
    Column("size_bytes", "Size of the models", ColumnKind.BYTES, formula="of all files that are read in parts"),
)


def opened(model: RemoteModel, locator: str, observer: Observer) -> Base:
    """Open a remote model: its index, its ``config.json``, and the headers of its shards.

    Raises
    ------
    FileFormatError, HubError, CancelledError
        as :meth:`~lora_lab.sources.remote.RemoteModel.checkpoint`.
    """
    checkpoint = model.checkpoint(observer)
    config = model.document(_CONFIGURATION)
    base = base_of(checkpoint, config, locator=locator, name=model.name, revision=model.commit)
    return replace(base, findings=(*model.findings, *base.findings))


def parts_of(subjects: Sequence[Adapter | Base], models: Mapping[str, RemoteModel]) -> list[RemoteModel]:
    """The models among `subjects` that are read in parts; `models` are all, by place."""
    bases = [subject for subject in subjects if isinstance(subject, Base)]
    return [models[base.path] for base in bases if any(shard.is_remote for shard in base.shards)]


@contextmanager
def reading(
    models: Sequence[RemoteModel],
    ahead: Sequence[TensorRef],
    observer: Observer,
    folder: Path | None,
    kept: Kept | None = None,
) -> Iterator[tuple[Files, Observer]]:
    """Fetch tensors of `models` for the length of a ``with`` block.

    Parameters
    ----------
    ahead : tensors that will be read, in order, once for each time
    folder : where what is fetched lies until it is read; None is the system's place for temporary files
    kept : what the analysis before fetched, and will be kept for the next

    Yields
    ------
    where to read tensors, and the observer that whoever reads them should tell
    """
    if not models:
        yield LocalFiles(), observer
        return
    from lora_lab.sources.spool import Spool

    _require_online(models, ahead)
    files = {path: (file, model.reader) for model in models for path, file in model.files.items()}
    with Spool(files, ahead, observer, folder=folder, kept=kept) as spool, _Telling(observer, spool) as telling:
        yield spool, telling


def _require_online(models: Sequence[RemoteModel], ahead: Sequence[TensorRef]) -> None:
    """Say before the work, rather than at its first tensor, what an analysis would have to fetch and may not."""
    from lora_lab.sources.ranges import CONNECT

    for model in models:
        missing = {ref for ref in ahead if ref.file.path in model.files}
        if missing and model.reader.is_offline:
            size = figures.size(sum(ref.size_bytes for ref in missing))
            count = "1 tensor" if len(missing) == 1 else f"{len(missing)} tensors"
            raise HubError(
                f"{count} ({size}) of {quoted(model.place)} would have to be fetched, and the Hub is not asked.",
                hint=CONNECT,
            )


class _Telling:
    """Passes on what is told, one call at a time, with the bytes that have come; tells of them also in between."""

    def __init__(self, observer: Observer, spool: Spool) -> None:
        self._observer = observer
        self._spool = spool
        self._lock = threading.Lock()
        self._last: tuple[int, int, str] | None = None  # what was told of modules
        self._told_bytes = -1
        self._over = threading.Event()
        self._ticking = threading.Thread(target=self._tick, name="telling", daemon=True)

    def __enter__(self) -> Observer:
        self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticking.join()

    def advance(self, done: int, total: int, what: str = "") -> None:
        with self._lock:
            self._last = (done, total, what)
            self._tell()

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with self._lock:
            self._observer.rows(table, rows)

    def is_cancelled(self) -> bool:
        return self._observer.is_cancelled()

    def _tick(self) -> None:
        while not self._over.wait(_TICK_SECONDS):
            with self._lock:
                if self._spool.fetched_bytes != self._told_bytes:
                    self._tell()

    def _tell(self) -> None:
        self._told_bytes, expected = self._spool.fetched_bytes, self._spool.expected_bytes
        if self._last is None:  # no module is done yet: what is waited for are bytes
            InMebibytes(self._observer).advance(self._told_bytes, max(self._told_bytes, expected), "weights")
            return
        done, total, what = self._last
        came = f"{figures.size(self._told_bytes)} of {figures.size(expected)} fetched"
        self._observer.advance(done, total, f"{came}  {what}".rstrip())


def partial_findings(models: Sequence[RemoteModel]) -> tuple[Finding, ...]:
    """What cannot be known of what was read in parts."""
    return tuple(
        Finding(
            "partial_read",
            f"{quoted(model.place)} is read in parts: their places and lengths are checked, but only whole files can "
            "be compared with the Hub's hashes.",
        )
        for model in dict.fromkeys(models)
    )


def foretold(
    command: str,
    title: str,
    models: Sequence[RemoteModel] = (),
    ahead: Sequence[TensorRef] | None = None,
    inputs: tuple[InputRecord, ...] = (),
) -> Report:
    """Say what an analysis would fetch; nothing, without models.

    Parameters
    ----------
    models : that are read in parts; their headers have been read
    ahead : tensors that would be read; None where the analysis does not know them before it runs
    inputs : what was read to say so
    """
    remote = [ref for ref in ahead or () if ref.file.is_remote]
    by_file: dict[str, list[Run]] = {}
    for run in coalesced(remote):
        by_file.setdefault(run.file.path, []).append(run)
    rows = tuple(
        {
            "file": path,
            "tensors": len({ref for run in runs for ref in run.refs}),
            "fetch_bytes": sum(run.size_bytes for run in runs),
            "requests": len(runs) + 1,
            "size_bytes": runs[0].file.size_bytes,
        }
        for path, runs in sorted(by_file.items())
    )
    is_known = ahead is not None or not models
    sums: dict[str, Any] = {
        name: sum(row[name] for row in rows) if is_known else None for name in ("tensors", "fetch_bytes", "requests")
    }
    sums["size_bytes"] = sum(model.weights_bytes for model in models)
    return Report(
        command=command,
        title=f"{title}: what would be fetched",
        tables=(Table("files", "Files to read from", _FILES, rows, key="file"),),
        scalars=(Scalars("", "To fetch", _WHOLE, {"dry_run": True, **sums}),),
        findings=() if is_known else (_unknown(command, models),),
        inputs=inputs,
    )


def _unknown(command: str, models: Sequence[RemoteModel]) -> Finding:
    most = figures.size(sum(model.weights_bytes for model in models))
    return Finding("reads_unknown", f"The analysis {quoted(command)} does not say ahead what it reads: up to {most}.")
