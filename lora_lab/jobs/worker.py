"""The child process: one request a line on stdin, one event a line on stdout.

Request: ``{"id", "call", "arguments"}``. Events: ``{"id", "kind", …}`` with kind progress, rows, result or failed.
Whatever the work prints goes to stderr; the real stdout carries events alone.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

from lora_lab.domain.wire import report_to_wire
from lora_lab.errors import CancelledError, LoraLabError
from lora_lab.safetext import without_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lora_lab.session import Session

_EVENT_SECONDS: Final = 0.05
# The screen goes first: a computation that takes every core must not make a key wait.
_NICENESS: Final = 10


class Teller:
    """Writes events; also the Observer of the work at hand."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_progress = 0.0
        self._last_rows = 0.0
        self._waiting: dict[str, list[Mapping[str, Any]]] = {}  # rows by table
        self.job = 0
        self.is_stopping = False

    def begin(self, job: int) -> None:
        """Turn to another job."""
        self.job, self._last_progress, self._last_rows = job, 0.0, 0.0
        self._waiting.clear()

    def send(self, kind: str, **values: Any) -> None:
        """One event of the job at hand."""
        self._stream.write(json.dumps({"id": self.job, "kind": kind, **values}, separators=(",", ":")) + "\n")
        self._stream.flush()

    def advance(self, done: int, total: int, what: str = "") -> None:
        """At most twenty a second, and always the last."""
        now = time.monotonic()
        if done >= total or now - self._last_progress >= _EVENT_SECONDS:
            self._last_progress = now
            self.flush()
            self.send("progress", done=done, total=total, what=what)

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows that are ready, gathered into at most twenty events a second."""
        self._waiting.setdefault(table, []).extend(rows)
        now = time.monotonic()
        if now - self._last_rows >= _EVENT_SECONDS:
            self._last_rows = now
            self.flush()

    def flush(self) -> None:
        """Send the rows that wait."""
        waiting, self._waiting = self._waiting, {}
        for table, rows in waiting.items():
            self.send("rows", table=table, rows=[dict(row) for row in rows])

    def is_cancelled(self) -> bool:
        """Whether this process has been asked to end."""
        return self.is_stopping

    def stop(self, *_: object) -> None:
        """Ask the work at hand to end at the next unit; a second time, or without work, the process ends at once."""
        if self.is_stopping or not self.job:
            os._exit(0)
        self.is_stopping = True


def serve(session: Session, requests: Iterable[str], teller: Teller) -> None:
    """Do one request after another until there are no more."""
    for line in requests:
        request = json.loads(line)
        teller.begin(request["id"])
        try:
            report = getattr(session, request["call"])(**request["arguments"], observer=teller)
            teller.flush()
            teller.send("result", report=report_to_wire(report))
        except CancelledError:
            teller.send("cancelled")
            if teller.is_stopping:
                return
        except LoraLabError as error:
            teller.send("failed", error=error.message, hint=error.hint)
        except Exception as error:
            teller.send(
                "failed",
                error=without_tokens(f"{type(error).__name__}: {error}"),
                hint="This is a fault of lora-lab or a plugin.",
            )
        if teller.is_stopping:
            return
        teller.job = 0


def until_orphaned(stream: TextIO) -> Iterator[str]:
    """Yield the lines of `stream`; when it ends, so does this process, even in the middle of a computation.

    It ends when the application is gone, killed perhaps or its terminal closed: nobody waits for the result any more.
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    """Take the session's options from the command line, warm up, and serve."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogatepass")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if hasattr(os, "nice") and "measuring" not in sys.argv[2:]:
        os.nice(_NICENESS)
    from lora_lab.session import Session

    session = Session(**json.loads(sys.argv[1]))
    import torch  # noqa: F401 - so that the first job need not wait for it

    teller = Teller(events)
    signal.signal(signal.SIGTERM, teller.stop)
    serve(session, until_orphaned(sys.stdin), teller)
    os._exit(0)  # threads of numerical libraries need not be waited for


if __name__ == "__main__":
    main()
