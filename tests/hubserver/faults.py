"""What goes wrong on demand, and what was asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to the next `times` requests that match `pattern` ("METHOD /raw/path?query", a regex).

    status : answer with it instead, with `headers` and the text `body`
    delay_seconds : wait before answering
    cut_after : close the connection after so many bytes of the answer's body
    cut_upload_after : close the connection after so many bytes of the request's body
    lose_reply : do what was asked, then close the connection without a word
    flip_at : turn one bit of the byte at this place of the answer's body (of the file, not of the range)
    ignore_range : answer a range with 200 and everything
    content_range : lie about which range it is
    expire : hand out a link that has already expired
    replace : send these bytes as the body, under the headers of the right ones
    """

    pattern: str
    origin: str = ""  # hub, storage, or either
    times: int = 1
    skip: int = 0  # leave so many matching requests alone first
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    delay_seconds: float = 0.0
    cut_after: int | None = None
    cut_upload_after: int | None = None
    lose_reply: bool = False
    flip_at: int | None = None
    ignore_range: bool = False
    content_range: str | None = None
    expire: bool = False
    replace: bytes | None = None
    hits: int = 0


@dataclass
class Exchange:
    """One request, as the server saw it."""

    origin: str
    method: str
    path: str  # raw, with the query
    host: str
    token: str | None  # None: the request carried no Authorization
    range: str | None
    user_agent: str
    status: int = 0
    received: int = 0  # bytes of the request's body
    sent: int = 0  # bytes of the answer's body

    @property
    def authorized(self) -> bool:
        """Whether an Authorization header was there."""
        return self.token is not None

    @property
    def line(self) -> str:
        """Method and path."""
        return f"{self.method} {self.path}"


class Faults:
    """The faults that are waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, pattern: str, **what: object) -> Fault:
        """Let something go wrong; see :class:`Fault`."""
        fault = Fault(pattern, **what)  # type: ignore[arg-type]
        with self._lock:
            self._waiting.append(fault)
        return fault

    def clear(self) -> None:
        """Let everything go well again."""
        with self._lock:
            self._waiting.clear()

    def take(self, exchange: Exchange) -> Fault | None:
        """Find the fault for this request, and count it."""
        with self._lock:
            for fault in self._waiting:
                if fault.origin not in ("", exchange.origin) or not re.search(fault.pattern, exchange.line):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.hits < fault.times:
                    fault.hits += 1
                    return fault
        return None


class Log:
    """Every request, in the order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[Exchange] = []

    def add(self, exchange: Exchange) -> None:
        """Note a request."""
        with self._lock:
            self._seen.append(exchange)

    def clear(self) -> None:
        """Forget what was seen."""
        with self._lock:
            self._seen.clear()

    def __iter__(self) -> Iterator[Exchange]:
        with self._lock:
            return iter(list(self._seen))

    def __len__(self) -> int:
        return len(self._seen)

    def matching(self, pattern: str = "", *, origin: str = "") -> list[Exchange]:
        """Requests whose "METHOD /path" the regex is found in."""
        return [seen for seen in self if origin in ("", seen.origin) and re.search(pattern, seen.line)]

    def sent(self, pattern: str = "", *, origin: str = "") -> int:
        """Bytes of bodies sent in answer to them."""
        return sum(seen.sent for seen in self.matching(pattern, origin=origin))

    def received(self, pattern: str = "", *, origin: str = "") -> int:
        """Bytes of bodies received with them."""
        return sum(seen.received for seen in self.matching(pattern, origin=origin))
