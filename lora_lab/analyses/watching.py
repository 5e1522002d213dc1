"""Telling an observer of rows while they are made."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.progress import stop_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lora_lab.domain.progress import Observer

# Rows go out together when this much time has passed: often enough for an eye, seldom enough for a pipe.
_FLUSH_SECONDS: Final = 0.05


def watched(
    rows: Iterable[dict[str, Any]], total: int, observer: Observer, *, table: str = "modules", key: str = "module"
) -> Iterator[dict[str, Any]]:
    """Pass `rows` on, tell the observer of them in handfuls, and stop when it asks for it.

    Parameters
    ----------
    total : how many rows will come
    table, key : of the report that the rows belong to

    Raises
    ------
    CancelledError
        the observer no longer wants the result.
    """
    ready: list[dict[str, Any]] = []
    told = -math.inf
    for done, row in enumerate(rows, start=1):
        stop_if_cancelled(observer)
        ready.append(row)
        if done == total or time.monotonic() - told >= _FLUSH_SECONDS:
            observer.rows(table, ready)
            observer.advance(done, total, str(row[key]))
            ready, told = [], time.monotonic()
        yield row
