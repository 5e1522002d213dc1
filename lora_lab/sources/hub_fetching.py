"""Files of a commit into the cache, several at once, each checked against the hash that the Hub lists.

The bytes come by the Hub's own client, over Xet's storage or plain links, and lie where its other users look for them.
Added is what it leaves to its callers: that they are the right ones (it compares sizes), that a failure of a moment is
tried again, that a person sees one count and can stop it at once.
"""

from __future__ import annotations

import atexit
import hashlib
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import CancelledError, HubError, OperationError, quoted
from lora_lab.sources import hub_cache
from lora_lab.sources.hub_access import quiet_client
from lora_lab.sources.hub_refusals import is_worth_a_retry, persistently, refusal_of
from lora_lab.storage.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.domain.progress import Observer
    from lora_lab.sources.hub_access import HubAccess
    from lora_lab.sources.hub_listing import ListedFile, Listing

_TOGETHER: Final = 8
_POLL_SECONDS: Final = 0.03
_GRACE_SECONDS: Final = 0.3  # for a download to notice that it is not wanted any more
_ABORT_SECONDS: Final = 2.0
_SPARE_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file that is in the cache, with the bytes that the Hub lists."""

    file: ListedFile
    path: Path
    was_there: bool


class Fetching:
    """One run of downloads.

    Parameters
    ----------
    listing : names the repository and the commit
    locator : as the person typed it
    observer : told of bytes, of all files together
    digest : sha256 of a file; one that remembers files which have not changed
    is_checking_all : hash what was there before too, not only what arrives
    """

    def __init__(
        self,
        listing: Listing,
        locator: str,
        access: HubAccess,
        observer: Observer,
        *,
        digest: Callable[[Path], str] = sha256_of,
        is_checking_all: bool = False,
    ) -> None:
        self._listing, self._locator, self._access = listing, locator, access
        self._observer, self._digest, self._is_checking_all = observer, digest, is_checking_all
        self._stopped = threading.Event()
        self._waiting: deque[ListedFile] = deque()
        self._counts: dict[str, int] = {}  # bytes of each file that have come
        self._started: dict[str, set[Path]] = {}  # by etag, what was unfinished before
        self._arrived: dict[str, Arrived] = {}
        self._error: BaseException | None = None
        self._what = ""

    def run(self, files: Sequence[ListedFile]) -> tuple[Arrived, ...]:
        """Fetch what is not there; returns all of `files`.

        Raises
        ------
        HubError
            the Hub said no, or sent other bytes than it lists, twice.
        OperationError
            the disk is full or may not be written, or the observer cancelled.
        """
        stop_if_cancelled(self._observer)
        there = hub_cache.cached_files(self._listing.repository, self._listing.commit)
        for file in files:
            path = there.get(file.name)
            if path is not None and self._is_sound(file, path):
                self._arrived[file.name] = Arrived(file, path, was_there=True)
            else:
                self._waiting.append(file)
        if self._waiting:
            self._require_online()
            total = sum(file.size_bytes for file in self._waiting)
            self._require_room(total)
            with quiet_client():
                self._watch([self._start() for _ in range(min(_TOGETHER, len(self._waiting)))], total)
        return tuple(self._arrived[file.name] for file in files)

    def _is_sound(self, file: ListedFile, path: Path) -> bool:
        """Whether a file that is there needs no fetching; one with other bytes is removed."""
        if path.stat().st_size == file.size_bytes and (not self._is_checking_all or self._has_hash(file, path)):
            return True
        if self._access.is_offline:
            raise HubError(
                f"{quoted(file.name)} of {quoted(self._locator)} has other bytes in the cache than the Hub lists.",
                hint="Connect, so that it is fetched anew.",
            )
        hub_cache.forget(path)
        return False

    def _require_online(self) -> None:
        if not self._access.is_offline:
            return
        names = ", ".join(quoted(file.name) for file in list(self._waiting)[:3])
        more = f" and {len(self._waiting) - 3} more" if len(self._waiting) > 3 else ""
        raise HubError(
            f"The cache lacks {names}{more} of {quoted(self._locator)}, and the Hub was not asked.",
            hint="Connect, or drop --offline and HF_HUB_OFFLINE, to fetch what is missing.",
        )

    def _require_room(self, needed_bytes: int) -> None:
        free = hub_cache.free_bytes()
        if needed_bytes + _SPARE_BYTES > free:
            raise OperationError(
                f"{quoted(self._locator)} needs {needed_bytes} bytes in {quoted(hub_cache.cache_root())}, "
                f"where {free} are free.",
                hint="Free some space, or set HF_HOME to another disk.",
            )

    # The thread that called

    def _start(self) -> threading.Thread:
        # Not of a pool, whose threads the interpreter would wait for at its end.
        thread = threading.Thread(target=self._work, name="fetching", daemon=True)
        thread.start()
        return thread

    def _watch(self, threads: list[threading.Thread], total: int) -> None:
        """Tell of progress until all is there; stop the others when one fails or the person says so."""
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(_POLL_SECONDS)
                self._observer.advance(min(sum(self._counts.values()), total), total, self._what)
                stop_if_cancelled(self._observer)
                if self._error is not None:
                    raise self._error
            if self._error is not None:
                raise self._error
            self._observer.advance(total, total, self._what)
        except BaseException:
            self._abandon(threads)
            raise

    def _abandon(self, threads: list[threading.Thread]) -> None:
        """Let nothing go on that is not wanted any more, and nothing half-made lie about."""
        self._stopped.set()
        end = time.monotonic() + _GRACE_SECONDS
        # Ending Xet's client holds the interpreter for a second or two, and it must be ended before the interpreter
        # is: a command leaves before either, without ending the interpreter.
        if "hf_xet" in sys.modules:
            later = threading.Timer(_ABORT_SECONDS, _abort_storage)
            later.daemon = True
            later.start()
            atexit.register(_abort_storage)
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0.0))
        for etag, before in list(self._started.items()):
            # What waits for the network does not come back to clear up after itself.
            hub_cache.remove_unfinished(hub_cache.unfinished(self._listing.repository, etag) - before)

    # The threads that fetch

    def _work(self) -> None:
        while self._error is None and not self._stopped.is_set():
            try:
                file = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._arrived[file.name] = self._fetched(file)
            except BaseException as error:
                if not self._stopped.is_set() and self._error is None:
                    refusal = refusal_of(error, self._locator, self._access, doing=f"be fetched ({file.name})")
                    self._error = refusal
                return

    def _fetched(self, file: ListedFile) -> Arrived:
        for is_second in (False, True):
            path = persistently(
                lambda: self._download(file), is_cancelled=self._stopped.is_set, retried=is_worth_a_retry
            )
            self._what = f"checking {file.name}"
            if path.stat().st_size == file.size_bytes and self._has_hash(file, path):
                return Arrived(file, path, was_there=False)
            hub_cache.forget(path)
            if is_second:
                break
        raise HubError(
            f"{quoted(file.name)} of {quoted(self._locator)} arrived twice with other bytes than the Hub lists.",
            hint="Nothing of it was kept. Try another network, or HF_HUB_DISABLE_XET=1; tell the repository's owner.",
        )

    def _download(self, file: ListedFile) -> Path:
        from huggingface_hub import hf_hub_download

        if self._stopped.is_set():
            raise CancelledError("Cancelled.")
        self._counts[file.name] = 0
        self._what = file.name
        etag = file.etag or file.name
        self._started[etag] = hub_cache.unfinished(self._listing.repository, etag)
        try:
            path = hf_hub_download(
                self._listing.repository,
                file.name,
                revision=self._listing.commit,
                endpoint=self._access.endpoint,
                token=self._access.token,
                library_name="lora-lab",
                tqdm_class=self._counter(file),
            )
        finally:
            self._started.pop(etag, None)
        self._counts[file.name] = file.size_bytes
        return Path(path)

    def _has_hash(self, file: ListedFile, path: Path) -> bool:
        """Whether the bytes are those that the Hub lists: by sha256 of large files, by git's name of small ones."""
        if file.sha256 is not None:
            return self._digest(path) == file.sha256
        if file.blob is None:
            return True
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest() == file.blob

    def _counter(self, file: ListedFile) -> Any:
        """What the client takes for a progress bar: counts bytes of `file` that are written, and ends it when asked."""
        run = self

        class Counter:
            total: int | None = None

            def __init__(self, *_: object, **settings: Any) -> None:
                self._thread = threading.get_ident()
                self.update(settings.get("initial") or 0)

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                """Nothing was drawn."""

            def update(self, count: float | None = 1) -> None:
                # Xet's client counts from a thread of its own, which cannot be ended by raising in it.
                if run._stopped.is_set() and threading.get_ident() == self._thread:
                    raise CancelledError("Cancelled.")
                run._counts[file.name] += int(count or 0)

            def update_transfer(self, count: float | None = 1) -> None:
                """Bytes on the wire are not counted beside those that are written."""

            def __getattr__(self, name: str) -> Any:
                return lambda *_, **__: None

        return Counter


def _abort_storage() -> None:
    """End what Xet's client is doing, which runs in threads of its own and asks nobody."""
    with suppress(ImportError):  # a version of the client that does it otherwise
        from huggingface_hub.utils._xet import abort_xet_session

        abort_xet_session()  # type: ignore[no-untyped-call]
