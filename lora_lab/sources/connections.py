"""Connections that can be broken from outside, also while nobody has answered on them yet."""

from __future__ import annotations

import socket
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from lora_lab.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Events of the client's trace, of which the first part says which protocol it is.
_MADE: Final = (".connect_tcp.complete", ".start_tls.complete")
_NEXT: Final = (".connect_tcp.started", ".send_request_headers.started", ".receive_response_headers.started")


class Connections:
    """The connections on which one reader asks; its methods may be called from several threads.

    The client keeps connections for the next request and says which one a request took with the answer alone. While an
    answer is waited for it is one of those that were seen when they were made, or with an earlier answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._answering: set[Any] = set()
        self._waiting = 0

    @contextmanager
    def asking(self, stop: threading.Event) -> Iterator[tuple[Callable[[str, Any], None], Callable[[Any], None]]]:
        """Count a request for the length of a ``with`` block.

        Yields
        ------
        the client's ``trace`` for the request, which ends it between two steps once `stop` is set; and what to call
        with the response when it begins
        """
        answer: list[Any] = []
        with self._lock:
            self._waiting += 1

        def trace(event: str, told: Any) -> None:
            if event.endswith(_MADE):
                with self._lock:
                    self._seen.add(told["return_value"])
            elif event.endswith(_NEXT) and stop.is_set():
                raise CancelledError("Cancelled.", hint="Nothing was changed.")

        def answered(response: Any) -> None:
            stream = response.extensions.get("network_stream")
            with self._lock:
                self._waiting -= 1
                answer.append(stream)
                if stream is not None:
                    self._seen.add(stream)
                    self._answering.add(stream)

        try:
            yield trace, answered
        finally:
            with self._lock:
                if answer:
                    self._answering.discard(answer[0])
                else:
                    self._waiting -= 1

    def break_off(self) -> None:
        """Break the connections that are being read from; where an answer is waited for, all that it may come on.

        Those that are idle then go too, and the client makes new ones when it needs them.
        """
        with self._lock:
            streams = set(self._seen) if self._waiting else set(self._answering)
        for stream in streams:
            with suppress(Exception):  # closed meanwhile, or without a socket of its own
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
