"""The child process: one request a line on stdin, one event a line on stdout.

Request: ``{"id", "call", "arguments"}``. Events: ``{"id", "kind", …}`` with kind progress, rows, result or failed.
Whatever the work prints goes to stderr; the real stdout carries events alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

from lora_lab.domain.wire import report_to_wire
from lora_lab.errors import CancelledError, LoraLabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.session import Session

_PROGRESS_SECONDS: Final = 0.05
# The screen goes first: a computation that takes every core must not make a key wait.
_NICENESS: Final = 10


class Teller:
    """Writes events; also the Observer of the work at hand."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = 0.0
        self.job = 0

    def send(self, kind: str, **values: Any) -> None:
        """One event of the job at hand."""
        self._stream.write(json.dumps({"id": self.job, "kind": kind, **values}, separators=(",", ":")) + "\n")
        self._stream.flush()

    def advance(self, done: int, total: int, what: str = "") -> None:
        """At most twenty a second, and always the last."""
        now = time.monotonic()
        if done >= total or now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self.send("progress", done=done, total=total, what=what)

    def rows(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows that are ready."""
        self.send("rows", table=table, rows=[dict(row) for row in rows])

    def is_cancelled(self) -> bool:
        """Never: a cancelled child is ended from outside."""
        return False


def serve(session: Session, requests: TextIO, teller: Teller) -> None:
    """Do one request after another until stdin ends."""
    for line in requests:
        request = json.loads(line)
        teller.job = request["id"]
        try:
            report = getattr(session, request["call"])(**request["arguments"], observer=teller)
            teller.send("result", report=report_to_wire(report))
        except CancelledError:
            teller.send("cancelled")
        except LoraLabError as error:
            teller.send("failed", error=error.message, hint=error.hint)
        except Exception as error:
            teller.send(
                "failed", error=f"{type(error).__name__}: {error}", hint="This is a fault of lora-lab or a plugin."
            )


def main() -> None:
    """Take the session's options from the command line, warm up, and serve."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogatepass")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    from lora_lab.session import Session

    session = Session(**json.loads(sys.argv[1]))
    import torch  # noqa: F401 - so that the first job need not wait for it

    serve(session, sys.stdin, Teller(events))


if __name__ == "__main__":
    main()
