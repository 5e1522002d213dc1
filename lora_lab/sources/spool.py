"""Tensors of remote files, fetched into temporary files shortly before they are read.

An analysis tells ahead which tensors it will read. A few threads fetch their ranges (:mod:`lora_lab.sources.runs`) in
the order of need, each into a file without a name that vanishes with this process, and whoever holds a tensor reads it
there as often as it likes, by rows or whole. What was read makes room for what comes; fetching stops when
what waits to be read fills the limit. So memory is that of a few pieces on their way, and disk that of the limit and of
what is held at the moment.

A tensor that nobody told of is fetched when it is held, and one that was let go and is held again is fetched again.
What is there at the end may be kept for the next spool (:mod:`lora_lab.sources.kept`), which begins with what it reads.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import count
from typing import IO, TYPE_CHECKING, Final, Self

from lora_lab.errors import CancelledError, HubError, LoraLabError, OperationError, quoted
from lora_lab.sources.runs import RangeKey, Run, coalesced
from lora_lab.storage.holding import Held, LocalFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from lora_lab.domain.progress import Observer
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.sources.kept import Kept
    from lora_lab.sources.ranges import RangeReader, RemoteFile

_CONNECTIONS: Final = 6
_LIMIT_BYTES: Final = 2 << 30
_MOST_RUNS: Final = 96  # open files
_LOOK_SECONDS: Final = 0.1
_LEAVE_SECONDS: Final = 0.3


class _State(Enum):
    WAITING = auto()
    COMING = auto()
    THERE = auto()
    FAILED = auto()


@dataclass(eq=False)
class _Entry:
    """A run on its way, or there."""

    run: Run
    place: int  # in the order of need
    left: Counter[RangeKey]  # how often its tensors are still to be read, as far as was told
    state: _State = _State.WAITING
    file: IO[bytes] | None = None
    is_counted: bool = False  # among what is on the disk
    users: int = 0
    used: int = 0  # when it was last let go
    error: LoraLabError | None = None

    @property
    def is_spent(self) -> bool:
        """Whether nobody will read it, as far as was told."""
        return not self.users and not +self.left

    @property
    def order_of_leaving(self) -> tuple[bool, int]:
        """What was read goes first, and of it what was read longest ago; then what will be needed last."""
        return (not self.is_spent, self.used if self.is_spent else -self.place)


@dataclass
class _Disk:
    """What is on it now, and at most was."""

    runs: int = 0
    bytes: int = 0
    peak_bytes: int = 0
    clock: int = 0


class Spool:
    """The tensors of some remote files, for the length of a ``with`` block; local ones pass through.

    Parameters
    ----------
    files : path of a stamp to the file and the reader of its Hub
    ahead : tensors that will be held, in order, once for each time; those of local files are passed over
    observer : asked whether to go on, while somebody waits
    folder : where the temporary files are made; None is the system's own place
    limit_bytes : of all temporary files, beyond what is held at one moment
    kept : what the spool before left, and where this one leaves what is there at its end; None keeps nothing
    """

    def __init__(
        self,
        files: Mapping[str, tuple[RemoteFile, RangeReader]],
        ahead: Sequence[TensorRef],
        observer: Observer,
        *,
        folder: Path | None = None,
        limit_bytes: int = _LIMIT_BYTES,
        connections: int = _CONNECTIONS,
        kept: Kept | None = None,
    ) -> None:
        self._files = files
        self._observer = observer
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._connections = connections
        self._kept = kept
        self._local = LocalFiles()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._entries: dict[RangeKey, _Entry] = {}
        self._there: set[_Entry] = set()
        self._demanded: deque[_Entry] = deque()
        self._ahead: deque[_Entry] = deque()
        self._disk = _Disk()
        self._places = count()
        self.fetched_bytes = 0
        wanted = [ref for ref in ahead if ref.file.is_remote]
        counts = Counter(map(_key, wanted))
        for run in coalesced(wanted):
            told = Counter({_key(ref): counts[_key(ref)] for ref in run.refs})
            self._ahead.append(self._entered(run, told))
        self._begin_with_kept()
        self.expected_bytes = sum(entry.run.size_bytes for entry in self._ahead if entry.state is _State.WAITING)

    @property
    def peak_bytes(self) -> int:
        """Most bytes that lay in temporary files at one time."""
        return self._disk.peak_bytes

    def __enter__(self) -> Self:
        if self._ahead:
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop fetching, without waiting for a slow server, and let the temporary files go."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        for reader in {id(reader): reader for _, reader in self._files.values()}.values():
            reader.interrupt()
        end = time.monotonic() + _LEAVE_SECONDS
        for thread in self._threads:  # one that waits for the Hub to say where a file is ends by itself, later
            thread.join(max(end - time.monotonic(), 0.0))
        with self._changed:
            for entry in set(self._entries.values()):
                if entry.state is _State.THERE and entry.file is not None and self._kept is not None:
                    self._kept.keep(entry.run, entry.file)
                    entry.file = None
                if entry.state is not _State.COMING:  # its thread lets it go
                    self._drop(entry)

    @contextmanager
    def hold(self, ref: TensorRef) -> Iterator[Held]:
        """Wait until the tensor is on this machine, and keep it there for the length of the block.

        Raises
        ------
        HubError
            it could not be fetched.
        OperationError
            the disk has no room for it.
        CancelledError
            the observer asked to stop.
        """
        if not ref.file.is_remote:
            with self._local.hold(ref) as held:
                yield held
            return
        if not ref.size_bytes:
            yield Held(-1, ref)  # nothing is read of it
            return
        entry = self._wait_for(ref)
        try:
            begin = ref.begin_bytes - entry.run.begin_bytes
            assert entry.file is not None
            yield Held(entry.file.fileno(), replace(ref, begin_bytes=begin, end_bytes=begin + ref.size_bytes))
        finally:
            self._let_go(entry, _key(ref))

    def _begin_with_kept(self) -> None:
        """Have what is kept of what will be read; half of the room stays free, so that fetching goes on beside it."""
        if self._kept is None:
            return
        taken = self._kept.take([entry.run for entry in self._ahead], self._limit_bytes // 2)
        for entry in self._ahead:
            entry.file = taken.get(entry.run.key)
            if entry.file is not None:
                self._begun(entry)
                entry.state = _State.THERE
                self._there.add(entry)

    # Whoever reads

    def _wait_for(self, ref: TensorRef) -> _Entry:
        with self._changed:
            entry = self._entries.get(_key(ref))
            if entry is None:
                entry = self._entered(Run(ref.file, ref.begin_bytes, ref.end_bytes, (ref,)), Counter())
            entry.users += 1
            if entry.state is _State.WAITING and entry not in self._demanded:
                self._demanded.append(entry)
                self._start()
                self._changed.notify_all()
            try:
                while entry.state in (_State.WAITING, _State.COMING):
                    if self._observer.is_cancelled() or self._stop.is_set():
                        raise CancelledError("Cancelled.", hint="Nothing was changed.")
                    self._changed.wait(_LOOK_SECONDS)
                if entry.error is not None:
                    raise type(entry.error)(entry.error.message, hint=entry.error.hint)
            except BaseException:
                entry.users -= 1
                if entry.state is _State.FAILED and not entry.users:
                    self._drop(entry)  # whoever asks anew gets another try
                raise
            return entry

    def _let_go(self, entry: _Entry, key: RangeKey) -> None:
        with self._changed:
            entry.users -= 1
            entry.left[key] -= 1
            self._disk.clock += 1
            entry.used = self._disk.clock
            self._changed.notify_all()

    # Whoever fetches

    def _start(self) -> None:
        """Have as many threads as there may be connections, or ranges to fetch."""
        if self._stop.is_set():
            return
        wanted = min(self._connections, len(self._demanded) + len(self._ahead))
        while len(self._threads) < wanted:
            thread = threading.Thread(target=self._work, name=f"fetching-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            error: LoraLabError | None = None
            try:
                self._fetch(entry)
            except LoraLabError as said:
                error = said
            except OSError as fault:
                reason = (fault.strerror or type(fault).__name__).lower()
                error = OperationError(
                    f"There is no place for a part of {quoted(entry.run.file.path)}: {reason}.",
                    hint="Make room in the cache folder; LORA_LAB_CACHE_DIR moves it.",
                )
            except Exception as fault:
                error = HubError(
                    f"A part of {quoted(entry.run.file.path)} could not be fetched: {type(fault).__name__}."
                )
            with self._changed:
                entry.error = error
                entry.state = _State.FAILED if error else _State.THERE
                if error:
                    self._forget(entry)
                else:
                    self._there.add(entry)
                if self._stop.is_set():
                    self._drop(entry)
                self._changed.notify_all()

    def _fetch(self, entry: _Entry) -> None:
        run = entry.run
        file, reader = self._files[run.file.path]
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry.file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed when it makes room
        descriptor = entry.file.fileno()

        def take(position: int, piece: bytes) -> None:
            view = memoryview(piece)
            offset = position - run.begin_bytes
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
            with self._changed:
                self.fetched_bytes += len(piece)

        reader.read(file, run.begin_bytes, run.end_bytes, take, self._stop)

    def _next(self) -> _Entry | None:
        """The range to fetch now, once there is one and room for it; None when all is over."""
        with self._changed:
            while not self._stop.is_set():
                while self._demanded and self._demanded[0].state is not _State.WAITING:
                    self._demanded.popleft()
                while self._ahead and self._ahead[0].state is not _State.WAITING:
                    self._ahead.popleft()
                if self._demanded:
                    entry = self._demanded.popleft()
                    self._make_room(entry.run.size_bytes, of_unread=True)
                    return self._begun(entry)
                if self._ahead and self._make_room(self._ahead[0].run.size_bytes, of_unread=False):
                    return self._begun(self._ahead.popleft())
                self._changed.wait()
            return None

    def _begun(self, entry: _Entry) -> _Entry:
        entry.state, entry.is_counted = _State.COMING, True
        self._disk.runs += 1
        self._disk.bytes += entry.run.size_bytes
        self._disk.peak_bytes = max(self._disk.peak_bytes, self._disk.bytes)
        return entry

    def _make_room(self, size_bytes: int, *, of_unread: bool) -> bool:
        """Let go what was read, and for somebody who waits also what was not; whether `size_bytes` more have room."""

        def is_room() -> bool:
            disk = self._disk
            return not disk.runs or (disk.bytes + size_bytes <= self._limit_bytes and disk.runs < _MOST_RUNS)

        if is_room():
            return True
        idle = [entry for entry in self._there if not entry.users]
        for entry in sorted(idle, key=lambda entry: entry.order_of_leaving):
            if is_room() or not (entry.is_spent or of_unread):
                break
            self._drop(entry)
        return is_room()

    # What is there

    def _entered(self, run: Run, left: Counter[RangeKey]) -> _Entry:
        entry = _Entry(run, next(self._places), left)
        for ref in run.refs:
            self._entries[_key(ref)] = entry
        return entry

    def _drop(self, entry: _Entry) -> None:
        """Forget an entry; its tensors, held again, are fetched again."""
        for ref in entry.run.refs:
            if self._entries.get(_key(ref)) is entry:
                del self._entries[_key(ref)]
        self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        """Give back the disk that an entry takes."""
        self._there.discard(entry)
        if entry.file is not None:
            entry.file.close()
            entry.file = None
        if entry.is_counted:
            entry.is_counted = False
            self._disk.runs -= 1
            self._disk.bytes -= entry.run.size_bytes


def has_room_for(refs: Sequence[TensorRef]) -> bool:
    """Whether a spool can hold all these tensors at once, so that none that is read again is fetched again."""
    runs = coalesced([ref for ref in refs if ref.file.is_remote])
    return len(runs) <= _MOST_RUNS and sum(run.size_bytes for run in runs) <= _LIMIT_BYTES


def _key(ref: TensorRef) -> RangeKey:
    return ref.file.path, ref.begin_bytes, ref.end_bytes
