"""What was fetched of remote files and is still there, from one analysis to the next."""

from __future__ import annotations

import threading
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_lab.sources.runs import RangeKey, Run


class Kept:
    """Ranges that one spool fetched, for the next one that reads them too: two analyses of one base, one after another.

    They are open files without names, no more than a spool may have, and gone with the process.
    """

    def __init__(self) -> None:
        self._files: dict[RangeKey, IO[bytes]] = {}
        self._lock = threading.Lock()

    def keep(self, run: Run, file: IO[bytes]) -> None:
        """Take over a file that holds `run`."""
        with self._lock:
            before = self._files.pop(run.key, None)
            self._files[run.key] = file
        if before is not None:
            before.close()

    def take(self, runs: Iterable[Run], limit_bytes: int) -> dict[RangeKey, IO[bytes]]:
        """Give back what is there of `runs`, the first ones up to `limit_bytes`, and let everything else go."""
        with self._lock:
            there, self._files = self._files, {}
        taken: dict[RangeKey, IO[bytes]] = {}
        for run in runs:
            if run.key in there and run.size_bytes <= limit_bytes:
                taken[run.key] = there.pop(run.key)
                limit_bytes -= run.size_bytes
        for file in there.values():
            file.close()
        return taken
