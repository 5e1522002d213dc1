"""Ranges of a repository's files, from wherever the Hub keeps them.

For each file the Hub is asked once, with the token: it says commit, size, hash and a link to its storage. Ranges are
then asked of that link, over connections that are kept, and the token goes with them only where the link leads back to
the Hub itself. A server that sends anything but the range that was asked for is refused before its answer is read; a
connection that breaks is taken up again at the byte that was reached; a link that has expired is asked for again.

A range cannot be compared with the file's sha256: what is checked here is that the bytes are as many as they should be
and from the place that they should be from.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from lora_lab.domain.tensors import FileStamp
from lora_lab.errors import CancelledError, HubError, LoraLabError, quoted
from lora_lab.sources.connections import Connections
from lora_lab.sources.hub_refusals import is_transient, refusal_of, retry_after, status_of
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_lab.sources.hub_access import HubAccess

_TIMEOUT_SECONDS: Final = 20.0
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_EXPIRED: Final = frozenset({401, 403, 410})
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_MOST_REFUSALS: Final = 2  # of links that are fresh
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
CONNECT: Final = "Connect, or drop --offline and HF_HUB_OFFLINE, to fetch what is missing."
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository at one commit, as the Hub lists it.

    etag : sha256 of a large file, git's name of a small one
    """

    repository: str
    commit: str
    name: str  # from the top of the repository
    size_bytes: int
    etag: str

    @property
    def place(self) -> str:
        """What sentences and records call it."""
        return f"hf://{self.repository}@{self.commit}/{self.name}"

    @property
    def stamp(self) -> FileStamp:
        """The file as a tensor's reference knows it."""
        return FileStamp(self.place, self.size_bytes, etag=self.etag)


class Patience(NamedTuple):
    """How often, and after how long, something that failed is tried again.

    tries : in a row, without one more byte
    most : interruptions of one range, whatever comes between them
    first_seconds : before the second try; twice as long before each further one
    """

    tries: int = 5
    most: int = 40
    first_seconds: float = 0.5
    longest_seconds: float = 30.0


@dataclass
class Traffic:
    """What was asked and what came: requests for links, requests for ranges, bytes of bodies."""

    resolved: int = 0
    requests: int = 0
    bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, resolved: int = 0, requests: int = 0, bytes: int = 0) -> None:  # noqa: A002
        """Count."""
        with self._lock:
            self.resolved += resolved
            self.requests += requests
            self.bytes += bytes


