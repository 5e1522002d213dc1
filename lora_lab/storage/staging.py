"""A folder of large files that appears whole, can be gone on with after an interruption, and never mixes two recipes.

The files are made in a sibling of the folder, whose name carries the identity of the plan. Each finished one is synced,
read back, renamed and written into a journal beside it, while the next is written. At the end one rename, or one
exchange with what was there before, gives the sibling the name it was made for. Killed at any moment, the target is
what it was, or complete; the sibling and the journal are enough to go on, and only with the same plan.

Source: the order of writes, syncs and renames follows SQLite's rollback journal, sqlite.org/atomiccommit.html.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from lora_lab.errors import CancelledError, OperationError, quoted
from lora_lab.storage.atomic import explained
from lora_lab.storage.disk import Disk
from lora_lab.storage.files import sha256_of
from lora_lab.storage.hashing import Hasher
from lora_lab.storage.reading_back import ReadBack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from types import TracebackType

_ID_CHARACTERS: Final = 16
_COMMITTING: Final = "committing"


class Finished(NamedTuple):
    """A file of the output that is complete."""

    name: str
    sha256: str
    size_bytes: int


class StagedFile:
    """A file that is written from its beginning to its end, hashed on the way, and read back some way behind."""

    def __init__(self, disk: Disk, descriptor: int, read_back: ReadBack) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self._hasher = Hasher()
        self._read_back = read_back
        self.size_bytes = 0

    def write(self, buffer: Any) -> None:
        """Append `buffer`, which must not be changed afterwards."""
        view = memoryview(buffer).cast("B")
        self._disk.write_at(self._descriptor, view, self.size_bytes)
        self._hasher.update(view)
        self._grow(len(view))

    def copy_from(self, source: int, offset: int, count: int) -> None:
        """Append `count` bytes of the open file `source`, which must stay open until :meth:`finish`."""
        self._disk.copy_range(source, offset, self._descriptor, self.size_bytes, count)
        self._hasher.update_from(source, offset, count)
        self._grow(count)

    def _grow(self, count: int) -> None:
        """Let what is there be synced and read back, so that little is left at the end."""
        self.size_bytes += count
        self._read_back.follow(self.size_bytes)

    def finish(self) -> str:
        """Wait for the last hash; the file's sha256."""
        return self._hasher.hexdigest()

    def close(self) -> None:
        """Give up what is still to be hashed."""
        self._hasher.close()