class _AgainError(Exception):
    """Something that may pass: why, and how long the server asks to wait."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class RangeReader:
    """Reads ranges of files of one Hub; its methods may be called from several threads.

    Parameters
    ----------
    access : which Hub, with which token, and whether at all
    """

    def __init__(self, access: HubAccess, *, patience: Patience | None = None) -> None:
        self._access = access
        self._endpoint = access.endpoint
        self._token = access.known_token() if access.token is None else None
        self._patience = patience or Patience()
        self._links: dict[str, str] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._connections = Connections()
        self.traffic = Traffic()

    @property
    def is_offline(self) -> bool:
        """Whether nobody may be asked."""
        return self._access.is_offline

    def read(
        self,
        file: RemoteFile,
        begin: int,
        end: int,
        take: Callable[[int, bytes], object],
        stop: threading.Event | None = None,
    ) -> None:
        """Read the bytes from `begin` to before `end`.

        Parameters
        ----------
        take : given each piece, in order, and where in the file it begins; no piece is given twice
        stop : ends the reading from outside, between two pieces; :meth:`interrupt` ends a wait for one

        Raises
        ------
        HubError
            the server sends something else, says no, or cannot be reached after several tries.
        CancelledError
            `stop` was set.
        """
        if self.is_offline:
            raise HubError(f"{quoted(file.place)} is not whole in the cache, and the Hub was not asked.", hint=CONNECT)
        stop = stop or threading.Event()
        position, in_a_row, in_all, refusals = begin, 0, 0, 0
        while position < end:
            before = position
            try:
                for piece in self._pieces(file, position, end, stop):
                    if stop.is_set():
                        raise CancelledError("Cancelled.", hint="Nothing was changed.")
                    take(position, piece)
                    position += len(piece)
                if position >= end:
                    return
                again = _AgainError("the connection was cut")
            except _ExpiredError:
                refusals = 1 if position > before else refusals + 1
                if refusals > _MOST_REFUSALS:
                    raise HubError(
                        f"The storage refuses links to {quoted(file.place)} that the Hub has just made.",
                        hint="Look at this machine's clock, then try again.",
                    ) from None
                again = _AgainError("the link had expired", 0.0)
            except _AgainError as error:
                again = error
            except LoraLabError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # of the disk that takes the pieces
                if not is_transient(error):
                    raise refusal_of(error, file.place, self._access) from None
                again = _AgainError("the connection broke off")
            in_a_row = 1 if position > before else in_a_row + 1
            in_all += 1
            self._wait(file, again, in_a_row, in_all, stop)

    def interrupt(self) -> None:
        """Break every connection that is being read from, or on which a range's first byte is waited for.

        The question where a file is goes over connections that the client library keeps to itself: whoever waits for
        that answer ends after the time limit. It does so on a thread that is a daemon and holds no process back.
        """
        self._connections.break_off()

    def _wait(self, file: RemoteFile, again: _AgainError, in_a_row: int, in_all: int, stop: threading.Event) -> None:
        """Wait before another try, or say that there is none."""
        patience = self._patience
        if stop.is_set():
            raise CancelledError("Cancelled.", hint="Nothing was changed.")
        if in_a_row >= patience.tries or in_all >= patience.most:
            tries = f"{in_a_row} tries" if in_a_row >= patience.tries else f"{in_all} interruptions"
            raise HubError(
                f"A part of {quoted(file.place)} could not be fetched, after {tries}: {again}.",
                hint="Look at the network, then try again.",
            )
        seconds = again.seconds
        if seconds is None:
            seconds = patience.first_seconds * 2 ** (in_a_row - 1)
        if stop.wait(min(seconds, patience.longest_seconds)):
            raise CancelledError("Cancelled.", hint="Nothing was changed.")

    def _pieces(self, file: RemoteFile, begin: int, end: int, stop: threading.Event) -> Iterator[bytes]:
        """Yield what comes of one request, once it is known to be what was asked for."""
        link = self._link(file)
        left = end - begin
        with self._answer(link, {"Range": f"bytes={begin}-{end - 1}"}, stop) as response:
            self._require_range(response, file, link, begin, end)
            for piece in response.iter_raw():
                left -= len(piece)
                if left < 0:
                    raise HubError(
                        f"The server sent more of {quoted(file.place)} than the {end - begin} bytes asked for."
                    )
                self.traffic.add(bytes=len(piece))
                yield piece

    @contextmanager
    def _answer(self, link: str, more: dict[str, str], stop: threading.Event) -> Iterator[Any]:
        from huggingface_hub import get_session

        headers = {"User-Agent": f"lora-lab/{__version__}", "Accept-Encoding": "identity", **more}
        if self._token and _origin(link) == _origin(self._endpoint):
            headers["Authorization"] = f"Bearer {self._token}"
        self.traffic.add(requests=1)
        with (
            self._connections.asking(stop) as (trace, answered),
            get_session().stream(
                "GET",
                link,
                headers=headers,
                timeout=_TIMEOUT_SECONDS,
                follow_redirects=False,
                extensions={"trace": trace},
            ) as response,
        ):
            answered(response)
            yield response

    def _require_range(self, response: Any, file: RemoteFile, link: str, begin: int, end: int) -> None:
        """Go on only with exactly the range that was asked for."""
        status = response.status_code
        asked = f"bytes {begin}-{end - 1}/{file.size_bytes}"
        if status == 206:
            told = " ".join(response.headers.get("content-range", "").split())
            length = response.headers.get("content-length", str(end - begin))
            encoding = response.headers.get("content-encoding", "identity")
            if told in (asked, f"bytes {begin}-{end - 1}/*") and length == str(end - begin) and encoding == "identity":
                return
            got = f"{quoted(told or 'no range')}, {quoted(length)} bytes, {quoted(encoding)}"
            raise HubError(
                f"The server answered for a part of {quoted(file.place)} with {got}, expected {quoted(asked)}.",
                hint=_whole(file),
            )
        if status == 200:
            raise HubError(
                f"The server answered for a part of {quoted(file.place)} with the whole file: it does not give parts.",
                hint=_whole(file),
            )
        if status in _MOVED and response.headers.get("location"):
            with self._lock:
                self._links[file.place] = _sound(urljoin(link, response.headers["location"]), self._endpoint, file)
            raise _AgainError("the link leads on and on", 0.0)
        if status in _EXPIRED:
            self._forget(file, link)
            raise _ExpiredError
        if status in _PASSING:
            raise _AgainError(f"the server answers {status}", _seconds(response.headers.get("retry-after")))
        raise HubError(
            f"The server answered for a part of {quoted(file.place)} with status {status}.", hint="Try again later."
        )

    def _link(self, file: RemoteFile) -> str:
        """Where the bytes of `file` are; asked for once, whatever the number of threads that want it."""
        with self._lock:
            lock = self._locks.setdefault(file.place, threading.Lock())
        with lock:
            known = self._links.get(file.place)
            if known is None:
                known = self._links[file.place] = self._resolved(file)
            return known

    def _forget(self, file: RemoteFile, link: str) -> None:
        with self._lock:
            if self._links.get(file.place) == link:  # another thread may have a fresh one already
                del self._links[file.place]

    def _resolved(self, file: RemoteFile) -> str:
        """Ask the Hub where `file` is, and see that it is still the one that was listed."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(file.repository, file.name, revision=file.commit, endpoint=self._endpoint)
        self.traffic.add(resolved=1)
        try:
            found = get_hf_file_metadata(
                url,
                token=self._access.token,
                timeout=_TIMEOUT_SECONDS,
                endpoint=self._endpoint,
                library_name="lora-lab",
                library_version=__version__,
            )
        except Exception as error:
            if is_transient(error):
                status = status_of(error)
                reason = "the Hub does not answer" if status is None else f"the Hub answers {status}"
                raise _AgainError(reason, retry_after(error)) from None
            raise refusal_of(error, file.place, self._access) from None
        same = (
            found.commit_hash in (None, file.commit)
            and found.size in (None, file.size_bytes)
            and (found.etag is None or len(found.etag) != len(file.etag) or found.etag == file.etag)
        )
        if not same:
            raise HubError(f"{quoted(file.place)} is another file than the one listed.", hint="Try again.")
        return _sound(urljoin(url, found.location), self._endpoint, file)


class _ExpiredError(Exception):
    """A link is no longer taken."""


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def _sound(link: str, endpoint: str, file: RemoteFile) -> str:
    """`link`, unless anybody between here and there could change what comes of it."""
    scheme, host, _ = _origin(link)
    if scheme == "https" or (scheme == "http" and (host in _LOOPBACK or urlsplit(endpoint).scheme == "http")):
        return link
    raise HubError(
        f"The Hub leads to {quoted(f'{scheme}://{host}')} for {quoted(file.place)}, expected a link of https."
    )


def _seconds(told: str | None) -> float | None:
    """What a server asks to wait; None where it does not say, or not in seconds."""
    return float(told) if told and told.strip().isdigit() else None


def _whole(file: RemoteFile) -> str:
    return f"Fetch all of it: lora-lab pull {file.repository}@{file.commit}"