def left_behind(target: Path) -> list[Path]:
    """What a run that was killed has left beside `target`: a staging folder, its journal, a lock, a file in the making.

    Examples
    --------
    >>> left_behind(Path("/no/such/folder/out"))
    []
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - the name as given, not where a link leads
    with suppress(OSError):
        return sorted(path for path in target.parent.iterdir() if path.name.startswith(_stem(target)))
    return []


def _stem(target: Path) -> str:
    return f".{target.name}.lora_lab"


class StagedFolder:
    """A folder in the making; use as a context manager, then :meth:`commit`.

    Parameters
    ----------
    target : the name to appear
    plan_id : identity of what is being made: a resumed run with another one starts anew
    overwrite : whether what is at `target` is replaced
    resume : whether the finished files of an interrupted run are kept
    is_resumable : whether whoever makes the folder can go on with it; else nothing of a failed run stays

    Raises
    ------
    OperationError
        `target` exists and may not be replaced, its parent is missing, another process writes it, or the disk says no.

    Notes
    -----
    Leaving the block by an error keeps what is finished and names it in the error's hint; by a cancellation, or with
    nothing finished, the staging folder goes.
    """

    def __init__(
        self,
        target: Path,
        plan_id: str,
        *,
        disk: Disk | None = None,
        overwrite: bool = False,
        resume: bool = False,
        is_resumable: bool = True,
    ) -> None:
        self.target = Path(os.path.abspath(target))  # noqa: PTH100 - the name as given, not where a link leads
        self._disk = disk or Disk()
        self._is_overwriting = overwrite
        self._is_resuming = resume
        self._is_resumable = is_resumable
        stem = _stem(self.target)
        self.folder = self.target.with_name(f"{stem}-{plan_id[:_ID_CHARACTERS]}")
        self._journal = self.folder.with_name(f"{self.folder.name}.journal")
        self._lock_path = self.target.with_name(f"{stem}.lock")
        self._lock = -1
        self._is_committed = False
        self._finished: dict[str, Finished] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="arriving")
        self._behind: Future[None] | None = None  # the file before the one that is written
        self._unwanted = threading.Event()

    def __enter__(self) -> Self:
        if not self.target.parent.is_dir():
            raise OperationError(
                f"The folder {quoted(self.target.parent)} is not there.", hint="Make it, or choose another place."
            )
        with explained(self.target):
            self._lock = self._locked()
            try:
                self._recover()
                if not self._is_committed:
                    self._require_free()
                    self._begin()
            except BaseException:
                self._unlock()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if isinstance(error, CancelledError | KeyboardInterrupt):
                self._unwanted.set()
            self._pool.shutdown(wait=True)
            if kind is not None and not self._is_committed:
                self._give_up(error)
        finally:
            self._unlock()

    @property
    def is_complete(self) -> bool:
        """Whether an earlier run of the same plan had already been given its name."""
        return self._is_committed

    @property
    def finished(self) -> dict[str, Finished]:
        """The files that are complete, by name; waits for the last of them, and raises what went wrong with it."""
        self.settle()
        return self._finished

    @contextmanager
    def file(self, name: str, size_bytes: int) -> Iterator[StagedFile]:
        """Write the file called `name` of `size_bytes`.

        When the block ends it is complete; it is synced, read back and named while the next one is written.

        Raises
        ------
        OperationError
            the disk says no, to this file or the one before it, or another number of bytes was written.
        """
        place = self.folder / name
        part = place.with_name(f"{place.name}.part")
        with explained(place):
            self._make_parents(place)
            self._disk.remove(part)
            descriptor = self._disk.create(part)
            read_back = ReadBack(self._disk, descriptor, self._pool, self._unwanted)
            staged = StagedFile(self._disk, descriptor, read_back)
            try:
                self._disk.reserve(descriptor, size_bytes)
                yield staged
                digest = staged.finish()
                if staged.size_bytes != size_bytes:
                    raise OperationError(
                        f"{quoted(place)} got {staged.size_bytes} bytes, expected {size_bytes}.",
                        hint="This is a fault of lora-lab.",
                    )
                self.settle()
            except BaseException as error:
                if isinstance(error, CancelledError | KeyboardInterrupt):
                    self._unwanted.set()
                read_back.give_up()
                self._disk.close(descriptor)
                raise
            finally:
                staged.close()
        whole = Finished(name, digest, size_bytes)
        self._behind = self._pool.submit(self._arrive, read_back, descriptor, part, place, whole)

    def settle(self) -> None:
        """Wait for the file behind; what went wrong with it is raised as often as it is asked for."""
        if self._behind is not None:
            self._behind.result()

    def commit(self) -> None:
        """Give the folder its name, and let go of what had it."""
        self.settle()
        with explained(self.target):
            self._disk.sync_folder(self.folder)
            self._note({_COMMITTING: self._identity(self.folder)})
            if self._is_overwriting and os.path.lexists(self.target):
                self._replace()
            else:
                self._disk.rename_new(self.folder, self.target)
            self._disk.sync_folder(self.target.parent)
            self._is_committed = True
            self._disk.remove(self._journal)

    # The parts.

    def _arrive(self, read_back: ReadBack, descriptor: int, part: Path, place: Path, whole: Finished) -> None:
        """Make sure that a file is on the disk, give it its name and note it."""
        with explained(place):
            try:
                read_back.require(place, whole.sha256)
            finally:
                self._disk.close(descriptor)
            self._disk.rename(part, place)
            self._disk.sync_folder(place.parent)
            self._note(whole._asdict())
        self._finished[whole.name] = whole

    def _replace(self) -> None:
        if self._disk.exchange(self.folder, self.target):
            self._disk.sync_folder(self.target.parent)
            self._disk.remove_tree(self.folder)
            return
        old = self.folder.with_name(f"{self.folder.name}.old")
        self._disk.rename_new(self.target, old)
        self._disk.rename_new(self.folder, self.target)
        self._disk.sync_folder(self.target.parent)
        self._disk.remove_tree(old)

    def _recover(self) -> None:
        """Bring a commit that was interrupted to its end."""
        noted = [line[_COMMITTING] for line in self._journal_lines() if _COMMITTING in line]
        committing = noted[-1] if noted else None
        if committing is None:
            return
        old = self.folder.with_name(f"{self.folder.name}.old")
        if not os.path.lexists(self.target) and self.folder.exists():
            self._disk.rename_new(self.folder, self.target)
        if os.path.lexists(self.target) and self._identity(self.target) == committing:
            self._disk.sync_folder(self.target.parent)
            for left in (self.folder, old):
                if left.exists():
                    self._disk.remove_tree(left)
            self._disk.remove(self._journal)
            self._is_committed = True

    def _identity(self, folder: Path) -> list[int]:
        status = folder.stat()
        return [status.st_dev, status.st_ino]

    def _require_free(self) -> None:
        if os.path.lexists(self.target) and not self._is_overwriting:
            raise OperationError(
                f"{quoted(self.target)} exists already.", hint="Choose another name, or pass --overwrite."
            )

    def _begin(self) -> None:
        if self._is_resuming and self.folder.is_dir():
            self._keep_finished()
            return
        if os.path.lexists(self.folder):
            self._disk.remove_tree(self.folder)
        self._disk.remove(self._journal)
        self._disk.make_folder(self.folder)
        try:
            self._disk.sync_folder(self.folder.parent)
        except OSError:
            with suppress(OSError):
                self._disk.remove_tree(self.folder)
            raise

    def _keep_finished(self) -> None:
        """Files of the journal whose bytes are still those it says."""
        for line in self._journal_lines():
            with suppress(KeyError, TypeError, ValueError):
                found = Finished(str(line["name"]), str(line["sha256"]), int(line["size_bytes"]))
                place = self.folder / found.name
                if place.is_file() and place.stat().st_size == found.size_bytes and sha256_of(place) == found.sha256:
                    self._finished[found.name] = found

    def _journal_lines(self) -> list[dict[str, Any]]:
        """What was noted; a last line that was torn is not."""
        try:
            text = self._journal.read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        lines = []
        for line in text.splitlines():
            with suppress(ValueError):
                document = json.loads(line)
                if isinstance(document, dict):
                    lines.append(document)
        return lines

    def _note(self, line: dict[str, Any]) -> None:
        descriptor = self._disk.append_to(self._journal)
        try:
            self._disk.append(descriptor, f"\n{json.dumps(line)}\n".encode())
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)

    def _make_parents(self, place: Path) -> None:
        missing = []
        folder = place.parent
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            self._disk.make_folder(folder)
            self._disk.sync_folder(folder.parent)

    def _give_up(self, error: BaseException | None) -> None:
        if self._is_resumable and self._finished and not isinstance(error, CancelledError | KeyboardInterrupt):
            if isinstance(error, OperationError):
                kept = f"{len(self._finished)} finished files are kept in {quoted(self.folder)}; --resume goes on."
                error.hint = f"{error.hint} {kept}".strip()
            return
        with suppress(OSError):
            self._disk.remove_tree(self.folder)
        with suppress(OSError):
            self._disk.remove(self._journal)

    def _locked(self) -> int:
        """The lock on the target, which ends with this process whatever happens to it."""
        while True:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise OperationError(
                    f"Another process is writing {quoted(self.target)}.", hint="Wait for it, or choose another name."
                ) from None
            with suppress(FileNotFoundError):
                if self._lock_path.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            os.close(descriptor)  # the holder before us took its file away in between

    def _unlock(self) -> None:
        if self._lock >= 0:
            with suppress(OSError):
                self._lock_path.unlink()
            os.close(self._lock)
            self._lock = -1
